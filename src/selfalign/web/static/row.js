// One row: its way through the stages, the exact prompt, the tokens and what of them is learnt.

import { SOURCES, ask, h, plural, tell } from "/static/dom.js";
import { about, again, choose, narrow, title } from "/static/view.js";

const by = (id) => document.getElementById(id);
let shown = null; // the row as the server gave it
let asking = null;

export async function open(row) {
  asking?.abort();
  asking = new AbortController();
  if (!row) {
    shown = null;
    delete by("row").dataset.row;
    by("row").replaceChildren(h("p", { class: "soft none" }, "Choose a row to see its way through the run."));
    return;
  }
  try {
    const found = await ask("row", row, asking.signal);
    shown = found;
    by("row").replaceChildren(...page(found));
    by("row").dataset.row = `${row.stage}.${row.id}`;
    by("row").scrollTop = 0;
  } catch (error) {
    if (error.name !== "AbortError") by("row").replaceChildren(back(), h("p", { class: "warn" }, String(error.message)));
  }
}

// Returns whether the key meant something.
export function press(key) {
  const button = by("row").querySelector(`[data-key="${CSS.escape(key)}"]`);
  button?.click();
  return Boolean(button);
}

const back = () => h("button", { class: "quiet back", onclick: () => choose(null) }, "‹ All rows");

function page(found) {
  const own = found.steps.find((step) => step.stage === found.stage && step.id === found.id);
  const facts = [
    SOURCES[own.source] ?? own.source, own.type, own.topic && own.topic !== own.message ? `topic: ${own.topic}` : "",
    own.split === "heldout" ? "held out for the evaluation" : "",
  ];
  const evaluated = found.steps.filter((step) => step.stage === "evaluate");
  const others = found.steps.filter((step) => step.stage !== "evaluate");
  return [
    back(),
    h("h2", { class: "said asked-all" }, own.message || "(nothing)"),
    h("p", { class: "tag" }, facts.filter(Boolean).map((fact) => `${fact} · `), h("code", {}, found.about)),
    ...others.map((step) => stage(step, found, own)),
    evaluated.length ? answers(evaluated, found) : null,
  ].filter(Boolean);
}

function fate(step) {
  if (step.state === "kept") return h("span", { class: "fate" }, "kept");
  return h("span", { class: "fate lost" }, `${step.state}: ${step.reason}`);
}

function stage(step, found, own) {
  const is = step.stage === found.stage && step.id === found.id;
  const parts = [h("h3", {}, title(step.stage), " ", fate(step))];
  if (step.message !== own.message) parts.push(h("p", { class: "said" }, step.message));
  if (step.thoughts) parts.push(h("p", { class: "said thoughts" }, step.thoughts));
  if (step.principles.length && step.stage !== "engrave") {
    parts.push(h("p", { class: "cites" }, step.principles.map((p) =>
      h("button", { class: "quiet", title: "Only rows that cite it", onclick: () => narrow("principle", p) }, h("b", {}, String(p)), ` ${about.principles[p] ?? ""}`))));
  }
  const repeated = found.steps.some((other) => other !== step && other.answer === step.answer && ["align", "verbose_responses"].includes(other.stage));
  if (step.answer && !(repeated && ["engrave", "verbose_cloning"].includes(step.stage))) parts.push(h("p", { class: "said" }, step.answer));
  else if (repeated && step.answer) parts.push(h("p", { class: "soft small" }, `The answer above, learnt under the ${step.prompt || "standard"} prompt.`));
  if (step.edited && is) parts.push(h("p", { class: "soft small" }, "Edited by hand; learnt in its place is:"), h("p", { class: "said edited" }, step.edited));
  if (decided(step)) parts.push(folded("As the ledger has it", h("pre", {}, step.ledger)));
  parts.push(...closer(step, is), marking(step, is), opinion(step, is));
  return h("section", { class: is ? "step own" : "step" }, parts);
}

// Whether the ledger's text says more than what is shown already.
function decided(step) {
  const rest = [step.message, step.thoughts, step.answer].reduce((text, part) => text.replace(part, ""), step.ledger);
  return /[^\s[\]]/.test(rest);
}

function folded(name, ...inside) {
  return h("details", {}, h("summary", {}, name), ...inside);
}

function closer(step, is) {
  const found = [];
  const mine = { stage: step.stage, id: step.id };
  const trained = about.trained.includes(step.stage) && step.state === "kept" && step.split !== "heldout" && step.answer && step.mark !== "drop";
  if (about.with_prompt.includes(step.stage)) found.push(later("Exact prompt", is && "p", () => ask("prompt", mine).then(prompt)));
  if (trained) found.push(later("Tokens and loss mask", is && "t", () => ask("tokens", mine).then(tokens)));
  return found;
}

// What is fetched when it is unfolded for the first time.
function later(name, key, make) {
  const place = h("div", {});
  let begun = false;
  const summary = h("summary", { "data-key": key || null }, name);
  const details = h("details", { ontoggle: async () => {
    if (!details.open || begun) return;
    begun = true;
    place.replaceChildren(h("p", { class: "soft small" }, "…"));
    try {
      place.replaceChildren(...(await make()));
      for (const box of place.querySelectorAll("pre")) box.scrollTop = box.scrollHeight;
      if (key) details.scrollIntoView({ block: "nearest" }); // it may have been opened by its key, below the edge
    } catch (error) {
      place.replaceChildren(h("p", { class: "soft small" }, String(error.message)));
    }
  } }, summary, place);
  return details;
}

// Drop, edit, take back: for rows that are trained on.
function marking(step, is) {
  const can = about.markable.includes(step.stage) && step.answer && step.split !== "heldout" && (step.state === "kept" || step.reason === "by hand");
  const note = h("p", { class: "soft small", role: "status" });
  const word = { drop: "Marked: training leaves this row out.", edit: "Marked: training learns the edited answer." }[step.mark];
  if (word) note.replaceChildren(`${word} It takes effect when selfalign run goes through this run again.`);
  if (!can || !is) return can && word ? note : null;
  const send = async (mark, answer) => {
    try {
      const found = await tell("mark", { stage: step.stage, id: step.id, mark, answer });
      shown = { ...found, stage: shown.stage, id: shown.id };
      by("row").replaceChildren(...page(shown));
      await again();
    } catch (error) { note.replaceChildren(String(error.message)); }
  };
  const box = h("textarea", { rows: 8, "aria-label": "The answer to learn", maxlength: 200_000 });
  box.value = step.edited || step.answer;
  const form = h("form", { hidden: true, onsubmit: (event) => { event.preventDefault(); send("edit", box.value); } },
    box, h("button", { class: "main" }, "Learn this instead"), h("button", { type: "button", onclick: () => { form.hidden = true; } }, "Cancel"));
  const edit = () => { form.hidden = false; box.focus(); };
  return h("div", { class: "marking" }, h("div", {},
    step.mark !== "drop" && h("button", { "data-key": is && "d", title: "Training leaves this row out", onclick: () => send("drop") }, "Leave out"),
    h("button", { "data-key": is && "e", onclick: edit }, "Edit"),
    step.mark && h("button", { "data-key": is && "u", onclick: () => send("") }, "Take the mark back")), form, note);
}

// Good or bad, with a note: about the constitution. No training follows from it.
const OPINIONS = { good: "What is good about it?", bad: "What should be otherwise?" };

function opinion(step, is) {
  if (!about.with_feedback.includes(step.stage) || !step.answer || !step.message.trim()) return null;
  const { verdict, note, error } = step.feedback;
  const state = h("span", { class: "told", role: "status" }, error ?? (verdict ? "Kept as feedback; training stays as it is." : ""));
  const send = async (wanted, said, focus) => {
    try {
      const found = await tell("feedback", { stage: step.stage, id: step.id, verdict: wanted, note: said });
      shown = { ...found, stage: shown.stage, id: shown.id };
      const top = by("row").scrollTop;
      by("row").replaceChildren(...page(shown));
      by("row").scrollTop = top;
      if (focus) by("row").querySelector(`[data-note="${CSS.escape(`${step.stage}.${step.id}`)}"]`)?.focus({ preventScroll: true });
    } catch (error) { state.replaceChildren(String(error.message)); }
  };
  const box = h("textarea", { "data-note": `${step.stage}.${step.id}`, rows: 1, maxlength: 2000, autocomplete: "off", enterkeyhint: "done",
    placeholder: OPINIONS[verdict], "aria-label": OPINIONS[verdict], oninput: () => state.replaceChildren("Enter keeps the note.") }, note ?? "");
  const form = h("div", { class: "note" }, box, state);
  let kept = note ?? "";
  const keep = () => {
    if (box.value === kept) return;
    kept = box.value;
    send(verdict, kept);
  };
  box.addEventListener("blur", keep);
  box.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    box.blur(); // which keeps it
  });
  return h("div", { class: "opinion" }, h("p", {}, h("span", {}, "This answer is"), Object.keys(OPINIONS).map((name) =>
    h("button", { class: "quiet", "aria-pressed": String(verdict === name), "data-key": is && name[0],
      title: "Feedback for the constitution; nothing is trained on it",
      onclick: () => send(verdict === name ? "" : name, verdict === name ? "" : box.value, verdict !== name) }, name)), verdict ? null : state),
  verdict ? form : null);
}

function prompt(found) {
  const { settings } = found;
  const proof = found.proved
    ? "The journal has the answer under the hash of exactly this text, these settings and these weights."
    : "Put together anew; the journal has no answer under its hash" + (found.why ? ` (${found.why}).` : ": it was asked by another version, or not yet.");
  const facts = [`model ${found.model}`, `temperature ${settings.temperature}`, `top-p ${settings.top_p}`, `at most ${settings.max_new_tokens.join(" + ")} tokens`, `seed ${settings.seed}`];
  if (found.finish.length) facts.push(`${plural(found.generated_tokens, "token")}, ended by ${found.finish.at(-1)}`);
  return [
    h("pre", { class: "exact", tabindex: "0" }, found.parts.map(([kind, text]) => h("span", { class: kind }, text))),
    h("p", { class: "soft small" }, h("span", { class: "said-mark" }, "what the model wrote"), ` · ${facts.join(" · ")}`),
    h("p", { class: "soft small" }, proof),
  ];
}

function tokens(found) {
  return [
    h("pre", { class: "tokens", tabindex: "0" }, found.tokens.map(([text, ids, learnt]) =>
      h("span", { class: learnt ? "learnt" : "given", title: ids.join(" ") }, text))),
    h("p", { class: "soft small" }, h("span", { class: "learnt" }, `${plural(found.trained, "token")} learnt`), ` of ${found.all} · system prompt ${found.prompt} · a token's id shows on hovering`),
  ];
}

function answers(steps, found) {
  return h("section", { class: steps.some((s) => s.stage === found.stage && s.id === found.id) ? "step own" : "step" },
    h("h3", {}, title("evaluate")),
    h("div", { class: "models" }, steps.map((step) => h("div", {},
      h("b", {}, step.model), step.state === "kept" ? null : fate(step), h("p", { class: "said" }, step.answer || "(nothing)"),
      ...closer(step, step.stage === found.stage && step.id === found.id),
      opinion(step, step.stage === found.stage && step.id === found.id) ?? ""))));
}
