// One row: its path through the stages, exact prompt, training tokens, mark and feedback.

import { SOURCES, ask, h, plural, send } from "/static/dom.js";
import { about, choose, reloadRows, setFilter, title } from "/static/view.js";

const byId = (id) => document.getElementById(id);
let openRow = null; // as the server sent it
let pending = null; // the AbortController of the request for the row

export async function open(row) {
  pending?.abort();
  pending = new AbortController();
  if (!row) {
    openRow = null;
    delete byId("row").dataset.row;
    byId("row").replaceChildren(h("p", { class: "soft none" }, "Select a row to see its path through the run."));
    return;
  }
  try {
    openRow = await ask("row", row, pending.signal);
    byId("row").replaceChildren(...page(openRow));
    byId("row").dataset.row = `${row.stage}.${row.id}`;
    byId("row").scrollTop = 0;
  } catch (error) {
    if (error.name !== "AbortError") byId("row").replaceChildren(back(), h("p", { class: "warn" }, String(error.message)));
  }
}

// Handle a key; return whether the row uses it.
export function press(key) {
  const button = byId("row").querySelector(`[data-key="${CSS.escape(key)}"]`);
  button?.click();
  return Boolean(button);
}

const back = () => h("button", { class: "quiet back", onclick: () => choose(null) }, "‹ All rows");

function page(detail) {
  const own = detail.steps.find((step) => step.stage === detail.stage && step.id === detail.id);
  const facts = [
    SOURCES[own.source] ?? own.source, own.type, own.topic && own.topic !== own.message ? `topic: ${own.topic}` : "",
    own.split === "heldout" ? "held out for the evaluation" : "",
  ];
  const evaluated = detail.steps.filter((step) => step.stage === "evaluate");
  const others = detail.steps.filter((step) => step.stage !== "evaluate");
  return [
    back(),
    h("h2", { class: "pre full-message" }, own.message || "(empty)"),
    h("p", { class: "tag" }, facts.filter(Boolean).map((fact) => `${fact} · `), h("code", {}, detail.about)),
    ...others.map((step) => stage(step, detail, own)),
    evaluated.length ? answers(evaluated, detail) : null,
  ].filter(Boolean);
}

function outcome(step) {
  if (step.state === "kept") return h("span", { class: "outcome" }, "kept");
  return h("span", { class: "outcome lost" }, `${step.state}: ${step.reason}`);
}

function stage(step, detail, own) {
  const isOpen = step.stage === detail.stage && step.id === detail.id;
  const parts = [h("h3", {}, title(step.stage), " ", outcome(step))];
  if (step.message !== own.message) parts.push(h("p", { class: "pre" }, step.message));
  if (step.thoughts) parts.push(h("p", { class: "pre thoughts" }, step.thoughts));
  if (step.principles.length && !["pairs", "engrave"].includes(step.stage)) {
    parts.push(h("p", { class: "cites" }, step.principles.map((p) =>
      h("button", { class: "quiet", title: "Show only rows that cite it", onclick: () => setFilter("principle", p) }, h("b", {}, String(p)), ` ${about.principles[p] ?? ""}`))));
  }
  if (step.stage === "pairs" && step.answer) parts.push(h("p", { class: "soft small" }, "Rejected response:"));
  const isRepeated = detail.steps.some((other) => other !== step && other.answer === step.answer && ["align", "verbose_responses"].includes(other.stage));
  if (step.answer && !(isRepeated && ["engrave", "verbose_cloning"].includes(step.stage))) parts.push(h("p", { class: "pre" }, step.answer));
  else if (isRepeated && step.answer) parts.push(h("p", { class: "soft small" }, `Training example: the response above under the ${step.prompt || "standard"} system prompt.`));
  if (step.edited && isOpen) parts.push(h("p", { class: "soft small" }, "Edited manually; training uses:"), h("p", { class: "pre edited" }, step.edited));
  if (step.candidates.length) parts.push(candidates(step));
  if (hasMore(step)) parts.push(folded("Text in the ledger", h("pre", {}, step.ledger)));
  parts.push(...unfoldable(step, isOpen), marking(step, isOpen), feedback(step, isOpen));
  return h("section", { class: isOpen ? "step own" : "step" }, parts);
}

// Return whether the ledger's text contains more than the other parts show.
function hasMore(step) {
  const rest = [step.message, step.thoughts, step.answer].reduce((text, part) => text.replace(part, ""), step.ledger);
  return /[^\s[\]]/.test(rest);
}

// All samples among which the stage chose the response.
function candidates(step) {
  const signed = (score) => `${score < 0 ? "−" : "+"}${Math.abs(score).toFixed(3)}`;
  return folded(plural(step.candidates.length, "candidate"), step.candidates.map((candidate) => h("div", { class: "candidate" },
    h("p", { class: "tag" }, h("b", {}, String(candidate.sample + 1)), outcome(candidate),
      candidate.score === null ? null : h("span", { class: "outcome", title: "Nats per token by which the constitution raises its log-likelihood" }, `score ${signed(candidate.score)}`)),
    candidate.thoughts ? h("p", { class: "pre thoughts" }, candidate.thoughts) : null,
    candidate.state === "failed" ? null : h("p", { class: "pre" }, candidate.answer || "(empty)"))));
}

function folded(name, ...inside) {
  return h("details", {}, h("summary", {}, name), ...inside);
}

function unfoldable(step, isOpen) {
  const parts = [];
  const row = { stage: step.stage, id: step.id };
  const isTrained = about.trained.includes(step.stage) && step.state === "kept" && step.split !== "heldout" && step.answer && step.mark !== "drop";
  if (about.with_prompt.includes(step.stage)) parts.push(later("Exact prompt", isOpen && "p", () => ask("prompt", row).then(prompt)));
  if (isTrained) parts.push(later("Tokens and loss mask", isOpen && "t", () => ask("tokens", row).then(tokens)));
  return parts;
}

// Details that are fetched when first opened.
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
      if (key) details.scrollIntoView({ block: "nearest" }); // it may be out of view when opened by a key
    } catch (error) {
      place.replaceChildren(h("p", { class: "soft small" }, String(error.message)));
    }
  } }, summary, place);
  return details;
}

// Buttons to exclude or edit a row that is trained on, or to remove its mark.
function marking(step, isOpen) {
  const isMarkable = about.markable.includes(step.stage) && step.answer && step.split !== "heldout" && (step.state === "kept" || step.reason === about.mark_reason);
  const note = h("p", { class: "soft small", role: "status" });
  const word = { drop: "Marked: training excludes this row.", edit: "Marked: training uses the edited response." }[step.mark];
  if (word) note.replaceChildren(`${word} It takes effect with the next selfalign run.`);
  if (!isMarkable || !isOpen) return isMarkable && word ? note : null;
  const save = async (mark, answer) => {
    try {
      const detail = await send("mark", { stage: step.stage, id: step.id, mark, answer });
      openRow = { ...detail, stage: openRow.stage, id: openRow.id };
      byId("row").replaceChildren(...page(openRow));
      await reloadRows();
    } catch (error) { note.replaceChildren(String(error.message)); }
  };
  const box = h("textarea", { rows: 8, "aria-label": "Edited response", maxlength: 200_000 });
  box.value = step.edited || step.answer;
  const form = h("form", { hidden: true, onsubmit: (event) => { event.preventDefault(); save("edit", box.value); } },
    box, h("button", { class: "main" }, "Save edit"), h("button", { type: "button", onclick: () => { form.hidden = true; } }, "Cancel"));
  const edit = () => { form.hidden = false; box.focus(); };
  return h("div", { class: "marking" }, h("div", {},
    step.mark !== "drop" && h("button", { "data-key": isOpen && "d", title: "Exclude this row from training", onclick: () => save("drop") }, "Exclude"),
    h("button", { "data-key": isOpen && "e", onclick: edit }, "Edit"),
    step.mark && h("button", { "data-key": isOpen && "u", onclick: () => save("") }, "Remove mark")), form, note);
}

// Buttons for feedback on the constitution: good or bad, with a note. Training ignores it.
const NOTE_HINTS = { good: "What is good about it?", bad: "What should be different?" };

function feedback(step, isOpen) {
  if (!about.with_feedback.includes(step.stage) || !step.answer || !step.message.trim()) return null;
  const { verdict, note, error } = step.feedback;
  const state = h("span", { class: "saved", role: "status" }, error ?? (verdict ? "Saved as feedback; training ignores it." : ""));
  const save = async (newVerdict, newNote, focus) => {
    try {
      const detail = await send("feedback", { stage: step.stage, id: step.id, verdict: newVerdict, note: newNote });
      openRow = { ...detail, stage: openRow.stage, id: openRow.id };
      const top = byId("row").scrollTop;
      byId("row").replaceChildren(...page(openRow));
      byId("row").scrollTop = top;
      if (focus) byId("row").querySelector(`[data-note="${CSS.escape(`${step.stage}.${step.id}`)}"]`)?.focus({ preventScroll: true });
    } catch (error) { state.replaceChildren(String(error.message)); }
  };
  const box = h("textarea", { "data-note": `${step.stage}.${step.id}`, rows: 1, maxlength: 2000, autocomplete: "off", enterkeyhint: "done",
    placeholder: NOTE_HINTS[verdict], "aria-label": NOTE_HINTS[verdict], oninput: () => state.replaceChildren("Press Enter to save the note.") }, note ?? "");
  const form = h("div", { class: "note" }, box, state);
  let savedNote = note ?? "";
  const saveNote = () => {
    if (box.value === savedNote) return;
    savedNote = box.value;
    save(verdict, savedNote);
  };
  box.addEventListener("blur", saveNote);
  box.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    box.blur(); // saves the note
  });
  return h("div", { class: "feedback" }, h("p", {}, h("span", {}, "This response is"), Object.keys(NOTE_HINTS).map((name) =>
    h("button", { class: "quiet", "aria-pressed": String(verdict === name), "data-key": isOpen && name[0],
      title: "Feedback on the constitution; training ignores it",
      onclick: () => save(verdict === name ? "" : name, verdict === name ? "" : box.value, verdict !== name) }, name)), verdict ? null : state),
  verdict ? form : null);
}

function prompt(detail) {
  const { settings } = detail;
  const proof = detail.proved
    ? "The journal has the output under the hash of this exact prompt, its settings and weights."
    : "Rebuilt from the row. The journal has no output under its hash" + (detail.why ? ` (${detail.why}).` : ": another version sent the request, or it was not sent yet.");
  const facts = [`model ${detail.model}`, `temperature ${settings.temperature}`, `top-p ${settings.top_p}`, `at most ${settings.max_new_tokens.join(" + ")} tokens`, `seed ${settings.seed}`];
  if (detail.finish.length) facts.push(`${plural(detail.generated_tokens, "token")}, finish reason: ${detail.finish.at(-1)}`);
  return [
    h("pre", { class: "exact", tabindex: "0" }, detail.parts.map(([kind, text]) => h("span", { class: kind }, text))),
    h("p", { class: "soft small" }, h("span", { class: "output-mark" }, "model output"), ` · ${facts.join(" · ")}`),
    h("p", { class: "soft small" }, proof),
  ];
}

function tokens(detail) {
  return [
    h("pre", { class: "tokens", tabindex: "0" }, detail.tokens.map(([text, ids, isTrained]) =>
      h("span", { class: isTrained ? "trained" : "untrained", title: ids.join(" ") }, text))),
    h("p", { class: "soft small" }, h("span", { class: "trained" }, `${plural(detail.trained, "token")} in the loss`), ` of ${detail.all} · system prompt ${detail.prompt} · hover over a token to see its id`),
  ];
}

function answers(steps, detail) {
  return h("section", { class: steps.some((s) => s.stage === detail.stage && s.id === detail.id) ? "step own" : "step" },
    h("h3", {}, title("evaluate")),
    h("div", { class: "models" }, steps.map((step) => h("div", {},
      h("b", {}, step.model), step.state === "kept" ? null : outcome(step), h("p", { class: "pre" }, step.answer || "(empty)"),
      ...unfoldable(step, step.stage === detail.stage && step.id === detail.id),
      feedback(step, step.stage === detail.stage && step.id === detail.id) ?? ""))));
}
