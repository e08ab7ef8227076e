// One row: its path through the stages, the exact prompt, the training tokens.

import { SOURCES, ask, h, plural, send } from "/static/dom.js";
import { about, again, choose, narrow, title } from "/static/view.js";

const by = (id) => document.getElementById(id);
let shown = null; // the open row, as the server sent it
let pending = null; // the AbortController of the request for the row

export async function open(row) {
  pending?.abort();
  pending = new AbortController();
  if (!row) {
    shown = null;
    delete by("row").dataset.row;
    by("row").replaceChildren(h("p", { class: "soft none" }, "Select a row to see its path through the run."));
    return;
  }
  try {
    shown = await ask("row", row, pending.signal);
    by("row").replaceChildren(...page(shown));
    by("row").dataset.row = `${row.stage}.${row.id}`;
    by("row").scrollTop = 0;
  } catch (error) {
    if (error.name !== "AbortError") by("row").replaceChildren(back(), h("p", { class: "warn" }, String(error.message)));
  }
}

// Handle a key; return whether it has a meaning for the row.
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
    h("h2", { class: "pre full-message" }, own.message || "(empty)"),
    h("p", { class: "tag" }, facts.filter(Boolean).map((fact) => `${fact} · `), h("code", {}, found.about)),
    ...others.map((step) => stage(step, found, own)),
    evaluated.length ? answers(evaluated, found) : null,
  ].filter(Boolean);
}

function outcome(step) {
  if (step.state === "kept") return h("span", { class: "outcome" }, "kept");
  return h("span", { class: "outcome lost" }, `${step.state}: ${step.reason}`);
}

function stage(step, found, own) {
  const isOpen = step.stage === found.stage && step.id === found.id;
  const parts = [h("h3", {}, title(step.stage), " ", outcome(step))];
  if (step.message !== own.message) parts.push(h("p", { class: "pre" }, step.message));
  if (step.thoughts) parts.push(h("p", { class: "pre thoughts" }, step.thoughts));
  if (step.principles.length && step.stage !== "engrave") {
    parts.push(h("p", { class: "cites" }, step.principles.map((p) =>
      h("button", { class: "quiet", title: "Show only rows that cite it", onclick: () => narrow("principle", p) }, h("b", {}, String(p)), ` ${about.principles[p] ?? ""}`))));
  }
  const repeated = found.steps.some((other) => other !== step && other.answer === step.answer && ["align", "verbose_responses"].includes(other.stage));
  if (step.answer && !(repeated && ["engrave", "verbose_cloning"].includes(step.stage))) parts.push(h("p", { class: "pre" }, step.answer));
  else if (repeated && step.answer) parts.push(h("p", { class: "soft small" }, `Training example: the response above under the ${step.prompt || "standard"} system prompt.`));
  if (step.edited && isOpen) parts.push(h("p", { class: "soft small" }, "Edited manually; training uses:"), h("p", { class: "pre edited" }, step.edited));
  if (hasMore(step)) parts.push(folded("Text in the ledger", h("pre", {}, step.ledger)));
  parts.push(...unfoldable(step, isOpen), marking(step, isOpen), feedback(step, isOpen));
  return h("section", { class: isOpen ? "step own" : "step" }, parts);
}

// Return whether the ledger's text contains more than is shown already.
function hasMore(step) {
  const rest = [step.message, step.thoughts, step.answer].reduce((text, part) => text.replace(part, ""), step.ledger);
  return /[^\s[\]]/.test(rest);
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

// Details that are fetched when they are first opened.
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
      if (key) details.scrollIntoView({ block: "nearest" }); // a key may have opened it out of view
    } catch (error) {
      place.replaceChildren(h("p", { class: "soft small" }, String(error.message)));
    }
  } }, summary, place);
  return details;
}

// Exclude, edit, remove the mark: for rows that are trained on.
function marking(step, isOpen) {
  const isMarkable = about.markable.includes(step.stage) && step.answer && step.split !== "heldout" && (step.state === "kept" || step.reason === about.mark_reason);
  const note = h("p", { class: "soft small", role: "status" });
  const word = { drop: "Marked: training excludes this row.", edit: "Marked: training uses the edited response." }[step.mark];
  if (word) note.replaceChildren(`${word} This takes effect the next time selfalign run works on this run.`);
  if (!isMarkable || !isOpen) return isMarkable && word ? note : null;
  const save = async (mark, answer) => {
    try {
      const found = await send("mark", { stage: step.stage, id: step.id, mark, answer });
      shown = { ...found, stage: shown.stage, id: shown.id };
      by("row").replaceChildren(...page(shown));
      await again();
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

// Good or bad, with a note: feedback on the constitution, which training ignores.
const NOTE_HINTS = { good: "What is good about it?", bad: "What should be different?" };

function feedback(step, isOpen) {
  if (!about.with_feedback.includes(step.stage) || !step.answer || !step.message.trim()) return null;
  const { verdict, note, error } = step.feedback;
  const state = h("span", { class: "saved", role: "status" }, error ?? (verdict ? "Saved as feedback; training ignores it." : ""));
  const save = async (newVerdict, newNote, focus) => {
    try {
      const found = await send("feedback", { stage: step.stage, id: step.id, verdict: newVerdict, note: newNote });
      shown = { ...found, stage: shown.stage, id: shown.id };
      const top = by("row").scrollTop;
      by("row").replaceChildren(...page(shown));
      by("row").scrollTop = top;
      if (focus) by("row").querySelector(`[data-note="${CSS.escape(`${step.stage}.${step.id}`)}"]`)?.focus({ preventScroll: true });
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

function prompt(found) {
  const { settings } = found;
  const proof = found.proved
    ? "The journal has the output under the hash of exactly this prompt, these settings and these weights."
    : "Rebuilt from the row; the journal has no output under its hash" + (found.why ? ` (${found.why}).` : ": another version made the request, or it has not been made yet.");
  const facts = [`model ${found.model}`, `temperature ${settings.temperature}`, `top-p ${settings.top_p}`, `at most ${settings.max_new_tokens.join(" + ")} tokens`, `seed ${settings.seed}`];
  if (found.finish.length) facts.push(`${plural(found.generated_tokens, "token")}, finish reason: ${found.finish.at(-1)}`);
  return [
    h("pre", { class: "exact", tabindex: "0" }, found.parts.map(([kind, text]) => h("span", { class: kind }, text))),
    h("p", { class: "soft small" }, h("span", { class: "output-mark" }, "model output"), ` · ${facts.join(" · ")}`),
    h("p", { class: "soft small" }, proof),
  ];
}

function tokens(found) {
  return [
    h("pre", { class: "tokens", tabindex: "0" }, found.tokens.map(([text, ids, isTrained]) =>
      h("span", { class: isTrained ? "trained" : "untrained", title: ids.join(" ") }, text))),
    h("p", { class: "soft small" }, h("span", { class: "trained" }, `${plural(found.trained, "token")} in the loss`), ` of ${found.all} · system prompt ${found.prompt} · hover over a token to see its id`),
  ];
}

function answers(steps, found) {
  return h("section", { class: steps.some((s) => s.stage === found.stage && s.id === found.id) ? "step own" : "step" },
    h("h3", {}, title("evaluate")),
    h("div", { class: "models" }, steps.map((step) => h("div", {},
      h("b", {}, step.model), step.state === "kept" ? null : outcome(step), h("p", { class: "pre" }, step.answer || "(empty)"),
      ...unfoldable(step, step.stage === found.stage && step.id === found.id),
      feedback(step, step.stage === found.stage && step.id === found.id) ?? ""))));
}
