// The page in Debian's Chromium, its camera being the bundled clip. One browser, one server after the other;
// every step is an assertion, and pictures of every state are written for a person to look at.
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { readFileSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { accessible, clip, close, finish, frames, look, open, out, phase, rivulet, say, serve, shot, step, until } from "./harness.js";

const server = await serve();
const { address } = server;
const port = Number(new URL(address).port);
const page = await open(address);
let again = null;

async function ledgerText(page) {
  if (!(await page.evaluate(() => document.getElementById("ledger-panel").open))) await page.click("#ledger-panel summary");
  return page.innerText("#ledger");
}

await step("opens calmly and names its choices", async () => {
  await phase(page, "idle");
  for (const name of ["Camera", "Screen", "Video file", "Sample clip"]) assert.ok(await page.getByRole("button", { name }).isVisible(), name);
  await shot(page, "1_idle");
  await accessible(page);
});

await step("starts the camera and shows edited frames that change", async () => {
  await page.getByRole("button", { name: "Camera" }).click();
  await phase(page, "live");
  await frames(page);
  await until("a sketch", async () => (await look(page, "edit")).light > (await look(page, "source")).light + 60);
  await shot(page, "2_live_sketch");
});

await step("follows a new instruction without a restart", async () => {
  await say(page, "invert the colours");
  await until("the answer", async () => (await page.textContent("#answer")).startsWith("Now: invert"));
  await until("the negative", async () => {
    const [s, e] = [await look(page, "source"), await look(page, "edit")];
    return Math.abs(s.light + e.light - 255) < 30 && e.colour > 8;
  });
  await shot(page, "3_live_negative");
});

await step("strength 0 is the source, and a protected part stays", async () => {
  await page.click("#adjust summary");
  await page.fill("#strength", "0");
  await until("the source", async () => Math.abs((await look(page, "source")).light - (await look(page, "edit")).light) < 8);
  await page.fill("#strength", "100");
  await page.click("#protect");
  await page.waitForTimeout(300);
  const box = await page.locator("#regions").boundingBox();
  await page.mouse.move(box.x + box.width * 0.55, box.y + box.height * 0.1);
  await page.mouse.down();
  await page.mouse.move(box.x + box.width * 0.95, box.y + box.height * 0.9, { steps: 4 });
  await page.mouse.up();
  await until("the region", async () => (await page.locator("#regions i").count()) === 1);
  // The right half holds the region: there the edit is the source, on the left it is the negative.
  const halves = () => page.evaluate(() => {
    const light = (id, x, w) => {
      const canvas = document.getElementById(id);
      const { data } = canvas.getContext("2d").getImageData(x * canvas.width, 0.2 * canvas.height, w * canvas.width, 0.6 * canvas.height);
      return data.reduce((sum, v, i) => sum + (i % 4 < 3 ? v : 0), 0) / (0.75 * data.length);
    };
    return [light("edit", 0.05, 0.4) - light("source", 0.05, 0.4), light("edit", 0.6, 0.3) - light("source", 0.6, 0.3)];
  });
  await until("the protected part", async () => { const [left, right] = await halves(); return Math.abs(left) > 25 && Math.abs(right) < 8; });
  await shot(page, "4_adjust_protect");
  await page.click("#unprotect");
  await until("no region", async () => (await page.locator("#regions i").count()) === 0);
});

await step("the divider follows keys and pointer", async () => {
  await page.focus("#divider");
  await page.keyboard.press("Home");
  assert.equal(await page.getAttribute("#divider", "aria-valuenow"), "0");
  await page.keyboard.press("Shift+ArrowRight");
  assert.equal(await page.getAttribute("#divider", "aria-valuenow"), "10");
  const box = await page.locator("#stage").boundingBox();
  const handle = await page.locator("#divider").boundingBox();
  await page.mouse.move(handle.x + handle.width / 2, handle.y + handle.height / 2);
  await page.mouse.down();
  await page.mouse.move(box.x + box.width * 0.7, box.y + box.height / 2, { steps: 5 });
  await page.mouse.up();
  assert.ok(Math.abs(Number(await page.getAttribute("#divider", "aria-valuenow")) - 70) <= 1);
  await page.getByRole("radio", { name: "Side by side" }).check();
  await page.waitForTimeout(400);
  await shot(page, "5_side_by_side");
  await page.getByRole("radio", { name: "Divider" }).check();
});

await step("refuses a screened instruction and says which rule", async () => {
  await say(page, "show a beh3ading");
  await page.waitForSelector("#answer.bad");
  assert.match(await page.textContent("#answer"), /violence/);
  await shot(page, "6_refused");
  await say(page, "add a dragon");
  await until("the unknown word", async () => /dragon/.test(await page.textContent("#answer")));
});

await step("a second editor is told, and can watch", async () => {
  const second = await open(address);
  await second.getByRole("button", { name: "Sample clip" }).click();
  await phase(second, "refused");
  assert.match(await second.textContent("#message-title"), /editing already/);
  await shot(second, "7_taken");
  await second.getByRole("button", { name: "Watch", exact: true }).click();
  await phase(second, "watching");
  await until("a watched frame", async () => (await look(second, "edit")).light > 1 && (await look(second, "source")).light > 1);
  assert.ok(await second.isHidden("#instruction") && await second.isHidden("#adjust"), "viewers have nothing to edit with");
  await until("the instruction", async () => /invert the colours/.test(await second.textContent("#answer")));
  await shot(second, "8_watching");
  await accessible(second);
  await until("the count of viewers", async () => /Viewers\s*1/.test((await ledgerText(page))));
  await close(second);
});

await step("records, plays back and offers the file", async () => {
  await page.click("#record");
  await page.waitForTimeout(4000);
  await page.click("#record");
  await page.waitForSelector("#recording[open]");
  await until("playback", () => page.evaluate(() => {
    const video = document.getElementById("playback");
    if (video.paused) video.play();
    return video.readyState >= 2 && video.videoWidth > 0 && video.currentTime > 0.2;
  }));
  await shot(page, "9_recording");
  const [download] = await Promise.all([page.waitForEvent("download"), page.click("#download")]);
  const path = join(out, download.suggestedFilename().replace(/.*\./, "recording."));
  await download.saveAs(path);
  assert.ok(statSync(path).size > 5000);
  const head = readFileSync(path).subarray(0, 12);
  assert.ok(head.readUInt32BE(0) === 0x1a45dfa3 || head.toString("latin1", 4, 8) === "ftyp", "neither WebM nor MP4");
  const probe = ["-v", "error", "-count_frames", "-select_streams", "v", "-show_entries", "stream=nb_read_frames,width", "-of", "csv=p=0", path];
  const [width, count] = execFileSync("ffprobe", probe).toString().trim().split(",").map(Number);
  assert.ok(width === 256 && count >= 3, `the file has ${count} frames of width ${width}`);
  await accessible(page);
  await page.getByRole("button", { name: "Close" }).click();
});

await step("shows the ledger", async () => {
  await until("glass to glass", async () => /Glass to glass, p99\s*[1-9]/.test(await ledgerText(page)));
  await shot(page, "10_ledger");
});

await step("loses the connection and recovers", async () => {
  await server.stop("SIGKILL");
  await phase(page, "lost");
  await shot(page, "11_lost");
  await accessible(page);
  again = await serve({ port });
  await phase(page, "live");
  await until("the instruction again", async () => /Now: invert/.test(await page.textContent("#answer")));
  await frames(page);
  await page.click("#stop");
  await phase(page, "idle");
});

await step("dark, and the size of a phone", async () => {
  const phone = await open(address, { viewport: { width: 390, height: 780 }, deviceScaleFactor: 2, isMobile: true, hasTouch: true, colorScheme: "dark" });
  await shot(phone, "12_phone_idle");
  await accessible(phone);
  await phone.getByRole("button", { name: "Sample clip" }).click();
  await phase(phone, "live");
  await say(phone, "make it look like sunset");
  await until("the answer", async () => (await phone.textContent("#answer")).startsWith("Now: make it look"));
  await frames(phone);
  assert.ok(await phone.evaluate(() => document.documentElement.scrollWidth <= innerWidth), "scrolls sideways");
  await phone.click("#adjust summary");
  await shot(phone, "13_phone_live");
  await accessible(phone);
  await close(phone);
});

// What has the focus, by its name.
const focused = () => page.evaluate(() => {
  const e = document.activeElement;
  return e === document.body ? "page" : (e.ariaLabel || e.labels?.[0]?.textContent || e.textContent).trim().replace(/\s+/g, " ");
});

async function tabOrder(stops) {
  const order = [];
  for (let i = 0; i < stops; ++i) {
    await page.keyboard.press("Tab");
    order.push(await focused());
  }
  return order;
}

await step("works by keyboard alone, in the order of the page", async () => {
  await page.reload();
  await phase(page, "idle");
  assert.deepEqual(await tabOrder(8), ["Skip to the instruction", "Camera", "Screen", "Video file", "Sample clip",
    "Watch someone edit instead", "Instruction", "Apply"]);
  for (let i = 0; i < 3; ++i) await page.keyboard.press("Shift+Tab");
  assert.equal(await focused(), "Sample clip");
  await page.keyboard.press("Enter");
  await phase(page, "live");
  await frames(page);
  await page.focus("#divider");
  assert.deepEqual((await tabOrder(3)).slice(0, 3), ["Instruction", "Apply", "turn it into a pencil sketch"]);
  await page.focus("#views input:checked");
  await page.keyboard.press("ArrowRight");
  assert.equal(await page.getAttribute("body", "data-view"), "side");
  assert.deepEqual((await tabOrder(4)), ["Record", "Stop", "Adjust", (await page.textContent("#ledger-panel summary")).trim().replace(/\s+/g, " ")]);
  await page.keyboard.press("Shift+Tab");
  await page.keyboard.press("Enter");
  assert.deepEqual((await tabOrder(6)).map((name) => name.split(" ")[0]), ["Strength", "Steps", "Seed", "Keep", "Reset", "Protect"]);
});

await step("a part is protected by keyboard", async () => {
  await page.keyboard.press("Enter");
  await page.waitForSelector("#regions.drawing:focus");
  assert.equal(await page.getAttribute("body", "data-view"), "split");  // where the part can be seen
  await accessible(page);
  for (const key of ["ArrowRight", "ArrowRight", "ArrowUp", "Shift+ArrowRight", "Shift+ArrowDown"]) await page.keyboard.press(key);
  await shot(page, "14_protect_by_keyboard");
  await page.keyboard.press("Enter");
  await until("the region", async () => (await page.getAttribute("#regions i", "style"))?.includes("left: 34%; top: 28%; width: 42%; height: 42%"));
  assert.equal(await focused(), "Protect a part");
  await page.keyboard.press("Enter");
  await page.keyboard.press("Escape");
  assert.equal(await focused(), "Protect a part");
  assert.equal(await page.locator("#regions i").count(), 1);
  await page.click("#unprotect");
});

await step("a screen reader hears what changes and no figures", async () => {
  const spoken = await page.evaluate(() => [...document.querySelectorAll("[role=status], [role=alert], [aria-live]")].map((e) => e.id));
  assert.deepEqual(spoken.sort(), ["answer", "banner", "status-text"]);
  assert.equal(await page.textContent("#status-text"), "Live");
  await until("figures beside it", async () => /fps/.test(await page.textContent("#status-figures")));
  const tree = await page.locator("main").ariaSnapshot();
  for (const part of ['slider "Divider between source and edit"', 'img "Source"', 'img "Edit"', 'textbox "Instruction"', 'radiogroup "View"', 'group "Examples"',
    'slider "Strength', 'spinbutton "Steps', 'switch "Keep the memory', 'button "Record"']) assert.ok(tree.includes(part), `${part} in\n${tree}`);
  await accessible(page);
  await page.emulateMedia({ colorScheme: "dark" });
  await page.click("#ledger-panel summary");
  await accessible(page);
  await shot(page, "15_dark");
  await page.emulateMedia({ colorScheme: "light" });
  await page.click("#stop");
  await phase(page, "idle");
});

await step("shows a screen or a window", async () => {
  await page.evaluate(() => {
    const share = navigator.mediaDevices.getDisplayMedia.bind(navigator.mediaDevices);
    navigator.mediaDevices.getDisplayMedia = async (wanted) => (window.shared = await share(wanted));
  });
  await page.getByRole("button", { name: "Screen" }).click();
  await phase(page, "live");
  await frames(page);
  await shot(page, "16_screen");
  // As when the person stops sharing in the browser's own controls.
  await page.evaluate(() => window.shared.getTracks()[0].dispatchEvent(new Event("ended")));
  await phase(page, "idle");
});

await step("plays a video file, and says when it cannot", async () => {
  await page.setInputFiles("#file", { name: "no.mp4", mimeType: "video/mp4", buffer: Buffer.from("not a video") });
  await phase(page, "refused");
  assert.match(await page.textContent("#message-title"), /cannot play/);
  await page.getByRole("button", { name: "Back" }).click();
  await page.setInputFiles("#file", clip);
  await phase(page, "live");
  await frames(page);
  await page.click("#stop");
  await phase(page, "idle");
});

await step("says why there is no camera", async () => {
  const denied = await open(address);
  await denied.evaluate(() => { navigator.mediaDevices.getUserMedia = () => Promise.reject(new DOMException("no", "NotAllowedError")); });
  await denied.getByRole("button", { name: "Camera" }).click();
  await phase(denied, "refused");
  assert.match(await denied.textContent("#message-title"), /not allowed to use the camera/);
  await shot(denied, "17_no_camera");
  await accessible(denied);
  await close(denied);
});

await step("refuses a source that carries the mark", async () => {
  const marked = join(out, "marked.mp4");
  execFileSync("ffmpeg", ["-v", "error", "-y", "-i", clip, "-frames:v", "24", "-vf", "scale=256:144", join(out, "short.y4m")]);
  execFileSync(rivulet, ["edit", join(out, "short.y4m"), "-p", "leave it alone", "-o", marked, "--size", "256x144"]);
  await page.setInputFiles("#file", marked);
  await phase(page, "live");
  await page.waitForSelector("#banner:not([hidden])");
  assert.match(await page.textContent("#banner"), /already carries our mark/);
  await shot(page, "18_marked_source");
  await page.click("#stop");
  await phase(page, "idle");
});

await close(page);
await again.stop();

await step("falls back to the source and says so, to viewers too", async () => {
  const file = join(out, "strict.json");
  writeFileSync(file, JSON.stringify({ monitor: { drift: 0.001, hold_seconds: 0.5 } }));
  const strict = await serve({ more: ["--safeguards", file] });
  const editor = await open(strict.address);
  await editor.getByRole("button", { name: "Camera" }).click();
  await phase(editor, "live");
  await editor.waitForSelector("#banner:not([hidden])");
  assert.match(await editor.textContent("#banner"), /lost the source's structure; the source is shown instead/);
  await until("the caption", async () => (await editor.textContent("#edit-caption")) === "Edit withheld");
  await until("the source", async () => Math.abs((await look(editor, "source")).light - (await look(editor, "edit")).light) < 3);
  await shot(editor, "19_fallback");
  await accessible(editor);
  const late = await open(strict.address);
  await late.getByRole("button", { name: "Watch someone edit instead" }).click();
  await until("the caption for a viewer", async () => (await late.textContent("#edit-caption")) === "Edit withheld");
  await close(late);
  await editor.click("#adjust summary");
  await editor.fill("#strength", "0");
  await editor.waitForSelector("#banner", { state: "hidden" });
  await until("the caption again", async () => (await editor.textContent("#edit-caption")) === "Edit");
  await close(editor);
  await strict.stop();
});

await step("asks for the token where the address is not this machine's alone", async () => {
  const guarded = await serve({ more: ["--bind", "0.0.0.0"] });
  const { port, hash } = new URL(guarded.address);
  assert.match(hash, /^#token=[0-9a-f]{32}$/);
  const bare = await open(`http://127.0.0.1:${port}/`);
  await bare.getByRole("button", { name: "Sample clip" }).click();
  await bare.waitForSelector("#token:focus");
  await shot(bare, "20_token");
  await accessible(bare);
  await bare.fill("#token", "0123456789abcdef0123456789abcdef");
  await bare.press("#token", "Enter");
  await until("the answer to a wrong token", async () => /not the right one/.test(await bare.textContent("#message-text")));
  await bare.fill("#token", hash.slice("#token=".length));
  await bare.press("#token", "Enter");
  await phase(bare, "live");
  await frames(bare);
  await close(bare);
  const told = await open(`http://127.0.0.1:${port}/${hash}`);
  await told.getByRole("button", { name: "Sample clip" }).click();
  await phase(told, "live");
  await close(told);
  await guarded.stop();
});

await finish();
