// System prompt, sampling parameters and the answer's schema.

import { byId, element } from "/static/format.js";

const NUMBERS = ["temperature", "top_p", "top_k", "min_p", "max_tokens", "seed"];
const form = byId("settings-form");

/** A value that cannot be sent. */
export class SettingError extends Error {
  constructor(name, message) {
    super(message);
    this.param = name;
  }
}

/** Placeholders say what happens where nothing is given. */
export function showDefaults(defaults) {
  const usual = { temperature: 1, top_p: 1, top_k: "off", min_p: 0, ...defaults };
  for (const [name, value] of Object.entries(usual)) {
    if (form.elements[name]) form.elements[name].placeholder = value;
  }
}

export const systemPrompt = () => form.elements.system.value;

/** The fields of a chat completion that are given. Throws SettingError. */
export function sampling() {
  const fields = {};
  for (const name of NUMBERS) {
    const input = form.elements[name];
    if (input.validity.badInput) throw new SettingError(name, "is not a number");
    if (input.value !== "") fields[name] = Number(input.value);
  }
  const schema = form.elements.response_format.value.trim();
  if (schema) {
    fields.response_format = { type: "json_schema", json_schema: { name: "answer", schema: parsed(schema), strict: true } };
  }
  return fields;
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new SettingError("response_format", `is not JSON: ${error.message}`);
  }
}

/** Shows an error at its field. False when no setting has this name. */
export function showError(param, message) {
  const input = param && form.elements[param.split(".")[0]];
  if (!input) return false;
  input.setAttribute("aria-invalid", "true");
  input.setAttribute("aria-describedby", `${input.name}-error`);
  input.after(element("span", { class: "field-error", id: `${input.name}-error` }, message.replace(`${param}: `, "")));
  toggle(true);
  input.focus();
  return true;
}

export function clearErrors() {
  form.querySelectorAll(".field-error").forEach((error) => error.remove());
  form.querySelectorAll("[aria-invalid]").forEach((input) => {
    input.removeAttribute("aria-invalid");
    input.removeAttribute("aria-describedby");
  });
}

/** Opens or closes the settings where they are not always there. */
export function toggle(open = !byId("chat").classList.contains("with-settings")) {
  byId("chat").classList.toggle("with-settings", open);
  byId("toggle-settings").setAttribute("aria-expanded", open);
}

form.addEventListener("input", clearErrors);
form.addEventListener("submit", (event) => event.preventDefault());
byId("toggle-settings").addEventListener("click", () => toggle());
