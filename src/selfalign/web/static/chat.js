// The chat page. Text of models and people only ever becomes text nodes: nothing here makes HTML of a string.

const at = id => document.getElementById(id);
const make = (tag, name = "", text = "") => {
  const made = document.createElement(tag);
  if (name) made.className = name;
  if (text) made.append(text);
  return made;
};

let about;
let turns = []; // {asked, answers: Map(model -> {text, failed})}
let running = null; // the AbortController of the answers that come in
let recalled = "";

const chosen = () => [...at("models").children].filter(b => b.ariaPressed === "true").map(b => b.dataset.model);
const OWN = "own";

// -- what is chosen ---------------------------------------------------------------------------------------------------

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
  if (style === "two-shot") at("prompt").append(` (and ${about.two_shot.length} worked turns)`);
  at("chosen").textContent = `${chosen().join(", ")} · ${[...new Set(chosen().map(promptOf))].join(" and ")} prompt`;
}

const PROMPTED = "prompted-base";
function promptOf(model) {
  if (model === PROMPTED) return "constitution";
  if (at("style").value !== OWN) return at("style").value;
  return at("own").value.trim() ? "your own" : about.style;
}

function request(model, asked) {
  const body = { model, stream: true, stream_options: { include_usage: true }, messages: [] };
  if (model !== PROMPTED) {
    const own = at("own").value.trim();
    if (at("style").value !== OWN) body.style = at("style").value;
    else if (own) body.messages.push({ role: "system", content: own });
    for (const turn of turns) {
      const answer = turn.answers.get(model);
      if (!answer || answer.failed || !answer.text) continue;
      body.messages.push({ role: "user", content: turn.asked }, { role: "assistant", content: answer.text });
    }
  }
  body.messages.push({ role: "user", content: asked });
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
    const whole = held.split("\n\n");
    held = whole.pop();
    for (const one of whole) {
      if (one === "data: [DONE]") return;
      yield JSON.parse(one.slice(6));
    }
  }
}

async function failure(response) {
  if (response.status === 401) return "Signed out: load the page again.";
  const wait = response.headers.get("retry-after");
  const said = await response.json().then(found => found.error.message, () => response.statusText);
  return wait ? `The server is busy: ${said}. Again in ${wait} s.` : `${said[0].toUpperCase()}${said.slice(1)}.`;
}

async function answer(model, body, place, turn, signal) {
  const began = performance.now();
  const found = { text: "", failed: false };
  turn.answers.set(model, found);
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
      found.text += content ?? "";
      if (content || thought) follow();
    }
    if (!finish) throw new Error("The server ended before the answer did.");
  } catch (error) {
    if (error.name === "AbortError") finish = "stopped";
    else {
      found.failed = true;
      const lost = error instanceof TypeError ? "The server does not answer." : error.message;
      place.column.append(make("p", "wrong said", lost));
    }
  }
  place.column.ariaBusy = "false";
  if (!found.failed) describeAnswer(place, found, { body, finish, usage, note, first, began, ended: performance.now() });
}

function describeAnswer(place, found, { body, finish, usage, note, first, began, ended }) {
  const said = [];
  const tokens = usage?.completion_tokens;
  if (tokens) said.push(`${tokens} token${tokens === 1 ? "" : "s"}`);
  if (tokens > 1 && ended > first) said.push(`${((tokens - 1) / (ended - first) * 1000).toFixed(0)} a second`);
  if (first) said.push(`first after ${((first - began) / 1000).toFixed(2)} s`);
  if (finish === "length") said.push(`cut at ${body.max_tokens ?? about.defaults.max_tokens}`);
  if (finish === "stopped") said.push("stopped");
  if (note?.escaped) said.push(`control tokens escaped: ${note.escaped.join(" ")}`);
  if (note?.reads_as_turns) said.push("the message holds what reads as a turn of its own");
  const meta = make("p", "meta"), tools = make("span", "tools");
  meta.append(make("bdi", "", said.join(" · ")));
  if (found.text) {
    const copy = make("button", "quiet", "copy");
    copy.type = "button";
    copy.hidden = !navigator.clipboard; // there is none beyond loopback without TLS
    copy.onclick = async () => {
      await navigator.clipboard.writeText(found.text);
      copy.textContent = "copied";
      setTimeout(() => { copy.textContent = "copy"; }, 1200);
    };
    tools.append(copy);
  } else if (finish !== "stopped") place.column.append(make("p", "wrong", "No answer: the model ended at once."));
  if (found.text || finish !== "stopped") tools.append(...marks(place, body, found.text));
  meta.append(tools);
  place.column.insertBefore(meta, place.column.querySelector("form"));
}

// -- marks: good or bad, with a note ----------------------------------------------------------------------------------

const ASKED = { good: "What is good about it?", bad: "What should be otherwise?" };

function marks(place, body, answer) {
  const prompt = place.prompt === "your own" ? OWN : place.prompt;
  const system = body.messages[0].role === "system" ? body.messages[0].content : "";
  const said = {
    model: body.model, prompt, answer, thoughts: place.thoughts.data, ...(system && { system }),
    turns: body.messages.filter(message => message.role !== "system"), settings: {},
  };
  for (const [name, key] of [["temperature"], ["top_p"], ["max_tokens", "max_new_tokens"], ["seed"]]) {
    if (body[name] !== undefined) said.settings[key ?? name] = body[name];
  }
  const form = make("form", "note"), note = make("textarea"), state = make("span", "told");
  note.rows = 1;
  note.maxLength = 2000;
  note.enterKeyHint = "done";
  note.autocomplete = "off";
  state.role = "status";
  form.append(note, state);
  form.hidden = true;
  let verdict = "";
  const tell = async wanted => {
    try {
      const response = await fetch("/feedback", {
        method: "POST", headers: { "content-type": "application/json" },
        body: JSON.stringify({ ...said, verdict: wanted, note: wanted ? note.value : "" }),
      });
      if (!response.ok) throw new Error(await failure(response));
      verdict = wanted;
      for (const button of buttons) button.ariaPressed = String(button.textContent === verdict);
      form.hidden = !verdict;
      if (!verdict) note.value = "";
      note.placeholder = note.ariaLabel = ASKED[verdict] ?? "";
      state.textContent = note.value.trim() ? "Kept with the note." : "Kept. Nothing is trained on it.";
    } catch (error) {
      form.hidden = false;
      state.textContent = error instanceof TypeError ? "The server does not answer." : error.message;
    }
  };
  const buttons = Object.keys(ASKED).map(name => {
    const button = make("button", "quiet", name);
    button.type = "button";
    button.ariaPressed = "false";
    button.title = `Mark this answer as ${name}, for changes of the constitution`;
    button.onclick = async () => {
      await tell(verdict === name ? "" : name);
      if (verdict) note.focus();
      follow();
    };
    return button;
  });
  note.oninput = () => { state.textContent = "Enter keeps the note."; };
  note.onchange = () => tell(verdict);
  form.onsubmit = event => event.preventDefault();
  note.onkeydown = event => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    at("message").focus(); // what was changed is kept as the field is left
  };
  place.column.append(form);
  return buttons;
}

// -- the dialogue -----------------------------------------------------------------------------------------------------

function column(model) {
  const made = make("article", "answer");
  made.ariaBusy = "true";
  const head = make("h3", "", model);
  const alone = model === PROMPTED && turns.length > 1 ? ", this message alone" : "";
  head.append(make("span", "", ` · ${promptOf(model)} prompt${alone}`));
  const thinking = make("details");
  const thoughts = make("p", "thoughts said"), text = make("p", "text said");
  thinking.append(make("summary", "", "Thoughts"), thoughts);
  thinking.hidden = true;
  const nodes = [document.createTextNode(""), document.createTextNode("")];
  thoughts.append(nodes[0]);
  text.append(nodes[1]);
  made.append(head, thinking, text);
  return { column: made, prompt: promptOf(model), thinking, thoughts: nodes[0], text: nodes[1] };
}

async function send() {
  const asked = at("message").value.trim();
  const wrong = [...document.querySelectorAll(".fields input")].find(input => !input.checkValidity());
  if (!asked || running || !about) return;
  if (wrong) {
    at("rail").open = at("sampling").open = true;
    wrong.reportValidity();
    return;
  }
  const models = chosen();
  const place = make("section", "turn"), answers = make("div", "answers");
  place.append(make("p", "asked said", asked), answers);
  answers.style.setProperty("--answers", models.length);
  const turn = { asked, answers: new Map() };
  const bodies = models.map(model => request(model, asked));
  turns.push(turn);
  recalled = asked;
  at("message").value = "";
  at("empty").hidden = true;
  at("dialogue").append(place);
  running = new AbortController();
  busy(true);
  const columns = models.map(column);
  answers.append(...columns.map(c => c.column));
  place.scrollIntoView({ block: "start" });
  const { signal } = running;
  await Promise.all(models.map((model, i) => answer(model, bodies[i], columns[i], turn, signal)));
  running = null;
  busy(false);
  follow();
}

function busy(now) {
  at("send").textContent = now ? "Stop" : "Send";
  at("state").textContent = now ? "answering; Esc stops" : "";
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
    at("message").focus(); // the key lands there
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
  at("lead").textContent = "One model answers, or several side by side. " + (about.fake
    ? "The fake engine runs no model: its texts are random words."
    : `They share one base model (${about.base}). Training was single-turn: later turns may be weaker.`);
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
    const option = make("option", "", style === OWN ? "your own" : style);
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
