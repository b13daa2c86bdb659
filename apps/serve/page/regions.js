// Parts of the picture that stay as they are: drawn with the pointer, in fractions of the picture.
const kMost = 8;

export function makeRegions(layer, changed) {
  let regions = [];
  let start = null;
  let box = null;
  const place = (element, [x, y, width, height]) => Object.assign(element.style,
    { left: `${100 * x}%`, top: `${100 * y}%`, width: `${100 * width}%`, height: `${100 * height}%` });
  const show = () => {
    layer.replaceChildren(...regions.map((r) => {
      const element = document.createElement("i");
      place(element, r);
      return element;
    }));
  };
  const point = (event) => {
    const area = layer.getBoundingClientRect();
    return [(event.clientX - area.left) / area.width, (event.clientY - area.top) / area.height].map((v) => Math.min(1, Math.max(0, v)));
  };
  const spanned = (a, b) => [Math.min(a[0], b[0]), Math.min(a[1], b[1]), Math.abs(a[0] - b[0]), Math.abs(a[1] - b[1])];
  layer.addEventListener("pointerdown", (event) => {
    layer.setPointerCapture(event.pointerId);
    start = point(event);
    box = document.createElement("i");
    layer.append(box);
  });
  layer.addEventListener("pointermove", (event) => { if (start) place(box, spanned(start, point(event))); });
  layer.addEventListener("pointerup", (event) => {
    if (!start) return;
    const region = spanned(start, point(event)).map((v) => Math.round(v * 1e4) / 1e4);
    start = null;
    if (region[2] > 0.01 && region[3] > 0.01) regions = [...regions.slice(1 - kMost), region], changed(regions);
    show();
  });
  return {
    get list() { return regions; },
    set(list) { regions = list; if (!start) show(); },
    draw(on) { layer.classList.toggle("drawing", on); },
  };
}
