// Records the edit, as the browser can: MP4 where it knows how, WebM elsewhere.
const kTypes = ["video/mp4;codecs=avc1.42E01E", "video/mp4", "video/webm;codecs=vp9", "video/webm;codecs=vp8", "video/webm"];

export const canRecord = () => typeof MediaRecorder === "function" && kTypes.some((t) => MediaRecorder.isTypeSupported(t));

export class Recorder {
  constructor(canvas) {
    const type = kTypes.find((t) => MediaRecorder.isTypeSupported(t));
    this.pieces = [];
    this.began = performance.now();
    this.recorder = new MediaRecorder(canvas.captureStream(30), { mimeType: type, videoBitsPerSecond: 4e6 });
    this.recorder.ondataavailable = ({ data }) => { if (data.size > 0) this.pieces.push(data); };
    this.recorder.start(1000);
  }

  get seconds() { return (performance.now() - this.began) / 1000; }

  // { blob, name }
  finish() {
    return new Promise((resolve) => {
      this.recorder.onstop = () => {
        for (const track of this.recorder.stream.getTracks()) track.stop();
        const type = this.recorder.mimeType.split(";")[0];
        const stamp = new Date().toISOString().slice(0, 19).replace(/[:T]/g, "-");
        resolve({ blob: new Blob(this.pieces, { type }), name: `rivulet-${stamp}.${type === "video/mp4" ? "mp4" : "webm"}` });
      };
      this.recorder.stop();
    });
  }
}
