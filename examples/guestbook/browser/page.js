// The page in headless Chromium (Debian's), as people use it: without JavaScript, by keyboard, on a phone, with a machine that
// is lost, with two instances at once.
//
//   node page.js APP OUT     APP is the built guestbook; OUT gets guestbook.png and guestbook-phone.png
"use strict";
const assert = require("node:assert/strict");
const { spawn } = require("node:child_process");
const fs = require("node:fs");
const os = require("node:os");
const path = require("node:path");
const readline = require("node:readline");
const { chromium } = require("playwright-core");

const [app, out] = process.argv.slice(2);
const work = fs.mkdtempSync(path.join(os.tmpdir(), "guestbook-page-"));
const running = new Set();

// An instance on a disk of its own; the bucket is everybody's.
async function start(name) {
  const disk = path.join(work, name);
  fs.mkdirSync(disk, { recursive: true });
  fs.mkdirSync(path.join(work, "bucket"), { recursive: true });
  const env = {
    GUESTBOOK_DB: `file:${disk}/guestbook.db?vfs=gcs&durability=commit&lease_ttl=5s`, GUESTBOOK_WAIT: "15s",
    SQLITE_GCS_BUCKET: `file://${work}/bucket`, PORT: "0", GCE_METADATA_HOST: "127.0.0.1:1", K_REVISION: `guestbook-0000${running.size + 1}`,
  };
  const child = spawn(app, { env, stdio: ["ignore", "pipe", "inherit"] });
  running.add(child);
  const lines = readline.createInterface({ input: child.stdout });
  const url = await new Promise((resolve, reject) => {
    lines.on("line", (line) => { const found = /listens on (http:\S+?)"/.exec(line); if (found) resolve(found[1]); });
    child.on("exit", (code) => reject(new Error(`the app ended with ${code}`)));
  });
  const stop = (signal) => new Promise((resolve) => {
    child.removeAllListeners("exit");
    child.on("exit", (code) => { running.delete(child); fs.rmSync(disk, { recursive: true }); resolve(code); });
    child.kill(signal);
  });
  return { url, stop };
}

async function sign(page, name, message) {
  await page.getByLabel("Name").fill(name);
  await page.getByLabel("Message").fill(message);
  await page.getByRole("button", { name: "Sign the book" }).click();
  await page.getByText("Your entry was stored").waitFor();
}

const entries = (page) => page.getByRole("listitem");
const step = (text) => console.log(`page: ${text}`);

// No violation of WCAG 2 A and AA, as far as a program can tell: labels, names, contrast, landmarks.
async function accessible(page, when) {
  await page.addScriptTag({ path: require.resolve("axe-core/axe.min.js") });
  const found = await page.evaluate(() => window.axe.run({ runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"] }));
  assert.ok(found.passes.length > 20, "axe looked at next to nothing");
  const wrong = found.violations.map((v) => `${v.id}: ${v.help}: ${v.nodes.map((n) => n.html).slice(0, 3).join(" | ")}`);
  assert.deepEqual(wrong, [], when);
}

async function main() {
  const browser = await chromium.launch({
    executablePath: process.env.CHROMIUM || "/usr/bin/chromium",
    args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
      "--disable-component-update", "--disable-sync"],
  });
  try {
    let first = await start("first");

    const bare = await browser.newPage({ javaScriptEnabled: false });
    await bare.goto(first.url);
    await sign(bare, "Ada", "Written without JavaScript.");
    assert.equal(await entries(bare).count(), 1);
    await bare.close();
    step("an entry is added and seen without JavaScript");

    const trouble = [];
    const context = await browser.newContext({ viewport: { width: 1120, height: 900 } });
    const page = await context.newPage();
    page.on("console", (line) => line.type() === "error" && trouble.push(line.text()));
    page.on("pageerror", (error) => trouble.push(String(error)));
    await page.goto(first.url);
    await page.keyboard.press("Tab");
    assert.equal(await page.evaluate(() => document.activeElement.textContent), "Skip to the entries");
    const met = [];
    for (let n = 0; n < 12 && !met.includes("name"); n++) {
      await page.keyboard.press("Tab");
      met.push(await page.evaluate(() => document.activeElement.id));
    }
    assert.ok(met.includes("name"), `the keyboard does not reach the form: ${met}`);
    const outlined = await page.evaluate(() => {
      const style = getComputedStyle(document.activeElement);
      return style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2 || style.boxShadow !== "none";
    });
    assert.ok(outlined, "the focus cannot be seen");
    await page.keyboard.type("Grace");
    await page.keyboard.press("Tab");
    await page.keyboard.type("Typed, and sent, by keyboard.");
    await page.keyboard.press("Tab");
    await page.keyboard.press("Enter");
    await page.getByText("Your entry was stored").waitFor();
    assert.equal(await entries(page).count(), 2);
    step("an entry is added by keyboard alone, and the focus can be seen");

    assert.equal(await first.stop("SIGTERM"), 0);
    first = await start("first again");
    await page.goto(first.url);
    assert.equal(await entries(page).count(), 2);
    await page.getByText("Typed, and sent, by keyboard.").waitFor();
    step("it is seen again on an empty disk");

    await sign(page, "Linus", "Written after the machine was lost.");
    await page.locator("#top-role").getByText("Writer").waitFor({ timeout: 10000 });
    const second = await start("second");
    const other = await context.newPage();
    await other.goto(second.url);
    assert.equal(await entries(other).count(), 3);
    await sign(other, "Margaret", "From another instance, <b>at the same time</b>.");
    await other.locator("#top-role").getByText("Writer").waitFor({ timeout: 10000 });
    await page.locator("#top-role").getByText("Writer").waitFor({ state: "detached", timeout: 10000 });
    step("the role goes from one instance to the other, and the open pages show it");

    // The picture shows an instance at work: a few seconds of entries, for the plots.
    for (let n = 1; n <= 5; n++) {
      await sign(other, "Margaret", `Line ${n} of a longer story.`);
      await other.waitForTimeout(600);
    }
    await other.screenshot({ path: path.join(out, "guestbook.png"), fullPage: true });
    assert.equal(await other.locator("b", { hasText: "at the same time" }).count(), 0, "an entry is taken for HTML");

    for (const colorScheme of ["light", "dark"]) {
      for (const [kind, viewport] of [["desk", { width: 1120, height: 900 }], ["phone", { width: 360, height: 740 }]]) {
        // The page's own policy admits no script but its own, and so not the one that looks at it.
        const looked = await browser.newContext({ viewport, colorScheme, bypassCSP: true });
        const view = await looked.newPage();
        await view.goto(second.url);
        const { scrollWidth, clientWidth } = await view.evaluate(() => {
          const { scrollWidth, clientWidth } = document.documentElement;
          return { scrollWidth, clientWidth };
        });
        assert.ok(scrollWidth <= clientWidth, `${kind}: ${scrollWidth} wide on a screen of ${clientWidth}`);
        await accessible(view, `${colorScheme}, ${kind}`);
        if (kind === "phone" && colorScheme === "light") await view.screenshot({ path: path.join(out, "guestbook-phone.png") });
        await looked.close();
      }
    }
    step("readable at the width of a phone; labels, names and contrast in order, light and dark");
    assert.deepEqual(trouble, [], "errors in the console");
    assert.equal(await second.stop("SIGTERM"), 0);
    assert.equal(await first.stop("SIGTERM"), 0);
  } finally {
    await browser.close();
  }
}

main().then(() => 0, (error) => { console.error(error); return 1; }).then((code) => {
  for (const child of running) child.kill("SIGKILL");
  fs.rmSync(work, { recursive: true, force: true });
  process.exit(code);
});
