// The list of rows: filters, pages, keys. The address contains the current view, so that it can be saved and shared.

import { SOURCES, ask, h, number, plural } from "/static/dom.js";
import { open, press } from "/static/row.js";
import { start as startComparison } from "/static/compare.js";
import { start as startProgress } from "/static/watch.js";

const SIZE = 50;
const FACETS = [
  ["stage", "Stage"], ["state", "Outcome"], ["reason", "Reason"], ["mark", "Mark"], ["principle", "Cited principle"],
  ["type", "Question type"], ["source", "Source"], ["split", "Split"], ["model", "Model"],
];
const MAX_VALUES = 8; // values of a filter that are shown before it is unfolded
const SPLITS = { train: "trained on", heldout: "held out" };
const MARKS = { drop: "excluded", edit: "edited" };

const byId = (id) => document.getElementById(id);
export let about = {};
let rows = [];
let first = 0; // the rank of the page's first row
let total = 0;
let filter = {};
let chosen = null; // the open row: {stage, id}
let pending = null; // the AbortController of the request for rows
const unfolded = new Set();
const ready = ask("run").then((value) => { about = value; });

export const title = (stage) => about.titles[stage] ?? stage;
// Compare two stages: pipeline order, then other measurements (probes, benchmarks) by name.
export const inOrder = (a, b) => {
  const order = Object.keys(about.titles);
  const place = (stage) => (stage in about.titles ? order.indexOf(stage) : order.length);
  return place(a) - place(b) || a.localeCompare(b);
};
const label = (name, value) => {
  if (name === "stage") return title(value);
  if (name === "principle") return `${value} ${about.principles[value] ?? ""}`;
  if (name === "source") return SOURCES[value] ?? value;
  if (name === "split") return SPLITS[value] ?? value;
  if (name === "mark") return MARKS[value] ?? value;
  return value;
};

// -- the address ----------------------------------------------------------------------------------------------------

function readAddress() {
  const query = new URLSearchParams(location.search);
  filter = {};
  for (const name of [...FACETS.map(([n]) => n), "words"]) if (query.has(name)) filter[name] = query.get(name);
  byId("words").value = filter.words ?? "";
  const [stage, ...id] = (query.get("row") ?? "").split(".");
  chosen = stage ? { stage, id: id.join(".") } : null;
  return query.get("tab") ?? "rows";
}

function writeAddress(push = false) {
  const query = new URLSearchParams(filter);
  if (chosen) query.set("row", `${chosen.stage}.${chosen.id}`);
  const tab = document.querySelector("#tabs [aria-pressed=true]").dataset.tab;
  if (tab !== "rows") query.set("tab", tab);
  history[push ? "pushState" : "replaceState"](null, "", query.size ? `?${query}` : location.pathname);
}

// -- rows -----------------------------------------------------------------------------------------------------------

async function load(where = {}, rank = 0) {
  pending?.abort();
  pending = new AbortController();
  const { signal } = pending;
  try {
    const counting = ask("counts", filter, signal);
    counting.catch(() => {}); // awaited below
    const page = await ask("rows", { ...filter, ...where, limit: SIZE }, signal);
    await ready;
    rows = page.rows;
    byId("list").replaceChildren(...rows.map(item));
    performance.mark("rows");
    markChosen();
    const counts = await counting;
    total = counts.total;
    first = rank < 0 ? Math.max(0, total - rows.length) : rank;
    showPlace();
    showFacets(counts.by);
    return true;
  } catch (error) {
    if (error.name !== "AbortError") byId("matches").replaceChildren(String(error.message));
    return false;
  }
}

function go(where) {
  const at = (row) => `${row.place}.${row.n}`;
  if (where === "first") return load();
  if (where === "last") return load({ back: 1 }, -1);
  if (where === "next" && first + rows.length < total) return load({ at: at(rows.at(-1)) }, first + rows.length);
  if (where === "back" && first > 0) return load({ at: at(rows[0]), back: 1 }, Math.max(0, first - SIZE));
  return Promise.resolve(false);
}

function showPlace() {
  byId("matches").replaceChildren(total ? `${number(first + 1)} – ${number(first + rows.length)} of ${plural(total, "row")}` : "No rows match.");
  for (const button of byId("pages").children) {
    button.disabled = ["first", "back"].includes(button.dataset.go) ? first === 0 : first + rows.length >= total;
  }
  byId("pages").hidden = total <= rows.length;
}

function item(row) {
  const facts = [title(row.stage), row.model, row.type, row.principles.length ? `cites ${row.principles.join(", ")}` : ""];
  const outcome = row.mark ? h("b", {}, MARKS[row.mark]) : row.state === "kept" ? null : h("b", {}, row.state === "failed" ? `failed: ${row.reason}` : row.reason);
  return h("li", {}, h("button", { class: `item ${row.mark === "drop" ? "dropped" : row.state}`, "data-row": `${row.stage}.${row.id}`, onclick: () => choose(row, true) },
    h("span", { class: "message" }, row.message || "(empty)"),
    row.answer && h("span", { class: "gist" }, row.answer),
    h("span", { class: "tag" }, facts.filter(Boolean).join(" · "), outcome && " · ", outcome)));
}

function markChosen() {
  for (const button of byId("list").querySelectorAll("button")) {
    const isChosen = chosen && button.dataset.row === `${chosen.stage}.${chosen.id}`;
    if (isChosen) button.setAttribute("aria-current", "true");
    else button.removeAttribute("aria-current");
  }
}

export async function choose(row, push = false) {
  chosen = row ? { stage: row.stage, id: row.id } : null;
  document.body.classList.toggle("open", Boolean(chosen));
  markChosen();
  writeAddress(push);
  await open(chosen);
}

let walking = Promise.resolve(); // handles keys one after another

async function step(delta) {
  let at = rows.findIndex((row) => chosen && row.stage === chosen.stage && row.id === chosen.id) + delta;
  if (!chosen) at = delta > 0 ? 0 : -1;
  if (at >= rows.length) { if (!(await go("next"))) return; at = 0; }
  if (at < 0) { if (!(await go("back"))) return; at = rows.length - 1; }
  if (!rows[at]) return;
  document.querySelector(`#list li:nth-child(${at + 1}) button`)?.scrollIntoView({ block: "nearest" });
  await choose(rows[at]);
}

// -- filters --------------------------------------------------------------------------------------------------------

export function setFilter(name, value) {
  if (value === undefined || filter[name] === String(value)) delete filter[name];
  else filter[name] = String(value);
  writeAddress(true);
  return load();
}

function showFacets(counts) {
  byId("facets").replaceChildren(...FACETS.map(([name, text]) => {
    let values = (counts[name] ?? []).filter(([value]) => value !== "");
    if (name === "stage") values.sort(([a], [b]) => inOrder(a, b));
    if (name === "principle") values.sort(([a], [b]) => a - b);
    if (values.length < 2 && !(name in filter) && !["reason", "mark"].includes(name)) return null;
    if (!values.length && !(name in filter)) return null;
    const hiddenValues = values.length - MAX_VALUES;
    if (hiddenValues > 1 && !unfolded.has(name) && !["stage", "state"].includes(name)) {
      values = values.filter(([value], at) => at < MAX_VALUES || filter[name] === String(value));
    }
    return h("div", { class: "facet" }, h("h2", {}, text), h("ul", {}, values.map(([value, count]) => h("li", {},
      h("button", { "aria-pressed": String(filter[name] === String(value)), onclick: () => setFilter(name, value) },
        h("span", {}, label(name, value)), h("span", { class: "n" }, number(count)))))),
    hiddenValues > 1 && !["stage", "state"].includes(name) && h("button", { class: "quiet", onclick: () => {
      if (!unfolded.delete(name)) unfolded.add(name);
      showFacets(counts);
    } }, unfolded.has(name) ? "fewer" : `${hiddenValues} more`));
  }).filter(Boolean));
  byId("chosen").replaceChildren(...FACETS.filter(([name]) => name in filter).map(([name, text]) =>
    h("button", { title: `Remove the filter: ${text}`, onclick: () => setFilter(name) }, label(name, filter[name]), " ×")));
}

// -- tabs, keys, start ------------------------------------------------------------------------------------------------

export function show(tab, push = true) {
  for (const button of byId("tabs").children) button.setAttribute("aria-pressed", String(button.dataset.tab === tab));
  for (const name of ["rows", "watch", "compare"]) byId(name).hidden = name !== tab;
  if (push) writeAddress(true);
}

function keys(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = event.target.closest("input, textarea, select");
  if (event.key === "Escape") {
    if (document.body.classList.contains("filters")) return fold();
    if (typing) return event.target.blur();
    return chosen ? choose(null) : undefined;
  }
  if (typing || byId("rows").hidden) return;
  if (event.key === "/") { event.preventDefault(); byId("words").focus(); byId("words").select(); }
  else if (event.key === "j") walking = walking.then(() => step(1));
  else if (event.key === "k") walking = walking.then(() => step(-1));
  else if (chosen && press(event.key)) event.preventDefault();
}

function fold() {
  const isOpen = document.body.classList.toggle("filters");
  byId("filter").setAttribute("aria-expanded", String(isOpen));
  byId("filter").replaceChildren(isOpen ? "Show rows" : "Filter");
}

// Reload after rows have changed. Only the first page gets new rows; others just update their counts.
export async function reloadRows() {
  if (first > 0) {
    const counts = await ask("counts", filter);
    total = counts.total;
    showFacets(counts.by);
    showPlace();
  } else await load();
}

async function start() {
  show(readAddress(), false);
  document.body.classList.toggle("open", Boolean(chosen));
  const first = load();
  await ready;
  document.title = `${about.name} · selfalign view`;
  byId("name").replaceChildren(about.name);
  await Promise.all([first, open(chosen)]);
  await Promise.all([startProgress(), startComparison()]);
}

let waiting;
byId("words").addEventListener("input", () => {
  clearTimeout(waiting);
  waiting = setTimeout(() => {
    const words = byId("words").value;
    if (words.trim()) filter.words = words;
    else delete filter.words;
    writeAddress();
    load();
  }, 180);
});
byId("search").addEventListener("submit", (event) => { event.preventDefault(); byId("words").blur(); });
byId("filter").addEventListener("click", fold);
byId("pages").addEventListener("click", async (event) => {
  if (event.target.dataset.go && (await go(event.target.dataset.go))) byId("matches").scrollIntoView({ block: "nearest" });
});
byId("tabs").addEventListener("click", (event) => event.target.dataset.tab && show(event.target.dataset.tab));
document.addEventListener("keydown", keys);
addEventListener("popstate", () => {
  show(readAddress(), false);
  document.body.classList.toggle("open", Boolean(chosen));
  load();
  open(chosen);
});
start();
