// The live view: watches the engine and shows what it does.

import { events, request } from "/static/api.js";
import { Batch } from "/static/batch.js";
import { Chart } from "/static/chart.js";
import { byId, count, element, percent, plural, seconds, short } from "/static/format.js";
import { rates } from "/static/rates.js";
import { TreeView } from "/static/tree_view.js";

const RETRY_MS = 2000;
const TILES = {
  running: "Running",
  waiting: "Waiting",
  grammar: "Grammars",
  generated: "Generated / s",
  prompt: "Prompt / s",
  hits: "Cache hits",
  step: "Step",
};

export class LiveView {
  #controller = null;
  #before = null;
  #lastHitRate = null;
  #lastStepS = null;

  constructor() {
    this.chart = new Chart(byId("throughput"), ["prompt", "generated"]);
    this.batch = new Batch(byId("sequences"));
    this.tree = new TreeView();
    this.tiles = {};
    for (const [name, label] of Object.entries(TILES)) {
      this.tiles[name] = element("dd", {}, "–");
      byId("tiles").append(element("div", {}, element("dt", {}, label), this.tiles[name]));
    }
  }

  /** Begins or stops to watch. */
  watch(wanted) {
    if (wanted === (this.#controller !== null)) return;
    if (!wanted) {
      this.#controller.abort();
      this.#controller = null;
      return;
    }
    this.#controller = new AbortController();
    this.#follow(this.#controller.signal);
  }

  async #follow(signal) {
    while (!signal.aborted) {
      try {
        this.#before = null;
        this.chart.clear();
        for await (const snapshot of events(await request("/live", { signal }))) {
          this.#say("");
          this.#show(snapshot);
        }
      } catch (error) {
        if (signal.aborted) return;
        this.#say(error.status ? error.message : "The server cannot be reached; trying again.");
        if ([401, 404].includes(error.status)) {
          this.#controller = null; // asked for again when the view is opened again
          return;
        }
      }
      await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
    }
  }

  #say(message) {
    byId("live-status").textContent = message;
    byId("live-status").hidden = !message;
  }

  #show(snapshot) {
    const { stats } = snapshot;
    const rate = rates(this.#before, snapshot);
    this.#before = snapshot;
    const total = stats.counters.prompt_tokens ? stats.counters.cached_tokens / stats.counters.prompt_tokens : null;
    this.#lastHitRate = rate?.hitRate ?? this.#lastHitRate ?? total;
    this.#lastStepS = rate?.stepS ?? (stats.num_running ? this.#lastStepS : null);
    const tile = (name, text, title = "") => {
      this.tiles[name].textContent = text;
      this.tiles[name].parentElement.title = title;
    };
    tile("running", count(stats.num_running), "sequences in the batch");
    tile("waiting", count(stats.num_waiting), "sequences that wait for room");
    tile("grammar", count(stats.num_grammar_queue), "requests whose grammar is being compiled");
    tile("generated", rate ? short(rate.generated) : "–", `${count(stats.counters.generated_tokens)} tokens in all`);
    tile("prompt", rate ? short(rate.prompt) : "–", "prompt tokens computed, those from the cache left out");
    const hits = `of the prompt tokens admitted last; ${total === null ? "none so far" : `${percent(total)} in all`}`;
    tile("hits", this.#lastHitRate === null ? "–" : percent(this.#lastHitRate), hits);
    tile("step", this.#lastStepS === null ? "–" : seconds(this.#lastStepS), "time from one step to the next while busy");
    if (rate) this.chart.add(snapshot.at_s, [rate.prompt, rate.generated]);
    this.batch.show(snapshot.sequences, stats.num_running + stats.num_waiting);
    this.#showCache(stats.cache, snapshot.page_size);
    this.tree.show(snapshot.tree, snapshot.with_texts);
  }

  #showCache(cache, pageSize) {
    const used = cache.num_pages - cache.num_free;
    const parts = {
      locked: [cache.num_locked, "cached, in use"],
      cached: [cache.num_evictable, "cached, idle"],
      private: [used - cache.num_cached, "one sequence's own"],
      free: [cache.num_free, "free"],
    };
    byId("kv-total").textContent =
      `${plural(cache.num_pages, "page")} of ${pageSize} tokens, ${percent(used / cache.num_pages)} used, ` +
      `${plural(cache.num_evicted_pages, "page")} evicted so far`;
    const bar = byId("kv-bar");
    if (!bar.children.length) {
      for (const [name, [, label]] of Object.entries(parts)) {
        bar.append(element("i", { class: name }));
        byId("kv-legend").append(element("li", { class: `key ${name}` }, element("b"), ` ${label}`));
      }
    }
    Object.values(parts).forEach(([pages, label], i) => {
      bar.children[i].hidden = pages === 0;
      bar.children[i].style.flexGrow = pages;
      bar.children[i].title = `${plural(pages, "page")} ${label}`;
      byId("kv-legend").children[i].firstElementChild.textContent = count(pages);
    });
  }
}
