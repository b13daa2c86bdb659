// Parts of the picture that stay as they are, in fractions of the picture: drawn with the pointer, or placed with
// the arrow keys.
const kMost = 8;
const kStep = 0.02;
const kLeast = 0.02;  // of a side
const clamp = (v, low, high) => Math.min(high, Math.max(low, v));

export function makeRegions(layer, changed, cancelled) {
  let regions = [];
  let start = null;   // where the pointer went down
  let placed = null;  // the region under the arrow keys
  let box = null;
  const place = (element, [x, y, width, height]) => Object.assign(element.style,
    { left: `${100 * x}%`, top: `${100 * y}%`, width: `${100 * width}%`, height: `${100 * height}%` });
  const show = () => {
    layer.replaceChildren(...[...regions, ...(placed ? [placed] : [])].map((r) => {
      const element = document.createElement("i");
      place(element, r);
      return element;
    }));
  };
  const point = (event) => {
    const area = layer.getBoundingClientRect();
    return [(event.clientX - area.left) / area.width, (event.clientY - area.top) / area.height].map((v) => clamp(v, 0, 1));
  };
  const spanned = (a, b) => [Math.min(a[0], b[0]), Math.min(a[1], b[1]), Math.abs(a[0] - b[0]), Math.abs(a[1] - b[1])];
  const keep = (region) => {
    placed = null;
    const exact = region.map((v) => Math.round(v * 1e4) / 1e4);
    if (exact[2] >= kLeast && exact[3] >= kLeast) regions = [...regions.slice(1 - kMost), exact], changed(regions);
    show();
  };
  layer.addEventListener("pointerdown", (event) => {
    layer.setPointerCapture(event.pointerId);
    placed = null;
    show();
    start = point(event);
    box = document.createElement("i");
    layer.append(box);
  });
  layer.addEventListener("pointermove", (event) => { if (start) place(box, spanned(start, point(event))); });
  layer.addEventListener("pointerup", (event) => {
    if (!start) return;
    const region = spanned(start, point(event));
    start = null;
    keep(region);
  });
  layer.addEventListener("pointercancel", () => { start = null, show(); });
  layer.addEventListener("keydown", (event) => {
    if (!placed) return;
    if (event.key === "Escape") cancelled();
    else if (event.key === "Enter") keep(placed);
    else {
      const by = { ArrowLeft: [-kStep, 0], ArrowRight: [kStep, 0], ArrowUp: [0, -kStep], ArrowDown: [0, kStep] }[event.key];
      if (!by) return;
      let [x, y, width, height] = placed;
      if (event.shiftKey) width = clamp(width + by[0], kLeast, 1 - x), height = clamp(height + by[1], kLeast, 1 - y);
      else x = clamp(x + by[0], 0, 1 - width), y = clamp(y + by[1], 0, 1 - height);
      placed = [x, y, width, height];
      show();
    }
    event.preventDefault();
  });
  return {
    get list() { return regions; },
    set(list) { regions = list; if (!start) show(); },
    // Whether a region may be drawn; by key: one in the middle is there to be moved.
    draw(on, byKey = false) {
      layer.classList.toggle("drawing", on);
      layer.setAttribute("aria-hidden", String(!on));
      layer.tabIndex = on ? 0 : -1;
      placed = on && byKey ? [0.3, 0.3, 0.4, 0.4] : null;
      show();
      if (placed) layer.focus();
    },
  };
}
