// Elements and requests. Texts of a run become text nodes only, and only in this module.

export function h(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export async function ask(name, query = {}, signal = undefined) {
  const parameters = Object.entries(query).filter(([, value]) => value !== undefined && value !== null);
  const response = await fetch(`/api/${name}?${new URLSearchParams(parameters)}`, { signal });
  return result(response);
}

export async function send(name, value) {
  const response = await fetch(`/api/${name}`, {
    method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(value),
  });
  return result(response);
}

async function result(response) {
  const value = await response.json();
  if (!response.ok) throw new Error(typeof value.error === "string" ? value.error : value.error?.message ?? response.statusText);
  return value;
}

export const number = (value) => value.toLocaleString("en-GB");
export const plural = (value, word) => `${number(value)} ${word}${value === 1 ? "" : "s"}`;

export function time(seconds) {
  if (seconds < 60) return `${Math.round(seconds)} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

export const SOURCES = {
  self_instruct: "Self-Instruct", red_team: "red-teaming", user: "user prompts", identity: "identity", topics: "topics",
};
