// Requests to the server: with the key where one is needed, errors with the field at fault, and streams of events.

import { byId } from "/static/format.js";

const KEY = "sgjax-api-key";
let asking = null; // one dialog for all who need the key

/** What the server answered in place of what was asked for. */
export class ApiError extends Error {
  /** @param {string|null} param the request's field that is at fault */
  constructor(status, message, param = null, code = null) {
    super(message);
    this.status = status;
    this.param = param;
    this.code = code;
  }
}

/** The response to a request, once it is a good one. Asks for a key when the server wants one. Throws ApiError. */
export async function request(path, { body, signal } = {}) {
  for (;;) {
    const key = sessionStorage.getItem(KEY);
    const headers = key ? { Authorization: `Bearer ${key}` } : {};
    const options = { headers, signal };
    if (body !== undefined) {
      Object.assign(options, { method: "POST", body: JSON.stringify(body) });
      headers["Content-Type"] = "application/json";
    }
    const response = await fetch(path, options);
    if (response.ok) return response;
    const error = await errorOf(response);
    if (response.status !== 401) throw error;
    // Somebody else may have been given the key meanwhile.
    if (sessionStorage.getItem(KEY) === key && !(await askForKey(error.message))) throw error;
  }
}

/** Whether a key was given. */
export const hasKey = () => sessionStorage.getItem(KEY) !== null;

async function errorOf(response) {
  try {
    const { message, param, code } = (await response.json()).error;
    return new ApiError(response.status, message, param, code);
  } catch {
    return new ApiError(response.status, `the server answered ${response.status} ${response.statusText}`);
  }
}

function askForKey(message) {
  asking ??= new Promise((resolve) => {
    const dialog = byId("key-dialog");
    byId("key-message").textContent = message;
    byId("key").value = "";
    byId("key-cancel").onclick = () => dialog.close("");
    dialog.querySelector("form").onsubmit = (event) => {
      event.preventDefault();
      sessionStorage.setItem(KEY, byId("key").value.trim());
      dialog.close("given");
    };
    dialog.returnValue = "";
    dialog.onclose = () => {
      asking = null;
      resolve(dialog.returnValue === "given");
    };
    dialog.showModal();
  });
  return asking;
}

/** The JSON objects of a stream of events, until it ends. An error that comes in the stream is thrown. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const whole = (held + value).split("\n\n");
      held = whole.pop();
      for (const event of whole) {
        const data = event.replace(/^data: /, "");
        if (data === "[DONE]") return;
        const content = JSON.parse(data);
        if (content.error) throw new ApiError(0, content.error.message, content.error.param, content.error.code);
        yield content;
      }
    }
  } finally {
    reader.cancel().catch(() => {}); // whoever stops early stops the server too
  }
}
