// Two runs side by side: their counts, and the rows about the same prompt that differ.

import { ask, h, number } from "/static/dom.js";
import { about, inOrder, title } from "/static/view.js";

const by = (id) => document.getElementById(id);
const SIZE = 30;
let shown = { stage: null, which: "differ" };

export async function begin() {
  if (!about.other) return;
  document.querySelector("[data-tab=compare]").hidden = false;
  by("compare").replaceChildren(h("h2", {}, about.name, h("span", { class: "soft" }, " compared with "), about.other), h("div", { id: "sides" }, h("p", { class: "soft" }, "…")), h("div", { id: "pairs" }));
  try {
    const found = await ask("compare");
    by("sides").replaceChildren(table(found));
    const first = found.rows.find((row) => row.stage === "align" && row.differ) ?? found.rows.find((row) => row.differ);
    if (first) await pick(first.stage, "differ");
    else by("pairs").replaceChildren(h("p", { class: "soft" }, "No rows differ."));
  } catch (error) { by("sides").replaceChildren(h("p", { class: "warn" }, String(error.message))); }
}

function table(found) {
  const rows = found.rows.toSorted((a, b) => inOrder(a.stage, b.stage));
  const side = (stages, stage) => { const ledger = stages.find((s) => s.stage === stage); return ledger ? `${number(ledger.kept)} of ${number(ledger.rows_in)}` : "–"; };
  const cell = (row, which) => h("td", { class: "n" }, row[which] ? h("button", { class: "quiet", onclick: () => pick(row.stage, which) }, number(row[which])) : "0");
  return h("div", { class: "scroll" }, h("table", {},
    h("thead", {}, h("tr", {}, h("th", {}, "kept"), ...[about.name, about.other, "equal", "different", "only here", "only there"].map((name) => h("th", { class: "n" }, name)))),
    h("tbody", {}, rows.map((row) => h("tr", {}, h("td", {}, title(row.stage)), h("td", { class: "n" }, side(found.here, row.stage)), h("td", { class: "n" }, side(found.there, row.stage)),
      h("td", { class: "n" }, number(row.equal)), cell(row, "differ"), cell(row, "here"), cell(row, "there"))))));
}

async function pick(stage, which, at = undefined) {
  shown = { stage, which };
  const { rows } = await ask("differences", { stage, which, at, limit: SIZE });
  if (shown.stage !== stage || shown.which !== which) return;
  const words = { differ: "rows that differ", here: `rows only in ${about.name}`, there: `rows only in ${about.other}` }[which];
  const more = rows.length === SIZE && h("button", { onclick: async (event) => { event.target.remove(); await pick(stage, which, `${rows.at(-1).place}.${rows.at(-1).n}`); } }, "More");
  const items = rows.map(pair);
  if (at) by("pairs").append(...items, ...(more ? [more] : []));
  else by("pairs").replaceChildren(h("h3", {}, `${title(stage)}: ${words}`), ...items, ...(more ? [more] : []));
}

function pair(row) {
  const side = row.here ?? row.there;
  return h("section", { class: "step" }, h("p", { class: "pre message" }, side.message || "(empty)"),
    h("div", { class: "models" }, [[about.name, row.here], [about.other, row.there]].filter(([, side]) => side).map(([name, side]) => h("div", {},
      h("b", {}, name), side.state !== "kept" && h("span", { class: "outcome lost" }, `${side.state}: ${side.reason}`),
      side.principles.length > 0 && h("span", { class: "outcome" }, `cites ${side.principles.join(", ")}`),
      side.thoughts && h("p", { class: "pre thoughts" }, side.thoughts), h("p", { class: "pre" }, side.answer)))));
}
