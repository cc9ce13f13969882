// One row for each sequence in the batch and the queue.

import { count, element, plural } from "/static/format.js";

const MAX_ROWS = 8;

export class Batch {
  constructor(list) {
    this.list = list;
  }

  /** @param total how many there are, of which `sequences` may be the first */
  show(sequences, total) {
    const rows = sequences.slice(0, MAX_ROWS).map(row);
    if (total > rows.length) rows.push(element("li", { class: "muted" }, `… ${count(total - rows.length)} more`));
    if (!total) rows.push(element("li", { class: "muted" }, "Nothing to do."));
    this.list.replaceChildren(...rows);
  }
}

/** A bar of the prompt, cached and computed part, and of what was generated. */
function row(sequence) {
  const { prompt_tokens: prompt, completion_tokens: completion, cached_tokens: cached } = sequence;
  const computed = Math.max(0, Math.min(sequence.computed_tokens, prompt) - cached);
  const bar = element("span", { class: "bar" });
  const parts = { cached, computed, todo: prompt - cached - computed, output: completion };
  for (const [name, tokens] of Object.entries(parts)) {
    if (tokens <= 0) continue;
    bar.append(element("i", { class: name }));
    bar.lastChild.style.flexGrow = tokens;
  }
  const title = `${plural(prompt, "prompt token")}, ${count(cached)} cached; ${count(completion)} generated`;
  const label = sequence.is_running ? `${count(prompt)} + ${count(completion)}` : `${count(prompt)} waiting`;
  return element("li", { title, class: sequence.is_running ? "" : "waiting" }, bar, element("span", {}, label));
}
