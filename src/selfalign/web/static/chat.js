// The chat page. Text from models and users becomes text nodes only; no string is parsed as HTML.

const at = id => document.getElementById(id);
const make = (tag, name = "", text = "") => {
  const element = document.createElement(tag);
  if (name) element.className = name;
  if (text) element.append(text);
  return element;
};

let about;
let turns = []; // {message, responses: Map(model -> {text, failed})}
let running = null; // the AbortController of the responses that are being received
let recalled = "";

const chosen = () => [...at("models").children].filter(b => b.ariaPressed === "true").map(b => b.dataset.model);
const OWN = "own";

// -- models and prompt ---------------------------------------------------------------------------------------------------

function toggle(button) {
  const on = button.ariaPressed === "true";
  if (on && chosen().length === 1) return;
  button.ariaPressed = String(!on);
  describe();
}

function describe() {
  const style = at("style").value;
  at("own").hidden = style !== OWN;
  at("prompt").hidden = style === OWN;
  at("prompt").textContent = about.styles[style] ?? "";
  if (style === "two-shot") at("prompt").append(` (plus ${about.two_shot.length} example turns)`);
  at("chosen").textContent = `${chosen().join(", ")} · ${[...new Set(chosen().map(promptOf))].join(" and ")} prompt`;
}

const PROMPTED = "prompted-base";
function promptOf(model) {
  if (model === PROMPTED) return "constitution";
  if (at("style").value !== OWN) return at("style").value;
  return at("own").value.trim() ? "custom" : about.style;
}

function request(model, message) {
  const body = { model, stream: true, stream_options: { include_usage: true }, messages: [] };
  if (model !== PROMPTED) {
    const own = at("own").value.trim();
    if (at("style").value !== OWN) body.style = at("style").value;
    else if (own) body.messages.push({ role: "system", content: own });
    for (const turn of turns) {
      const answer = turn.responses.get(model);
      if (!answer || answer.failed || !answer.text) continue;
      body.messages.push({ role: "user", content: turn.message }, { role: "assistant", content: answer.text });
    }
  }
  body.messages.push({ role: "user", content: message });
  for (const name of ["temperature", "top_p", "max_tokens", "seed"]) {
    if (at(name).value !== "") body[name] = Number(at(name).value);
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

async function respond(model, body, place, turn, signal) {
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
      if (thought) place.thoughts.appendData(thought);
      if (thought) place.thinking.hidden = false;
      if (content) place.text.appendData(content);
      result.text += content ?? "";
      if (content || thought) follow();
    }
    if (!finish) throw new Error("The connection ended before the response.");
  } catch (error) {
    if (error.name === "AbortError") finish = "stopped";
    else {
      result.failed = true;
      const reason = error instanceof TypeError ? "The server does not respond." : error.message;
      place.column.append(make("p", "error pre", reason));
    }
  }
  place.column.ariaBusy = "false";
  if (!result.failed) describeResponse(place, result, { body, finish, usage, note, first, began, ended: performance.now() });
}

function describeResponse(place, result, { body, finish, usage, note, first, began, ended }) {
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
    copy.hidden = !navigator.clipboard; // missing beyond loopback without TLS
    copy.onclick = async () => {
      await navigator.clipboard.writeText(result.text);
      copy.textContent = "copied";
      setTimeout(() => { copy.textContent = "copy"; }, 1200);
    };
    tools.append(copy);
  } else if (finish !== "stopped") place.column.append(make("p", "error", "Empty response: the model stopped at once."));
  if (result.text || finish !== "stopped") tools.append(...marks(place, body, result.text));
  meta.append(tools);
  place.column.insertBefore(meta, place.column.querySelector("form"));
}

// -- marks: good or bad, with a note ----------------------------------------------------------------------------------

const NOTE_HINTS = { good: "What is good about it?", bad: "What should be different?" };

function marks(place, body, answer) {
  const prompt = place.prompt === "custom" ? OWN : place.prompt;
  const system = body.messages[0].role === "system" ? body.messages[0].content : "";
  const entry = {
    model: body.model, prompt, answer, thoughts: place.thoughts.data, ...(system && { system }),
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
    at("message").focus(); // leaving the field saves the note
  };
  place.column.append(form);
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
  const message = at("message").value.trim();
  const invalid = [...document.querySelectorAll(".fields input")].find(input => !input.checkValidity());
  if (!message || running || !about) return;
  if (invalid) {
    at("rail").open = at("sampling").open = true;
    invalid.reportValidity();
    return;
  }
  const models = chosen();
  const place = make("section", "turn"), answers = make("div", "answers");
  place.append(make("p", "message pre", message), answers);
  answers.style.setProperty("--answers", models.length);
  const turn = { message, responses: new Map() };
  const bodies = models.map(model => request(model, message));
  turns.push(turn);
  recalled = message;
  at("message").value = "";
  at("empty").hidden = true;
  at("dialogue").append(place);
  running = new AbortController();
  setBusy(true);
  const columns = models.map(column);
  answers.append(...columns.map(c => c.column));
  place.scrollIntoView({ block: "start" });
  const { signal } = running;
  await Promise.all(models.map((model, i) => respond(model, bodies[i], columns[i], turn, signal)));
  running = null;
  setBusy(false);
  follow();
}

function setBusy(isBusy) {
  at("send").textContent = isBusy ? "Stop" : "Send";
  at("state").textContent = isBusy ? "generating; Esc stops" : "";
}

function stop() {
  running?.abort();
}

function begin() {
  stop();
  turns = [];
  at("dialogue").replaceChildren();
  at("empty").hidden = false;
  at("message").focus();
}

let pinned = true;
addEventListener("scroll", () => {
  pinned = scrollY + innerHeight > document.documentElement.scrollHeight - 80;
}, { passive: true });
function follow() {
  if (pinned) scrollTo({ top: document.documentElement.scrollHeight, behavior: "instant" });
}

// -- keys -------------------------------------------------------------------------------------------------------------

at("ask").addEventListener("submit", event => {
  event.preventDefault();
  if (running) stop();
  else send();
});
at("message").addEventListener("keydown", event => {
  if (event.isComposing) return;
  if (event.key === "Enter" && !event.shiftKey) {
    event.preventDefault();
    send();
  } else if (event.key === "ArrowUp" && !at("message").value && recalled) {
    event.preventDefault();
    at("message").value = recalled;
  }
});
document.addEventListener("keydown", event => {
  if (event.key === "Escape") stop();
  const typing = event.target.closest("input, textarea, select");
  if (event.altKey && !event.ctrlKey && !event.metaKey) {
    const button = at("models").children[Number(event.code.replace("Digit", "")) - 1];
    if (event.code.startsWith("Digit") && button) {
      event.preventDefault();
      toggle(button);
    } else if (event.code === "KeyN") {
      event.preventDefault();
      begin();
    }
  } else if (!typing && event.key.length === 1 && event.key !== " " && !event.ctrlKey && !event.metaKey) {
    at("message").focus(); // so that the key is typed there
  }
});
at("new").addEventListener("click", begin);
at("style").addEventListener("change", describe);
at("own").addEventListener("input", describe);

// -- the run ----------------------------------------------------------------------------------------------------------

async function open() {
  const response = await fetch("/about");
  if (!response.ok) throw new Error(await failure(response));
  about = await response.json();
  document.title = `${about.assistant} · ${about.run}`;
  at("run").textContent = about.run;
  at("assistant").textContent = about.assistant;
  at("title").textContent = `Talk to ${about.assistant}`;
  at("lead").textContent = "Chat with one model, or with several side by side. " + (about.fake
    ? "The fake engine has no model: it generates random words."
    : `They share the base model ${about.base}. They were trained on single turns, so later turns may be weaker.`);
  about.models.forEach(({ id, about: words }, number) => {
    const button = make("button");
    button.type = "button";
    button.dataset.model = id;
    button.ariaPressed = String(id === about.default);
    button.append(make("b", "", id), make("kbd", "", `Alt ${number + 1}`), make("i", "", words));
    button.onclick = () => toggle(button);
    at("models").append(button);
  });
  at("last-key").textContent = about.models.length;
  for (const style of [...Object.keys(about.styles), OWN]) {
    const option = make("option", "", style === OWN ? "custom" : style);
    option.value = style;
    at("style").append(option);
  }
  at("style").value = about.style;
  for (const [name, value] of Object.entries(about.defaults)) at(name).value = value;
  at("max_tokens").max = about.limits.max_tokens;
  const wide = matchMedia("(min-width: 62.01rem)");
  const unfold = () => { at("rail").open = wide.matches; };
  wide.addEventListener("change", unfold);
  unfold();
  describe();
}

open().catch(error => { at("state").textContent = error.message; });
