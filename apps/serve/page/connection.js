// The WebSocket to /live: says hello, parses what comes and connects again when the line is lost.
const kHeader = 16;
const kRetry = [500, 1000, 2000, 3000];  // milliseconds

export function pictureMessage(sequence, capturedUs, jpeg) {
  const header = new DataView(new ArrayBuffer(kHeader));
  header.setUint8(0, 1);
  header.setUint32(4, sequence, true);
  header.setBigUint64(8, BigInt(Math.round(capturedUs)), true);
  return new Blob([header.buffer, jpeg]);
}

function parsePicture(buffer) {
  const header = new DataView(buffer);
  return {
    kind: header.getUint8(0) === 3 ? "source" : "edited",
    showsSource: (header.getUint8(1) & 1) !== 0,
    sequence: header.getUint32(4, true),
    captured: Number(header.getBigUint64(8, true)) / 1000,
    jpeg: new Blob([buffer.slice(kHeader)], { type: "image/jpeg" }),
  };
}

// on: { text(message), picture(picture), lost(), closed() }. lost: another try follows.
export class Connection {
  constructor(role, token, on) {
    Object.assign(this, { role, token, on, tries: 0, welcomed: false, ended: false });
    this.open();
  }

  open() {
    const scheme = location.protocol === "https:" ? "wss:" : "ws:";
    const socket = new WebSocket(`${scheme}//${location.host}/live`);
    socket.binaryType = "arraybuffer";
    socket.onopen = () => {
      const hello = { type: "hello", version: 1, role: this.role };
      if (this.token) hello.token = this.token;
      socket.send(JSON.stringify(hello));
    };
    socket.onmessage = ({ data }) => {
      if (socket !== this.socket) return;
      if (typeof data !== "string") return this.on.picture(parsePicture(data));
      const message = JSON.parse(data);
      if (message.type === "welcome") this.welcomed = true, this.tries = 0;
      // Turned away at the door: there is no use in knocking again by itself. After a lost line the server may
      // need some seconds to see that the old connection of this page is gone.
      if (message.type === "refused" && message.about === "hello") {
        if (message.code === "taken" && this.welcomed && this.tries < 6) return;
        this.ended = true;
      }
      this.on.text(message);
    };
    socket.onclose = () => {
      if (socket !== this.socket || this.ended) return;
      this.on.lost();
      const wait = kRetry[Math.min(this.tries++, kRetry.length - 1)];
      this.timer = setTimeout(() => this.open(), wait);
    };
    this.socket = socket;
  }

  get ready() { return this.socket.readyState === WebSocket.OPEN; }
  get backlog() { return this.socket.bufferedAmount; }
  say(message) { if (this.ready) this.socket.send(JSON.stringify(message)); }
  show(sequence, capturedUs, jpeg) { if (this.ready) this.socket.send(pictureMessage(sequence, capturedUs, jpeg)); }

  end() {
    this.ended = true;
    clearTimeout(this.timer);
    this.socket.close();
  }
}
