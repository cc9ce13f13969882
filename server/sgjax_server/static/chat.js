// The conversation: what was said, and asking for the next answer.

import { ApiError, events, hasKey, request } from "/static/api.js";
import { copyFrom, flash } from "/static/clipboard.js";
import { curl } from "/static/curl.js";
import { byId, element } from "/static/format.js";
import * as settings from "/static/settings.js";
import { AnswerTurn, UserTurn } from "/static/turns.js";

const PATH = "/v1/chat/completions";
const EXAMPLES = ["What is the capital of France?", "Explain a radix tree to a child.", "Write a haiku about rain."];

const log = byId("conversation");
const prompt = byId("prompt");
let messages = []; // {role, content, node}, in order
let running = null; // AbortController of the answer that is coming

/** What is sent for an answer to `history`. Throws SettingError. */
function bodyFor(history) {
  const system = settings.systemPrompt();
  const spoken = history.map(({ role, content }) => ({ role, content }));
  return {
    model: "default",
    messages: system ? [{ role: "system", content: system }, ...spoken] : spoken,
    ...settings.sampling(),
    stream: true,
    return_receipt: true,
  };
}

/** Says something, after the first `position` messages; those behind are forgotten. */
function say(text, position = messages.length) {
  running?.abort();
  forgetFrom(position);
  const { node } = new UserTurn(text, (edited) => say(edited, position));
  messages.push({ role: "user", content: text, node });
  log.append(node);
  answer();
}

function forgetFrom(position) {
  for (const { node } of messages.splice(position)) node.remove();
  log.querySelectorAll(".turn").forEach((turn) => messages.some(({ node }) => node === turn) || turn.remove());
  byId("welcome").hidden = true;
}

/** Lets the model answer what was said last. */
async function answer() {
  const position = messages.length;
  const turn = new AnswerTurn(() => {
    running?.abort();
    forgetFrom(position);
    answer();
  });
  log.append(turn.node);
  turn.node.scrollIntoView({ block: "nearest" });
  const controller = new AbortController();
  setRunning(controller);
  const end = {};
  try {
    settings.clearErrors();
    const response = await request(PATH, { body: bodyFor(messages), signal: controller.signal });
    for await (const chunk of events(response)) {
      for (const choice of chunk.choices) {
        turn.add(choice.delta);
        end.finish = choice.finish_reason ?? end.finish;
        end.receipt = choice.sgjax?.receipt ?? end.receipt;
      }
    }
  } catch (error) {
    if (controller.signal.aborted) end.stopped = true;
    else end.error = explain(error);
  }
  if (running === controller) setRunning(null);
  turn.finish(end);
  if (turn.content && turn.node.isConnected) {
    messages.push({ role: "assistant", content: turn.content, node: turn.node });
  }
}

/** Shows an error at its field too, where there is one. */
function explain(error) {
  const message = error.param && !error.message.startsWith(error.param) ? `${error.param}: ${error.message}` : error.message;
  settings.showError(error.param, error.message);
  if (error instanceof ApiError || error.param) return message;
  return `the server could not be reached: ${error.message}`;
}

function setRunning(controller) {
  running = controller;
  byId("stop").hidden = controller === null;
  byId("send").hidden = controller !== null;
}

/** The request that "Send" would send, or the last one where nothing is written. */
function copyCurl() {
  settings.clearErrors();
  const next = prompt.value.trim();
  const last = messages.findLastIndex(({ role }) => role === "user");
  const history = next ? [...messages, { role: "user", content: next }] : messages.slice(0, last + 1);
  try {
    copyFrom(byId("copy-curl"), curl(PATH, bodyFor(history), { withKey: hasKey() }));
  } catch (error) {
    settings.showError(error.param, error.message);
    flash(byId("copy-curl"), "Not yet");
  }
}

/** Wires up the page. */
export function startChat() {
  byId("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    const text = prompt.value.trim();
    if (!text || running) return;
    prompt.value = "";
    say(text);
  });
  prompt.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      byId("composer").requestSubmit();
    }
  });
  byId("stop").addEventListener("click", () => running?.abort());
  document.addEventListener("keydown", (event) => event.key === "Escape" && running?.abort());
  byId("clear").addEventListener("click", () => {
    running?.abort();
    forgetFrom(0);
    byId("welcome").hidden = false;
    prompt.focus();
  });
  byId("copy-curl").addEventListener("click", copyCurl);
  byId("examples").append(
    ...EXAMPLES.map((text) => element("button", { type: "button", onclick: () => say(text) }, text))
  );
  log.addEventListener("grown", () => {
    // Follows the answer, unless the reader has scrolled away.
    if (log.scrollHeight - log.scrollTop - log.clientHeight < 160) log.scrollTop = log.scrollHeight;
  });
}
