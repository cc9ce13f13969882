// What an answer cost, and what the cache gave it: a line, and all of it behind the line.

import { count, element, plural, seconds } from "/static/format.js";

const PARTS = {
  cached: "found in the cache",
  shared_in_flight: "computed by another request meanwhile",
  not_in_cache: "new",
  evicted: "cached once, evicted since",
  logprobs_recomputed: "computed again for log-probabilities",
  cache_disabled: "not looked up: the cache is off",
  page_remainder: "behind the last whole page",
  last_token: "the last one, always computed",
};

/** @param receipt the server's, of one answer */
export function receiptOf(receipt) {
  const { prompt_tokens: prompt, cached_tokens: cached, completion_tokens: completion } = receipt;
  const meter = element("span", { class: "meter" }, element("i"));
  meter.firstChild.style.width = `${(100 * cached) / prompt}%`;
  const line = [plural(completion, "token")];
  const decodeS = receipt.e2e_s - receipt.ttft_s; // the first token's time is the prompt's
  if (completion > 1 && decodeS > 0) line.push(`${((completion - 1) / decodeS).toFixed(1)} tokens/s`);
  if (completion > 0) line.push(`first after ${seconds(receipt.ttft_s)}`);
  const summary = element("summary", { class: "receipt" }, ...line.map((text) => element("span", {}, text)));
  summary.append(element("span", {}, meter, `prompt: ${count(cached)} cached, ${count(prompt - cached)} computed`));
  return element("details", { class: "cost" }, summary, table(receipt));
}

function table(receipt) {
  const rows = [["Waited in the queue", seconds(receipt.queue_s)]];
  for (const [name, tokens] of Object.entries(receipt.prompt_parts ?? {})) {
    if (tokens) rows.push([`Prompt, ${PARTS[name] ?? name}`, plural(tokens, "token")]);
  }
  rows.push(["Steps", count(receipt.steps)], ["Pages held at the end", count(receipt.pages)]);
  if (receipt.forced_tokens) rows.push(["Forced by the schema, not sampled", plural(receipt.forced_tokens, "token")]);
  if (receipt.preemptions) rows.push(["Had to make room", plural(receipt.preemptions, "time")]);
  return element("dl", {}, ...rows.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]));
}
