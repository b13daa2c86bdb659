// What the browser tests share: servers, one browser whose camera and screen are made up, and waiting.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { mkdirSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import { chromium } from "playwright-core";

export const [rivulet, out] = process.argv.slice(2);
export const clip = new URL("../../apps/demo/city.mp4", import.meta.url).pathname;
const patience = 25000;
const limit = setTimeout(() => { console.error("the browser tests took too long"); process.exit(1); }, 540000);
process.on("uncaughtException", (error) => { console.error(error); process.exit(1); });
mkdirSync(out, { recursive: true });

const children = new Set();
process.on("exit", () => { for (const child of children) child.kill("SIGKILL"); });

// stop() waits for the end.
export async function serve({ port = 0, more = [] } = {}) {
  const child = spawn(rivulet, ["serve", "--port", String(port), ...more], { stdio: ["ignore", "pipe", "inherit"] });
  children.add(child);
  const address = await new Promise((resolve, reject) => {
    child.stdout.once("data", (text) => resolve(String(text).trim()));
    child.once("exit", (code) => reject(new Error(`rivulet serve ended with ${code}`)));
  });
  const stop = (signal = "SIGTERM") => new Promise((resolve) => { child.once("exit", resolve); child.kill(signal); });
  return { address, stop };
}

// The camera is the bundled clip. Sound, sandbox and real screens are not to be had where tests run.
export const browser = await chromium.launch({
  executablePath: "/usr/bin/chromium",
  args: ["--no-sandbox", "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream=display-media-type=window",
    `--use-file-for-fake-video-capture=${join(out, "camera.y4m")}`, "--mute-audio"],
});

export async function open(address, options = {}) {
  const context = await browser.newContext({ viewport: { width: 1180, height: 900 }, acceptDownloads: true, colorScheme: "light", ...options });
  const page = await context.newPage();
  page.setDefaultTimeout(patience);
  page.problems = [];
  page.elsewhere = [];  // what was asked of anyone but the server
  page.on("pageerror", (error) => page.problems.push(String(error)));
  page.on("console", (m) => { if (m.type() === "error" && !/WebSocket connection/.test(m.text())) page.problems.push(m.text()); });
  page.on("request", (r) => { if (!r.url().startsWith(new URL(address).origin) && !/^(blob|data):/.test(r.url())) page.elsewhere.push(r.url()); });
  await page.goto(address);
  return page;
}

export async function close(page) {
  assert.deepEqual(page.problems, []);
  assert.deepEqual(page.elsewhere, []);
  await page.context().close();
}

export const shot = (page, name) => page.screenshot({ path: join(out, `${name}.png`), fullPage: true });
export const phase = (page, name) => page.waitForSelector(`body[data-phase="${name}"]`);

// Mean brightness, mean distance from grey, and a digest of a canvas.
export const look = (page, id) => page.evaluate((id) => {
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

export async function until(what, test, limit = patience) {
  const end = Date.now() + limit;
  while (Date.now() < end) {
    if (await test()) return;
    await new Promise((resolve) => setTimeout(resolve, 200));
  }
  assert.fail(`${what} did not happen in ${limit / 1000} s`);
}

export async function frames(page) {
  await until("a first frame", async () => (await look(page, "edit")).light > 1);
  const first = (await look(page, "edit")).hash;
  await until("another frame", async () => (await look(page, "edit")).hash !== first);
}

export async function say(page, text) {
  await page.fill("#instruction", text);
  await page.press("#instruction", "Enter");
}

// What axe-core finds wrong: names, roles, contrast, order, as WCAG 2.2 AA has them.
const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
export async function accessible(page) {
  await page.evaluate(axe);
  const { violations } = await page.evaluate(() => window.axe.run(document, { resultTypes: ["violations"] }));
  assert.deepEqual(violations.map((v) => `${v.id}: ${v.nodes.map((n) => `${n.html} ${n.any.map((a) => a.message)}`).join(" | ")}`), []);
}

let passed = 0;
export async function step(name, run) {
  const began = Date.now();
  await run();
  console.log(`ok ${++passed} ${name} (${((Date.now() - began) / 1000).toFixed(1)} s)`);
}

export async function finish() {
  await browser.close();
  clearTimeout(limit);
  console.log(`${passed} passed, 0 failed`);
}
