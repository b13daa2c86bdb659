// Where pictures come from: camera, screen, a file or the sample clip, as timed JPEG frames of the size that
// is edited, at the pace that the server keeps up with.
const kQuality = 0.88;
const kMaxBacklog = 400000;  // bytes on their way to the server; more would only be late
export const kCameraFps = 30;

async function streamVideo(stream) {
  const video = document.createElement("video");
  Object.assign(video, { muted: true, playsInline: true, srcObject: stream });
  await video.play();
  return video;
}

async function urlVideo(url) {
  const video = document.createElement("video");
  Object.assign(video, { muted: true, loop: true, playsInline: true, src: url });
  await video.play();
  return video;
}

export async function openSource(kind, file) {
  if (kind === "camera")
    return streamVideo(await navigator.mediaDevices.getUserMedia(
      { video: { width: { ideal: 640 }, height: { ideal: 360 }, facingMode: "user" }, audio: false }));
  if (kind === "screen")
    return streamVideo(await navigator.mediaDevices.getDisplayMedia({ video: { frameRate: kCameraFps } }));
  if (kind === "file") return urlVideo(URL.createObjectURL(file));
  const clip = await (await fetch("/clip.mp4")).blob();
  return urlVideo(URL.createObjectURL(clip));
}

export function explainFailure(kind, error) {
  const name = error?.name;
  if (name === "NotAllowedError") return kind === "screen" ? "Nothing was shared." : "The browser was not allowed to use the camera.";
  if (name === "NotFoundError") return "No camera was found.";
  if (name === "NotReadableError") return "The camera is in use by another program.";
  if (kind === "file" || kind === "clip") return "This browser cannot play that video.";
  return "The source could not be opened.";
}

export class Capture {
  // size [w, h] of the edit, send(jpeg, capturedMs) and backlog() of the connection, ended() when the source
  // stops by itself.
  constructor(video, size, { send, backlog, ended }) {
    Object.assign(this, { video, size, send, backlog, fps: 10, skipped: 0, stopped: false });
    this.canvas = document.createElement("canvas");
    this.context = this.canvas.getContext("2d", { alpha: false });
    for (const track of video.srcObject?.getTracks() ?? []) track.addEventListener("ended", ended);
    this.next = performance.now();
    this.turn();
  }

  set pace(fps) { if (fps > 0) this.fps = Math.min(kCameraFps, Math.max(1, fps)); }

  turn() {
    if (this.stopped) return;
    this.take();
    this.next = Math.max(this.next + 1000 / this.fps, performance.now() - 50);
    this.timer = setTimeout(() => this.turn(), Math.max(0, this.next - performance.now()));
  }

  take() {
    const { videoWidth: width, videoHeight: height } = this.video;
    if (!width || this.encoding) return;
    if (this.backlog() > kMaxBacklog) return void this.skipped++;
    const [w, h] = height > width ? [Math.min(...this.size), Math.max(...this.size)] : this.size;
    if (this.canvas.width !== w || this.canvas.height !== h) Object.assign(this.canvas, { width: w, height: h });
    // The largest centred part of the picture with the shape of the edit.
    const scale = Math.min(width / w, height / h);
    const captured = performance.timeOrigin + performance.now();
    this.context.imageSmoothingQuality = "high";
    this.context.drawImage(this.video, (width - w * scale) / 2, (height - h * scale) / 2, w * scale, h * scale, 0, 0, w, h);
    this.encoding = true;
    this.canvas.toBlob((jpeg) => {
      this.encoding = false;
      if (jpeg && !this.stopped) this.send(jpeg, captured);
    }, "image/jpeg", kQuality);
  }

  stop() {
    this.stopped = true;
    clearTimeout(this.timer);
    this.video.pause();
    for (const track of this.video.srcObject?.getTracks() ?? []) track.stop();
    if (this.video.src.startsWith("blob:")) URL.revokeObjectURL(this.video.src);
  }
}
