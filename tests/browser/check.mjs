// node check.mjs SCREENSHOTS PAGE…: see run.sh.
import { chromium } from "playwright-core";
import { readFileSync, statSync } from "node:fs";
import { basename, dirname, join, resolve } from "node:path";
import { createRequire } from "node:module";
import assert from "node:assert/strict";

const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const [shots, ...pages] = process.argv.slice(2);
const looks = [
  { name: "light", colorScheme: "light", viewport: { width: 1200, height: 900 } },
  { name: "dark", colorScheme: "dark", viewport: { width: 1200, height: 900 } },
  { name: "narrow", colorScheme: "light", viewport: { width: 390, height: 800 } },
];

const browser = await chromium.launch({ executablePath: process.env.CHROMIUM, args: ["--no-sandbox"] });
for (const file of pages) {
  assert.ok(statSync(file).size < 3 << 20, `${file} is larger than 3 MiB`);
  const stem = `${basename(dirname(resolve(file)))}-${basename(file, ".html")}`;
  for (const { name, ...look } of looks) {
    const context = await browser.newContext({ ...look, acceptDownloads: true });
    const page = await context.newPage();
    const problems = [];
    page.on("console", (message) => ["error", "warning"].includes(message.type()) && problems.push(message.text()));
    page.on("pageerror", (error) => problems.push(String(error)));
    page.on("request", (request) => /^https?:/.test(request.url()) && problems.push(`asks for ${request.url()}`));
    await page.goto("file://" + resolve(file));
    await page.screenshot({ path: join(shots, `${stem}-${name}.png`), fullPage: true });
    const wide = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
    assert.ok(wide <= 0, `${file}, ${name}: the page is ${wide} pixels too wide`);

    await choices(page);
    await sorting(page);
    await exports(page);
    // Everything that can be opened is looked at as well.
    await page.evaluate(() => document.querySelectorAll("details").forEach((d) => { d.open = true; }));
    await page.evaluate(axe);
    const { violations } = await page.evaluate(() => globalThis.axe.run());
    const serious = violations.filter((v) => ["serious", "critical"].includes(v.impact));
    const said = serious.map((v) => `${v.id}: ${v.help}\n  ${v.nodes.slice(0, 3).map((n) => `${n.target} ${n.failureSummary}`).join("\n  ")}`);
    assert.deepEqual(said, [], `${file}, ${name}`);
    assert.deepEqual(problems, [], `${file}, ${name}`);
    await context.close();
    console.log(`${file}, ${name}: fine`);
  }
}
await browser.close();

// Every choice shows its panel and hides the others; the heatmap changes with codec and text.
async function choices(page) {
  for (const select of await page.$$("select[data-group]")) {
    const group = await select.getAttribute("data-group");
    for (const value of await select.$$eval("option", (options) => options.map((o) => o.value))) {
      await select.selectOption(value);
      const shown = await page.$$eval(`[data-panel="${group}"]`, (all) => all.filter((p) => !p.hidden).map((p) => p.dataset.key));
      assert.ok(shown.length > 0 && shown.every((key) => key === value), `${group}: ${value} shows ${shown}`);
    }
  }
  const codec = await page.$("#heat-codec");
  if (!codec) return;
  const cells = () => page.$$eval("#heat td", (all) => all.map((c) => c.title + c.style.getPropertyValue("--t")).join());
  for (const select of ["#heat-codec", "#heat-domain"]) {
    const seen = new Set();
    const values = await page.$$eval(`${select} option`, (options) => options.map((o) => o.value));
    for (const value of values) {
      await page.selectOption(select, value);
      seen.add(await cells());
    }
    assert.equal(seen.size, values.length, `${select}: some choices show the same`);
    await page.selectOption(select, values[0]);
  }
}

// The first number column of the first table sorts both ways, by keyboard.
async function sorting(page) {
  const head = page.locator("table.sorts").first().locator("thead th.n button").first();
  if (!(await head.count())) return;
  const column = await head.evaluate((b) => b.parentElement.cellIndex);
  const values = () => page.locator("table.sorts").first().evaluate((t, c) => [...t.tBodies[0].rows].map((r) => r.cells[c].dataset.v).filter((v) => v !== undefined).map(Number), column);
  const sign = { ascending: 1, descending: -1 };
  for (const direction of ["ascending", "descending"]) {
    await head.focus();
    await page.keyboard.press("Enter");
    assert.equal(await head.evaluate((b) => b.parentElement.getAttribute("aria-sort")), direction);
    const got = await values();
    assert.deepEqual(got, [...got].sort((a, b) => sign[direction] * (a - b)), direction);
  }
}

// Every form of the first table, and of the first figure, comes as a file with contents.
async function exports(page) {
  const read = async (button) => {
    const [download] = await Promise.all([page.waitForEvent("download"), button.click()]);
    return [download.suggestedFilename(), readFileSync(await download.path())];
  };
  const expected = { csv: /^target,/, md: /^\| target/, tex: /\\toprule/, svg: /^<svg[^]*<\/svg>$/, png: /PNG/ };
  for (const form of Object.keys(expected)) {
    const button = page.locator(`button[data-form="${form}"]:visible`).first();
    if (!(await button.count())) continue;
    const [name, bytes] = await read(button);
    assert.ok(name.endsWith("." + form), name);
    assert.match(bytes.toString("latin1"), expected[form], name);
    if (form === "svg") assert.ok(!bytes.toString().includes("var("), "colours are not resolved");
  }
}
