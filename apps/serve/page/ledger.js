// The figures of the last seconds, and where the time of the last chunk went.
const kStages = [
  ["wait_ms", "Waiting", "#8a9399"], ["decode_ms", "JPEG in", "#5aa9e6"], ["encode_ms", "Encode", "#3f7cc4"],
  ["pass_ms", "Network", "#0b8a7f"], ["latents_ms", "Decode", "#d08b2b"], ["guard_ms", "Safeguards", "#b4574e"],
  ["jpeg_ms", "JPEG out", "#9a6fc0"], ["queue_ms", "Between stages", "#b9bfc3"],
];
const ms = (v) => (v >= 1000 ? `${(v / 1000).toFixed(2)} s` : `${v >= 10 ? Math.round(v) : v.toFixed(1)} ms`);
const sum = (v) => (Array.isArray(v) ? v.reduce((a, b) => a + b, 0) : v);

function row(name, value, colour) {
  const cell = document.createElement("div");
  const dt = document.createElement("dt");
  if (colour) dt.append(Object.assign(document.createElement("i"), { ariaHidden: "true" })), (dt.firstChild.style.background = colour);
  dt.append(name);
  const dd = document.createElement("dd");
  dd.textContent = value;
  cell.append(dt, dd);
  return cell;
}

export function summaryOf(m) {
  const late = m.glass_p50_ms > 0 ? m.glass_p50_ms : m.server_p50_ms;
  if (m.chunks === 0) return "";
  return m.fps > 0 ? `${m.fps.toFixed(1)} fps · ${ms(late)}` : ms(late);
}

export function showLedger({ figures, bars, list }, m) {
  figures.textContent = m.chunks > 0 ? `${summaryOf(m)} · ${Math.round(m.memory_mb)} MB` : "";
  const last = m.last;
  bars.replaceChildren(...kStages.map(([key, , colour]) => {
    const bar = document.createElement("i");
    bar.style.background = colour;
    bar.style.flexGrow = sum(last[key]);
    return bar;
  }));
  bars.setAttribute("aria-label", "Last chunk: " + kStages.map(([key, name]) => `${name} ${ms(sum(last[key]))}`).join(", "));
  const passes = last.pass_ms.map((v) => Math.round(v)).join(" + ");
  list.replaceChildren(
    row("Glass to glass, p50", ms(m.glass_p50_ms)), row("Glass to glass, p99", ms(m.glass_p99_ms)),
    row("Edited", `${m.fps.toFixed(1)} fps`), row("Frames edited", m.edited.toLocaleString()),
    row("Dropped, for newer ones", (m.dropped + m.unsent).toLocaleString()), row("Memory", `${Math.round(m.memory_mb)} MB`),
    row("Viewers", String(m.viewers)), row("Fallbacks", String(m.fell_back)),
    ...kStages.map(([key, name, colour]) => row(key === "pass_ms" ? `Network (${passes})` : name, ms(sum(last[key])), colour)),
  );
}
