// The run's progress, polled every two seconds while the page is visible and the run is active.

import { ask, h, number, plural, time } from "/static/dom.js";
import { reloadRows, setFilter, show } from "/static/view.js";

const byId = (id) => document.getElementById(id);
let generation = null;

export async function start() {
  await poll();
}

async function poll() {
  let wait = 15_000;
  if (!document.hidden) {
    try {
      const now = await ask("progress");
      if (now.state === "running") wait = 2000;
      if (now.reading.busy) wait = 700;
      state(now);
      byId("watch").replaceChildren(...page(now));
      const changed = generation !== null && generation !== now.generation;
      generation = now.generation;
      if (changed) await reloadRows();
    } catch (error) {
      byId("state").replaceChildren(error instanceof TypeError ? "the viewer has stopped" : error.message);
    }
  }
  clearTimeout(next);
  next = setTimeout(poll, wait);
}

let next;
document.addEventListener("visibilitychange", () => {
  if (document.hidden) return;
  clearTimeout(next);
  poll();
});

const current = (now) => now.state === "running" && now.stages.findLast((stage) => !stage.finished);

function state(now) {
  const words = [now.state];
  const stage = current(now);
  if (stage) words.push(`${stage.title}, ${count(stage)}`);
  if (now.error) words.push(now.error);
  if (now.reading.busy && now.reading.total > 2000) words.push(`reading ${number(now.reading.done)} of ${number(now.reading.total)}`);
  byId("state").replaceChildren(...(stage && goal(stage) ? [bar(share(stage))] : []), words.join(" · "));
}

const goal = (stage) => (stage.finished ? stage.rows_in : stage.goal ?? stage.rows_in);
const reached = (stage) => (stage.finished || stage.goal === null ? stage.decided : stage.kept);
const share = (stage) => (goal(stage) ? Math.min(1, reached(stage) / goal(stage)) : 0);
const count = (stage) => !goal(stage) ? "running" : `${number(reached(stage))} of ${number(goal(stage))}`;

function bar(part, lost = 0) {
  const element = h("span", { class: "bar" }, h("span", {}), h("span", {}));
  element.children[0].style.width = `${100 * part}%`;
  element.children[1].style.width = `${100 * lost}%`;
  return element;
}

function page(now) {
  const most = Math.max(1, ...now.funnel.filter((step) => step.rows_in).map((step) => step.kept + step.lost));
  return [
    h("h2", {}, "From seeds to examples"),
    h("div", { class: "funnel" }, now.funnel.map((step) => h("div", { class: step.human ? "human" : "" },
      h("span", {}, step.title), bar(step.kept / most, step.lost / most),
      h("span", { class: "n" }, step.human ? `${number(step.kept)} human-written` : `${number(step.kept)} of ${number(step.rows_in)}`)))),
    h("h2", {}, "Ledgers"),
    h("div", { class: "ledgers" }, now.stages.map((stage) => ledger(stage, now))),
  ];
}

function ledger(stage, now) {
  const active = stage === current(now);
  const lost = [...Object.entries(stage.dropped).map(([reason, n]) => ["dropped", reason, n]), ...Object.entries(stage.failed).map(([reason, n]) => ["failed", reason, n])];
  const facts = [];
  if (active) facts.push(goal(stage) ? `${count(stage)} so far` : "adds its rows at the end");
  if (active && stage.open) facts.push(`${plural(stage.open, "request")} running or waiting`);
  if (active && left(stage)) facts.push(`about ${time(left(stage))} left`);
  if (!active && stage.answered) facts.push(plural(stage.answered, "request"));
  if (stage.finished) facts.push(time(stage.seconds));
  if (stage.busy) facts.push(`engine busy ${Math.round(100 * stage.busy)} %`);
  if (stage.notes.steps) facts.push(`${plural(stage.notes.steps, "step")}, loss ${stage.notes.loss_first} to ${stage.notes.loss_last}`);
  return h("section", { class: active ? "ledger active" : "ledger" },
    h("h3", {}, h("button", { class: "quiet", onclick: () => pick({ stage: stage.stage }) }, stage.title), " ",
      h("span", {}, stage.finished ? `${number(stage.kept)} of ${number(stage.rows_in)} kept` : active ? "running" : stage.decided ? "not finished" : "")),
    active && goal(stage) > 0 && bar(share(stage)),
    h("p", { class: "soft small" }, facts.join(" · ")),
    lost.length > 0 && h("p", { class: "reasons" }, lost.map(([state, reason, n]) => h("button", { class: "quiet", onclick: () => pick({ stage: stage.stage, state, reason }) },
      state === "failed" ? `failed: ${reason} ` : `${reason} `, h("b", {}, number(n))))));
}

function left(stage) {
  if (!stage.generation_seconds || !stage.answered || stage.goal !== null || !stage.rows_in) return 0;
  return ((stage.rows_in - stage.answered) * stage.generation_seconds) / stage.answered;
}

async function pick(filter) {
  show("rows");
  for (const name of ["state", "reason", "principle", "type", "source", "split", "model", "mark"]) if (!(name in filter)) await setFilter(name, undefined);
  for (const [name, value] of Object.entries(filter)) {
    if (new URLSearchParams(location.search).get(name) !== value) await setFilter(name, value);
  }
}
