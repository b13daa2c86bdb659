// The page in Debian's Chromium, its camera being the bundled clip. One browser, one server after the other;
// every step is an assertion, and pictures of every state are written for a person to look at.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { mkdirSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { chromium } from "playwright-core";

const [rivulet, out] = process.argv.slice(2);
const patience = 25000;
const limit = setTimeout(() => { console.error("the browser tests took too long"); process.exit(1); }, 420000);
process.on("uncaughtException", (error) => { console.error(error); process.exit(1); });
mkdirSync(out, { recursive: true });

function serve(port = 0, extra = []) {
  const child = spawn(rivulet, ["serve", "--port", String(port), ...extra], { stdio: ["ignore", "pipe", "inherit"] });
  children.add(child);
  const address = new Promise((resolve, reject) => {
    child.stdout.once("data", (text) => resolve(String(text).trim()));
    child.once("exit", (code) => reject(new Error(`rivulet serve ended with ${code}`)));
  });
  const stop = (signal = "SIGTERM") => new Promise((resolve) => { child.once("exit", resolve); child.kill(signal); });
  return { address, stop };
}

const children = new Set();
process.on("exit", () => { for (const child of children) child.kill("SIGKILL"); });

const browser = await chromium.launch({
  executablePath: "/usr/bin/chromium",
  args: ["--no-sandbox", "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream",
    `--use-file-for-fake-video-capture=${join(out, "camera.y4m")}`, "--mute-audio"],
});

async function open(address, options = {}) {
  const context = await browser.newContext({ viewport: { width: 1180, height: 900 }, acceptDownloads: true, ...options });
  const page = await context.newPage();
  page.setDefaultTimeout(patience);
  page.problems = [];
  page.on("pageerror", (error) => page.problems.push(String(error)));
  page.on("console", (m) => { if (m.type() === "error" && !/WebSocket connection/.test(m.text())) page.problems.push(m.text()); });
  await page.goto(address);
  return page;
}

const shot = (page, name) => page.screenshot({ path: join(out, `${name}.png`), fullPage: true });
const phase = (page, name) => page.waitForSelector(`body[data-phase="${name}"]`);

// Mean colour, and the mean distance of each pixel from grey, of a canvas.
const look = (page, id) => page.evaluate((id) => {
  const canvas = document.getElementById(id);
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  let sum = 0, light = 0, hash = 0;
  for (let i = 0; i < data.length; i += 4) {
    light += (data[i] + data[i + 1] + data[i + 2]) / 3;
    sum += Math.max(data[i], data[i + 1], data[i + 2]) - Math.min(data[i], data[i + 1], data[i + 2]);
    hash = (hash * 31 + data[i] * 7 + data[i + 1] * 3 + data[i + 2]) | 0;
  }
  return { light: (4 * light) / data.length, colour: (4 * sum) / data.length, hash };
}, id);

async function until(what, test, limit = patience) {
  const end = Date.now() + limit;
  while (Date.now() < end) {
    if (await test()) return;
    await new Promise((resolve) => setTimeout(resolve, 200));
  }
  assert.fail(`${what} did not happen in ${limit / 1000} s`);
}

const steps = [];
const step = async (name, run) => {
  const began = Date.now();
  await run();
  steps.push(name);
  console.log(`ok ${steps.length} ${name} (${((Date.now() - began) / 1000).toFixed(1)} s)`);
};

async function say(page, text) {
  await page.fill("#instruction", text);
  await page.press("#instruction", "Enter");
}

const server = serve();
const address = await server.address;
let port = Number(new URL(address).port);
const page = await open(address);

await step("opens calmly and names its choices", async () => {
  await phase(page, "idle");
  for (const name of ["Camera", "Screen", "Video file", "Sample clip"]) assert.ok(await page.getByRole("button", { name }).isVisible(), name);
  await shot(page, "1_idle");
});

await step("starts the camera and shows edited frames that change", async () => {
  await page.getByRole("button", { name: "Camera" }).click();
  await phase(page, "live");
  await until("a first frame", async () => (await look(page, "edit")).light > 1);
  const first = await look(page, "edit");
  await until("another frame", async () => (await look(page, "edit")).hash !== first.hash);
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
  await shot(second, "8_watching");
  assert.deepEqual(second.problems, []);
  await second.context().close();
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
  await page.getByRole("button", { name: "Close" }).click();
});

await step("shows the ledger", async () => {
  await page.click("#ledger-panel summary");
  await until("glass to glass", async () => /Glass to glass, p99\s*[1-9]/.test(await page.innerText("#ledger")));
  await shot(page, "10_ledger");
});

await step("loses the connection and recovers", async () => {
  await server.stop("SIGKILL");
  await phase(page, "lost");
  await shot(page, "11_lost");
  const again = serve(port);
  await again.address;
  await phase(page, "live");
  {
    const before = await look(page, "edit");
    await until("frames again", async () => (await look(page, "edit")).hash !== before.hash);
  }
  await page.click("#stop");
  await phase(page, "idle");
  page.again = again;
});

await step("dark, and the size of a phone", async () => {
  const phone = await open(address, { viewport: { width: 390, height: 780 }, deviceScaleFactor: 2, isMobile: true, hasTouch: true, colorScheme: "dark" });
  await shot(phone, "12_phone_idle");
  await phone.getByRole("button", { name: "Sample clip" }).click();
  await phase(phone, "live");
  await say(phone, "make it look like sunset");
  await until("the answer", async () => (await phone.textContent("#answer")).startsWith("Now: make it look"));
  await until("a frame", async () => (await look(phone, "edit")).light > 1);
  assert.ok(await phone.evaluate(() => document.documentElement.scrollWidth <= innerWidth), "scrolls sideways");
  await shot(phone, "13_phone_live");
  assert.deepEqual(phone.problems, []);
  await phone.context().close();
});

await step("works by keyboard alone, and every control has a name", async () => {
  await page.reload();
  await phase(page, "idle");
  for (let i = 0; i < 12 && (await page.evaluate(() => document.activeElement?.dataset?.source)) !== "clip"; ++i) await page.keyboard.press("Tab");
  await page.keyboard.press("Enter");
  await phase(page, "live");
  const unnamed = await page.evaluate(() => [...document.querySelectorAll("button, input, canvas, [role]")]
    .filter((e) => e.checkVisibility() && !(e.textContent.trim() || e.ariaLabel || e.labels?.length || e.getAttribute("aria-label") || e.id === "status" || e.id === "answer"))
    .map((e) => e.outerHTML));
  assert.deepEqual(unnamed, []);
});

assert.deepEqual(page.problems, []);
await browser.close();
await page.again.stop();
clearTimeout(limit);
console.log(`${steps.length} passed, 0 failed`);
