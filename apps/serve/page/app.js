// The page: one picture, one instruction. This file connects the parts; each part knows nothing of the others.
import { Capture, explainFailure, openSource } from "/capture.js";
import { Connection } from "/connection.js";
import { makeDivider } from "/divider.js";
import { showLedger, summaryOf } from "/ledger.js";
import { Player } from "/player.js";
import { Recorder, canRecord } from "/recorder.js";
import { makeRegions } from "/regions.js";

const $ = (id) => document.getElementById(id);
// The server's reasons name the part that gave them ("instruction: ..."); a person needs the reason alone.
const sentence = (text) => {
  const plain = text.replace(/^[a-z_ ]+: /, "");
  return plain.charAt(0).toUpperCase() + plain.slice(1).replace(/([^.!?])$/, "$1.");
};
const later = (f, wait) => { let timer; return () => { clearTimeout(timer); timer = setTimeout(f, wait); }; };

let connection = null, capture = null, recorder = null, video = null;
let role = "edit", welcome = null, sequence = 0, pending = null, accepted = null;
let token = new URLSearchParams(location.hash.slice(1)).get("token") ?? "";

const player = new Player($("source"), $("edit"), (width, height) => {
  const style = $("stage").style;
  style.setProperty("--ratio", `${width} / ${height}`);
  style.setProperty("--ratio-two", `${2 * width} / ${height}`);
  style.setProperty("--ratio-stack", `${width} / ${2 * height}`);
  $("stage").classList.toggle("tall", height > width);
});
makeDivider($("divider"), $("stage"));
const regions = makeRegions($("regions"), (list) => {
  connection?.say({ type: "protect", regions: list });
  drawRegions(false);
}, () => drawRegions(false));

// --- What is being done -----------------------------------------------------------------------------------

function setPhase(phase, text) {
  document.body.dataset.phase = phase;
  $("status-text").textContent = text;
  $("status-figures").textContent = "";
  $("welcome").hidden = phase !== "idle";
  $("message").hidden = !["connecting", "lost", "refused"].includes(phase);
  $("spinner").hidden = !["connecting", "lost"].includes(phase);
}

function message(title, text, actions = []) {
  $("message-title").textContent = title;
  $("message-text").textContent = text;
  $("token-form").hidden = true;
  $("message-actions").replaceChildren(...actions.map(([label, action]) => {
    const button = Object.assign(document.createElement("button"), { type: "button", className: "quiet", textContent: label });
    button.addEventListener("click", action);
    return button;
  }));
}

function answer(text, bad = false) {
  $("answer").textContent = text;
  $("answer").classList.toggle("bad", bad);
}

function banner(text) {
  $("banner").textContent = text;
  $("banner").hidden = text === "";
}

function goIdle() {
  stopRecording();
  connection?.end();
  capture?.stop();
  if (!capture) video?.pause();
  connection = capture = video = welcome = accepted = null;
  player.clear();
  regions.set([]);
  $("unprotect").hidden = true;
  drawRegions(false);
  banner("");
  answer("");
  $("figures").textContent = "";
  setPhase("idle", "Ready");
}

async function start(kind, file) {
  role = "edit";
  try {
    video = await openSource(kind, file);
  } catch (error) {
    setPhase("refused", "No source");
    message(explainFailure(kind, error), "Choose another source, or try again.", [["Back", goIdle]]);
    return;
  }
  connect();
}

function watch() {
  role = "watch";
  connect();
}

function connect() {
  setPhase("connecting", "Connecting");
  message("Connecting", "");
  connection = new Connection(role, token, { text: take, picture: (p) => player.add(p), lost });
}

function lost() {
  if (document.body.dataset.phase !== "lost") message("The connection was lost", "Trying again.", [["Stop", goIdle]]);
  setPhase("lost", "Connection lost");
}

// --- What the server says ----------------------------------------------------------------------------------

const takers = {
  welcome(m) {
    welcome = m;
    showExamples(m.examples);
    $("steps").max = m.max_steps;
    $("strength").max = Math.round(100 * m.max_strength);
    player.clear();
    banner("");
    if (role === "watch") return setPhase("watching", "Watching");
    setPhase("live", "Live");
    sequence = 0;
    sendSettings();
    if (regions.list.length > 0) connection.say({ type: "protect", regions: regions.list });
    // After a lost line: what was in force, whatever is being typed.
    if (accepted) connection.say({ type: "instruct", text: (pending = accepted), keep_memory: true });
    else instruct();
    capture ??= new Capture(video, m.size, {
      send(jpeg, captured) {
        if (!connection?.ready || document.body.dataset.phase !== "live") return;
        player.remember(++sequence, jpeg);
        connection.show(sequence, 1000 * captured, jpeg);
      },
      backlog: () => connection?.backlog ?? 0,
      ended: goIdle,
    });
  },
  state(m) {
    if (role === "watch") {
      setPhase("watching", m.editing ? "Watching" : "Waiting for an editor");
      answer(m.editing ? (m.instruction ? `“${m.instruction}”` : "") : "Nobody is editing at the moment.");
      if (!m.editing) player.clear();
    } else if (m.instruction) {
      accepted = m.instruction;
      markChip();
      if (m.instruction !== pending) return showRegions(m.regions);
      pending = null;
      answer(`Now: ${m.instruction}`);
    }
    showRegions(m.regions);
  },
  refused(m) {
    if (m.about === "hello") return refusedHello(m);
    pending = null;
    answer(sentence(m.text), true);
  },
  notice(m) {
    banner(m.code === "recovered" ? "" : sentence(m.text));
  },
  ledger(m) {
    if (capture) capture.pace = m.pace_fps;
    showLedger({ figures: $("figures"), bars: $("bars"), list: $("ledger") }, m);
    const phase = document.body.dataset.phase;
    if (["live", "watching"].includes(phase) && m.chunks > 0) $("status-figures").textContent = summaryOf(m);
  },
};

function take(m) { takers[m.type]?.(m); }

function refusedHello(m) {
  capture?.stop();
  capture = null;
  setPhase("refused", m.code === "taken" ? "Taken" : "Refused");
  if (m.code === "taken")
    return message("Someone is editing already", "One person edits at a time. You can watch what they see.", [["Watch", watch], ["Back", goIdle]]);
  if (m.code === "token") {
    message("A token is needed", token ? "That token is not the right one." : "The server printed it when it started.", [["Back", goIdle]]);
    $("token-form").hidden = false;
    $("token").focus();
    return;
  }
  message("The server said no", m.text, [["Back", goIdle]]);
}

// --- What the person says ----------------------------------------------------------------------------------

function instruct() {
  const text = $("instruction").value.trim();
  if (!text) return answer("Say what to change.", true);
  if (welcome && new TextEncoder().encode(text).length > welcome.max_instruction_bytes) return answer("That is too long.", true);
  if (!connection?.ready || document.body.dataset.phase !== "live") return answer("It applies as soon as a source is chosen.");
  pending = text;
  answer("Applying at the next chunk.");
  connection.say({ type: "instruct", text, keep_memory: $("keep").checked });
}

function sendSettings() {
  const whole = (id, low, high) => Math.min(high, Math.max(low, Math.round(Number($(id).value) || 0)));
  connection?.say({ type: "settings", strength: Number($("strength").value) / 100, seed: whole("seed", 0, Number.MAX_SAFE_INTEGER),
    steps: whole("steps", 1, welcome?.max_steps ?? 8) });
}

function showExamples(examples) {
  $("chips").replaceChildren(...examples.map((text) => {
    const chip = Object.assign(document.createElement("button"), { type: "button", textContent: text });
    chip.addEventListener("click", () => { $("instruction").value = text; instruct(); });
    return chip;
  }));
}

function setView(view) {
  document.body.dataset.view = view;
  document.querySelector(`#views [value=${view}]`).checked = true;
}

// The example that is in force.
function markChip() {
  for (const chip of $("chips").children) chip.ariaCurrent = String(chip.textContent === accepted);
}

function showRegions(list) {
  regions.set(list);
  $("unprotect").hidden = list.length === 0;
}

function drawRegions(on, byKey = false) {
  const before = $("protect").getAttribute("aria-pressed") === "true";
  if (on && document.body.dataset.view === "side") setView("split");
  $("protect").setAttribute("aria-pressed", String(on));
  regions.draw(on, byKey);
  if (!on) {
    if (before) answer(accepted ? `Now: ${accepted}` : "");
    if (document.activeElement === $("regions")) $("protect").focus();
    return;
  }
  answer(byKey ? "Arrow keys move the part, with Shift they size it. Enter keeps it, Escape gives up."
    : "Draw over the part of the picture that is to stay as it is.");
  $("stage").scrollIntoView({ block: "center" });
}

async function stopRecording() {
  if (!recorder) return;
  const done = recorder;
  recorder = null;
  $("record").setAttribute("aria-pressed", "false");
  $("record-text").textContent = "Record";
  const { blob, name } = await done.finish();
  const url = URL.createObjectURL(blob);
  Object.assign($("download"), { href: url, download: name });
  $("playback").src = url;
  $("recording").showModal();
}

$("welcome").addEventListener("click", ({ target }) => {
  const kind = target.closest("[data-source]")?.dataset.source;
  if (kind === "file") $("file").click();
  else if (kind) start(kind);
});
$("file").addEventListener("change", () => { if ($("file").files[0]) start("file", $("file").files[0]); $("file").value = ""; });
$("stage").addEventListener("dragover", (event) => event.preventDefault());
$("stage").addEventListener("drop", (event) => {
  event.preventDefault();
  const file = event.dataTransfer.files[0];
  if (file && document.body.dataset.phase === "idle") start("file", file);
});
$("watch").addEventListener("click", watch);
$("stop").addEventListener("click", goIdle);
$("ask").addEventListener("submit", (event) => { event.preventDefault(); instruct(); });
$("token-form").addEventListener("submit", (event) => { event.preventDefault(); token = $("token").value.trim(); connect(); });
$("views").addEventListener("change", ({ target }) => setView(target.value));
const settle = later(sendSettings, 120);
for (const id of ["strength", "seed", "steps"]) $(id).addEventListener("input", settle);
$("strength").addEventListener("input", () => { $("strength-out").value = `${$("strength").value} %`; });
$("reset").addEventListener("click", () => { connection?.say({ type: "reset" }); answer("The memory is reset."); });
// A click that no pointer made (detail 0) came from the keyboard.
$("protect").addEventListener("click", ({ detail }) => drawRegions($("protect").getAttribute("aria-pressed") !== "true", detail === 0));
$("unprotect").addEventListener("click", () => connection?.say({ type: "protect", regions: [] }));
$("record").hidden = !canRecord();
$("record").addEventListener("click", () => {
  if (recorder) return stopRecording();
  recorder = new Recorder($("edit"));
  $("record").setAttribute("aria-pressed", "true");
});
$("recording").addEventListener("close", () => { URL.revokeObjectURL($("playback").src); $("playback").removeAttribute("src"); });

// Twice a second: how late the frames were seen, for the ledger.
setInterval(() => {
  if (recorder) $("record-text").textContent = `Stop · ${Math.floor(recorder.seconds)} s`;
  $("edit-caption").textContent = player.showsSource ? "Edit withheld" : "Edit";
  if (role !== "edit" || document.body.dataset.phase !== "live") return;
  const report = player.report();
  if (report.latency_ms.length > 0 || report.skipped > 0) connection.say({ type: "shown", ...report });
}, 500);

if (!["localhost", "127.0.0.1", "[::1]"].includes(location.hostname)) $("where").textContent = `It goes to ${location.hostname}.`;
goIdle();
