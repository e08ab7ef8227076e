// Elements and requests. Texts of a run become text nodes, here and nowhere else.

export function h(name, given = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(given)) {
    if (value === undefined || value === null || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export async function ask(name, query = {}, signal = undefined) {
  const given = Object.entries(query).filter(([, value]) => value !== undefined && value !== null);
  const answer = await fetch(`/api/${name}?${new URLSearchParams(given)}`, { signal });
  const value = await answer.json();
  if (!answer.ok) throw new Error(typeof value.error === "string" ? value.error : value.error?.message ?? answer.statusText);
  return value;
}

export async function tell(name, value) {
  const answer = await fetch(`/api/${name}`, {
    method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(value),
  });
  const said = await answer.json();
  if (!answer.ok) throw new Error(typeof said.error === "string" ? said.error : said.error?.message ?? answer.statusText);
  return said;
}

export const number = (value) => value.toLocaleString("en-GB");
export const plural = (value, word) => `${number(value)} ${word}${value === 1 ? "" : "s"}`;

export function time(seconds) {
  if (seconds < 60) return `${Math.round(seconds)} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

export const SOURCES = {
  self_instruct: "Self-Instruct", red_team: "red-teaming", user: "the user's", identity: "identity", topics: "topics",
};
