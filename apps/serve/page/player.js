// Shows each edited frame beside the very source frame it was made from. Frames arrive a chunk at a time; they
// are shown evenly, each a constant time after it was captured: that of the slowest of the last arrivals.
const kMaxSources = 240;
const kMaxWaiting = 48;
const kArrivals = 15;
const kSlack = 20;  // milliseconds on top of the slowest arrival

export class Player {
  constructor(sourceCanvas, editCanvas, onSize) {
    this.canvases = { source: sourceCanvas, edit: editCanvas };
    this.contexts = { source: sourceCanvas.getContext("2d", { alpha: false }), edit: editCanvas.getContext("2d", { alpha: false }) };
    this.onSize = onSize;
    this.clear();
    const paint = () => { this.paint(); requestAnimationFrame(paint); };
    requestAnimationFrame(paint);
  }

  clear() {
    this.generation = (this.generation ?? 0) + 1;
    for (const pair of this.waiting ?? []) pair.source?.close(), pair.edit.close();
    Object.assign(this, { sources: new Map(), waiting: [], arrivals: [], delay: 0, latencies: [], skipped: 0, shown: 0, showsSource: false });
  }

  // The JPEG of a source frame, to be shown when its edit comes.
  remember(sequence, jpeg) {
    this.sources.set(sequence, jpeg);
    if (this.sources.size > kMaxSources) this.sources.delete(this.sources.keys().next().value);
  }

  async add(picture) {
    if (picture.kind === "source") return this.remember(picture.sequence, picture.jpeg);
    const generation = this.generation;
    const late = performance.timeOrigin + performance.now() - picture.captured + kSlack;
    this.arrivals.push(late);
    if (this.arrivals.length > kArrivals) this.arrivals.shift();
    this.delay = Math.max(...this.arrivals);
    const jpeg = this.sources.get(picture.sequence);
    for (const sequence of this.sources.keys()) if (sequence <= picture.sequence) this.sources.delete(sequence);
    let pair;
    try {
      const [edit, source] = await Promise.all([createImageBitmap(picture.jpeg), jpeg ? createImageBitmap(jpeg) : null]);
      pair = { ...picture, edit, source };
    } catch { return void this.skipped++; }
    if (generation !== this.generation) return;
    this.waiting.push(pair);
    this.waiting.sort((a, b) => a.sequence - b.sequence);
    if (this.waiting.length > kMaxWaiting) this.drop(this.waiting.shift());
  }

  drop(pair) {
    this.skipped++;
    pair.source?.close();
    pair.edit.close();
  }

  paint() {
    const now = performance.timeOrigin + performance.now();
    let due = null;
    while (this.waiting.length > 0 && this.waiting[0].captured + this.delay <= now) {
      if (due) this.drop(due);
      due = this.waiting.shift();
    }
    if (!due) return;
    this.draw("edit", due.edit);
    if (due.source) this.draw("source", due.source);
    this.latencies.push(now - due.captured);
    this.showsSource = due.showsSource;
    this.shown++;
  }

  draw(which, bitmap) {
    const canvas = this.canvases[which];
    if (canvas.width !== bitmap.width || canvas.height !== bitmap.height) {
      Object.assign(canvas, { width: bitmap.width, height: bitmap.height });
      if (which === "edit") this.onSize(bitmap.width, bitmap.height);
    }
    this.contexts[which].drawImage(bitmap, 0, 0);
    bitmap.close();
  }

  // What was shown since the last call, for the ledger.
  report() {
    const report = { latency_ms: this.latencies.slice(-240).map((ms) => Math.max(0, Math.round(ms * 10) / 10)), skipped: this.skipped };
    this.latencies = [];
    this.skipped = 0;
    return report;
  }
}
