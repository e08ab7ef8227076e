// The chat page. Text from models and users becomes text nodes only; no string is parsed as HTML.

const byId = id => document.getElementById(id);
const make = (tag, name = "", text = "") => {
  const element = document.createElement(tag);
  if (name) element.className = name;
  if (text) element.append(text);
  return element;
};

let about;
let turns = []; // {message, responses: Map(model -> {text, failed})}
let running = null; // the AbortController of the running requests
let recalled = "";

const chosen = () => [...byId("models").children].filter(b => b.ariaPressed === "true").map(b => b.dataset.model);
const OWN = "own";

// -- models and prompts --------------------------------------------------------------------------------------------------

function toggle(button) {
  const on = button.ariaPressed === "true";
  if (on && chosen().length === 1) return;
  button.ariaPressed = String(!on);
  describe();
}

function describe() {
  const style = byId("style").value;
  byId("own").hidden = style !== OWN;
  byId("prompt").hidden = style === OWN;
  byId("prompt").textContent = about.styles[style] ?? "";
  if (style === "two-shot") byId("prompt").append(` (plus ${about.two_shot.length} example turns)`);
  byId("chosen").textContent = `${chosen().join(", ")} · ${[...new Set(chosen().map(promptOf))].join(" and ")} prompt`;
}

const PROMPTED = "prompted-base";
function promptOf(model) {
  if (model === PROMPTED) return "constitution";
  if (byId("style").value !== OWN) return byId("style").value;
  return byId("own").value.trim() ? "custom" : about.style;
}

function request(model, message) {
  const body = { model, stream: true, stream_options: { include_usage: true }, messages: [] };
  if (model !== PROMPTED) {
    const own = byId("own").value.trim();
    if (byId("style").value !== OWN) body.style = byId("style").value;
    else if (own) body.messages.push({ role: "system", content: own });
    for (const turn of turns) {
      const answer = turn.responses.get(model);
      if (!answer || answer.failed || !answer.text) continue;
      body.messages.push({ role: "user", content: turn.message }, { role: "assistant", content: answer.text });
    }
  }
  body.messages.push({ role: "user", content: message });
  for (const name of ["temperature", "top_p", "max_tokens", "seed"]) {
    if (byId(name).value !== "") body[name] = Number(byId(name).value);
  }
  return body;
}

// -- a stream ---------------------------------------------------------------------------------------------------------

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    held += value;
    const events = held.split("\n\n");
    held = events.pop();
    for (const event of events) {
      if (event === "data: [DONE]") return;
      yield JSON.parse(event.slice(6));
    }
  }
}

async function failure(response) {
  if (response.status === 401) return "Signed out: reload the page.";
  const wait = response.headers.get("retry-after");
  const message = await response.json().then(body => body.error.message, () => response.statusText);
  return wait ? `The server is busy: ${message}. Try again in ${wait} s.` : `${message[0].toUpperCase()}${message.slice(1)}.`;
}

async function respond(model, body, panel, turn, signal) {
  const began = performance.now();
  const result = { text: "", failed: false };
  turn.responses.set(model, result);
  let first = 0, finish = "", usage = null, note = null;
  try {
    const response = await fetch("/v1/chat/completions", {
      method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body), signal,
    });
    if (!response.ok) throw new Error(await failure(response));
    for await (const event of events(response)) {
      if (event.error) throw new Error(event.error.message);
      usage = event.usage ?? usage;
      note = event.selfalign ?? note;
      const choice = event.choices[0];
      if (!choice) continue;
      finish = choice.finish_reason ?? finish;
      const { content, reasoning_content: thought } = choice.delta;
      if ((content || thought) && !first) first = performance.now();
      if (thought) panel.thoughts.appendData(thought);
      if (thought) panel.thinking.hidden = false;
      if (content) panel.text.appendData(content);
      result.text += content ?? "";
      if (content || thought) follow();
    }
    if (!finish) throw new Error("The connection closed before the response was complete.");
  } catch (error) {
    if (error.name === "AbortError") finish = "stopped";
    else {
      result.failed = true;
      const reason = error instanceof TypeError ? "The server does not respond." : error.message;
      panel.column.append(make("p", "error pre", reason));
    }
  }
  panel.column.ariaBusy = "false";
  if (!result.failed) describeResponse(panel, result, { body, finish, usage, note, first, began, ended: performance.now() });
}

function describeResponse(panel, result, { body, finish, usage, note, first, began, ended }) {
  const facts = [];
  const tokens = usage?.completion_tokens;
  if (tokens) facts.push(`${tokens} token${tokens === 1 ? "" : "s"}`);
  if (tokens > 1 && ended > first) facts.push(`${((tokens - 1) / (ended - first) * 1000).toFixed(0)} tokens/s`);
  if (first) facts.push(`first token after ${((first - began) / 1000).toFixed(2)} s`);
  if (finish === "length") facts.push(`cut at ${body.max_tokens ?? about.defaults.max_tokens} tokens`);
  if (finish === "stopped") facts.push("stopped");
  if (note?.escaped) facts.push(`control tokens escaped: ${note.escaped.join(" ")}`);
  if (note?.reads_as_turns) facts.push("the message contains text that reads like a turn");
  const meta = make("p", "meta"), tools = make("span", "tools");
  meta.append(make("bdi", "", facts.join(" · ")));
  if (result.text) {
    const copy = make("button", "quiet", "copy");
    copy.type = "button";
    copy.hidden = !navigator.clipboard; // browsers offer it only on loopback or with TLS
    copy.onclick = async () => {
      await navigator.clipboard.writeText(result.text);
      copy.textContent = "copied";
      setTimeout(() => { copy.textContent = "copy"; }, 1200);
    };
    tools.append(copy);
  } else if (finish !== "stopped") panel.column.append(make("p", "error", "Empty response: the model stopped immediately."));
  if (result.text || finish !== "stopped") tools.append(...marks(panel, body, result.text));
  meta.append(tools);
  panel.column.insertBefore(meta, panel.column.querySelector("form"));
}

// -- marks: good or bad, with a note ----------------------------------------------------------------------------------

const NOTE_HINTS = { good: "What is good about it?", bad: "What should be different?" };

function marks(panel, body, answer) {
  const prompt = panel.prompt === "custom" ? OWN : panel.prompt;
  const system = body.messages[0].role === "system" ? body.messages[0].content : "";
  const entry = {
    model: body.model, prompt, answer, thoughts: panel.thoughts.data, ...(system && { system }),
    turns: body.messages.filter(message => message.role !== "system"), settings: {},
  };
  for (const [name, key] of [["temperature"], ["top_p"], ["max_tokens", "max_new_tokens"], ["seed"]]) {
    if (body[name] !== undefined) entry.settings[key ?? name] = body[name];
  }
  const form = make("form", "note"), note = make("textarea"), state = make("span", "saved");
  note.rows = 1;
  note.maxLength = 2000;
  note.enterKeyHint = "done";
  note.autocomplete = "off";
  state.role = "status";
  form.append(note, state);
  form.hidden = true;
  let verdict = "";
  const save = async newVerdict => {
    try {
      const response = await fetch("/feedback", {
        method: "POST", headers: { "content-type": "application/json" },
        body: JSON.stringify({ ...entry, verdict: newVerdict, note: newVerdict ? note.value : "" }),
      });
      if (!response.ok) throw new Error(await failure(response));
      verdict = newVerdict;
      for (const button of buttons) button.ariaPressed = String(button.textContent === verdict);
      form.hidden = !verdict;
      if (!verdict) note.value = "";
      note.placeholder = note.ariaLabel = NOTE_HINTS[verdict] ?? "";
      state.textContent = note.value.trim() ? "Saved with the note." : "Saved. Training ignores it.";
    } catch (error) {
      form.hidden = false;
      state.textContent = error instanceof TypeError ? "The server does not respond." : error.message;
    }
  };
  const buttons = Object.keys(NOTE_HINTS).map(name => {
    const button = make("button", "quiet", name);
    button.type = "button";
    button.ariaPressed = "false";
    button.title = `Mark this response as ${name}, as feedback on the constitution`;
    button.onclick = async () => {
      await save(verdict === name ? "" : name);
      if (verdict) note.focus();
      follow();
    };
    return button;
  });
  note.oninput = () => { state.textContent = "Press Enter to save the note."; };
  note.onchange = () => save(verdict);
  form.onsubmit = event => event.preventDefault();
  note.onkeydown = event => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    byId("message").focus(); // leaving the field saves the note
  };
  panel.column.append(form);
  return buttons;
}

// -- the dialogue -----------------------------------------------------------------------------------------------------

function column(model) {
  const article = make("article", "answer");
  article.ariaBusy = "true";
  const head = make("h3", "", model);
  const suffix = model === PROMPTED && turns.length > 1 ? ", this message only" : "";
  head.append(make("span", "", ` · ${promptOf(model)} prompt${suffix}`));
  const thinking = make("details");
  const thoughts = make("p", "thoughts pre"), text = make("p", "text pre");
  thinking.append(make("summary", "", "Internal thoughts"), thoughts);
  thinking.hidden = true;
  const nodes = [document.createTextNode(""), document.createTextNode("")];
  thoughts.append(nodes[0]);
  text.append(nodes[1]);
  article.append(head, thinking, text);
  return { column: article, prompt: promptOf(model), thinking, thoughts: nodes[0], text: nodes[1] };
}

async function send() {
  const message = byId("message").value.trim();
  const invalid = [...document.querySelectorAll(".fields input")].find(input => !input.checkValidity());
  if (!message || running || !about) return;
  if (invalid) {
    byId("rail").open = byId("sampling").open = true;
    invalid.reportValidity();
    return;
  }
  const models = chosen();
  const section = make("section", "turn"), answers = make("div", "answers");
  section.append(make("p", "message pre", message), answers);
  answers.style.setProperty("--answers", models.length);
  const turn = { message, responses: new Map() };
  const bodies = models.map(model => request(model, message));
  turns.push(turn);
  recalled = message;
  byId("message").value = "";
  byId("empty").hidden = true;
  byId("dialogue").append(section);
  running = new AbortController();
  setBusy(true);
  const columns = models.map(column);
  answers.append(...columns.map(c => c.column));
  section.scrollIntoView({ block: "start" });
  const { signal } = running;
  await Promise.all(models.map((model, i) => respond(model, bodies[i], columns[i], turn, signal)));
  running = null;
  setBusy(false);
  follow();
}

function setBusy(isBusy) {
  byId("send").textContent = isBusy ? "Stop" : "Send";
  byId("state").textContent = isBusy ? "generating; Esc stops" : "";
}

function stop() {
  running?.abort();
}

function startDialogue() {
  stop();
  turns = [];
  byId("dialogue").replaceChildren();
  byId("empty").hidden = false;
  byId("message").focus();
}

let pinned = true;
addEventListener("scroll", () => {
  pinned = scrollY + innerHeight > document.documentElement.scrollHeight - 80;
}, { passive: true });
function follow() {
  if (pinned) scrollTo({ top: document.documentElement.scrollHeight, behavior: "instant" });
}

// -- keys -------------------------------------------------------------------------------------------------------------

byId("ask").addEventListener("submit", event => {
  event.preventDefault();
  if (running) stop();
  else send();
});
byId("message").addEventListener("keydown", event => {
  if (event.isComposing) return;
  if (event.key === "Enter" && !event.shiftKey) {
    event.preventDefault();
    send();
  } else if (event.key === "ArrowUp" && !byId("message").value && recalled) {
    event.preventDefault();
    byId("message").value = recalled;
  }
});
document.addEventListener("keydown", event => {
  if (event.key === "Escape") stop();
  const typing = event.target.closest("input, textarea, select");
  if (event.altKey && !event.ctrlKey && !event.metaKey) {
    const button = byId("models").children[Number(event.code.replace("Digit", "")) - 1];
    if (event.code.startsWith("Digit") && button) {
      event.preventDefault();
      toggle(button);
    } else if (event.code === "KeyN") {
      event.preventDefault();
      startDialogue();
    }
  } else if (!typing && event.key.length === 1 && event.key !== " " && !event.ctrlKey && !event.metaKey) {
    byId("message").focus(); // the key is then typed there
  }
});
byId("new").addEventListener("click", startDialogue);
byId("style").addEventListener("change", describe);
byId("own").addEventListener("input", describe);

// -- the run ----------------------------------------------------------------------------------------------------------

async function open() {
  const response = await fetch("/about");
  if (!response.ok) throw new Error(await failure(response));
  about = await response.json();
  document.title = `${about.assistant} · ${about.run}`;
  byId("run").textContent = about.run;
  byId("assistant").textContent = about.assistant;
  byId("title").textContent = `Talk to ${about.assistant}`;
  byId("lead").textContent = "Chat with one model, or with several side by side. " + (about.fake
    ? "The fake engine has no model: it generates random words."
    : `They share the base model ${about.base}. They were trained on single turns, so later turns may be weaker.`);
  about.models.forEach(({ id, about: words }, number) => {
    const button = make("button");
    button.type = "button";
    button.dataset.model = id;
    button.ariaPressed = String(id === about.default);
    button.append(make("b", "", id), make("kbd", "", `Alt ${number + 1}`), make("i", "", words));
    button.onclick = () => toggle(button);
    byId("models").append(button);
  });
  byId("last-key").textContent = about.models.length;
  for (const style of [...Object.keys(about.styles), OWN]) {
    const option = make("option", "", style === OWN ? "custom" : style);
    option.value = style;
    byId("style").append(option);
  }
  byId("style").value = about.style;
  for (const [name, value] of Object.entries(about.defaults)) byId(name).value = value;
  byId("max_tokens").max = about.limits.max_tokens;
  const wide = matchMedia("(min-width: 62.01rem)");
  const unfold = () => { byId("rail").open = wide.matches; };
  wide.addEventListener("change", unfold);
  unfold();
  describe();
}

open().catch(error => { byId("state").textContent = error.message; });
