// Compare two runs: their counts, and the rows that differ.

import { ask, h, number } from "/static/dom.js";
import { about, inOrder, title } from "/static/view.js";

const byId = (id) => document.getElementById(id);
const SIZE = 30;
let selected = { stage: null, which: "differ" };

export async function start() {
  if (!about.other) return;
  document.querySelector("[data-tab=compare]").hidden = false;
  byId("compare").replaceChildren(h("h2", {}, about.name, h("span", { class: "soft" }, " compared with "), about.other), h("div", { id: "sides" }, h("p", { class: "soft" }, "…")), h("div", { id: "pairs" }));
  try {
    const comparison = await ask("compare");
    byId("sides").replaceChildren(table(comparison));
    const first = comparison.rows.find((row) => row.stage === "align" && row.differ) ?? comparison.rows.find((row) => row.differ);
    if (first) await pick(first.stage, "differ");
    else byId("pairs").replaceChildren(h("p", { class: "soft" }, "No rows differ."));
  } catch (error) { byId("sides").replaceChildren(h("p", { class: "warn" }, String(error.message))); }
}

function table(comparison) {
  const rows = comparison.rows.toSorted((a, b) => inOrder(a.stage, b.stage));
  const side = (stages, stage) => { const ledger = stages.find((s) => s.stage === stage); return ledger ? `${number(ledger.kept)} of ${number(ledger.rows_in)}` : "–"; };
  const cell = (row, which) => h("td", { class: "n" }, row[which] ? h("button", { class: "quiet", onclick: () => pick(row.stage, which) }, number(row[which])) : "0");
  return h("div", { class: "scroll" }, h("table", {},
    h("thead", {}, h("tr", {}, h("th", {}, "kept"), ...[about.name, about.other, "equal", "different", "only here", "only there"].map((name) => h("th", { class: "n" }, name)))),
    h("tbody", {}, rows.map((row) => h("tr", {}, h("td", {}, title(row.stage)), h("td", { class: "n" }, side(comparison.here, row.stage)), h("td", { class: "n" }, side(comparison.there, row.stage)),
      h("td", { class: "n" }, number(row.equal)), cell(row, "differ"), cell(row, "here"), cell(row, "there"))))));
}

async function pick(stage, which, at = undefined) {
  selected = { stage, which };
  const { rows } = await ask("differences", { stage, which, at, limit: SIZE });
  if (selected.stage !== stage || selected.which !== which) return;
  const words = { differ: "rows that differ", here: `rows only in ${about.name}`, there: `rows only in ${about.other}` }[which];
  const moreButton = rows.length === SIZE && h("button", { onclick: async (event) => { event.target.remove(); await pick(stage, which, `${rows.at(-1).place}.${rows.at(-1).n}`); } }, "More");
  const items = rows.map(pair);
  if (at) byId("pairs").append(...items, ...(moreButton ? [moreButton] : []));
  else byId("pairs").replaceChildren(h("h3", {}, `${title(stage)}: ${words}`), ...items, ...(moreButton ? [moreButton] : []));
}

function pair(row) {
  const side = row.here ?? row.there;
  return h("section", { class: "step" }, h("p", { class: "pre message" }, side.message || "(empty)"),
    h("div", { class: "models" }, [[about.name, row.here], [about.other, row.there]].filter(([, side]) => side).map(([name, side]) => h("div", {},
      h("b", {}, name), side.state !== "kept" && h("span", { class: "outcome lost" }, `${side.state}: ${side.reason}`),
      side.principles.length > 0 && h("span", { class: "outcome" }, `cites ${side.principles.join(", ")}`),
      side.thoughts && h("p", { class: "pre thoughts" }, side.thoughts), h("p", { class: "pre" }, side.answer)))));
}
