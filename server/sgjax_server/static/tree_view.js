// The radix tree as it changes: nodes move to their new places, and those that were evicted fade.

import { byId, count, element, plural, seconds } from "/static/format.js";
import { layout } from "/static/tree_layout.js";

const FADE_MS = 5000;
const LATELY_S = 20; // the colour of a node that was used this long ago has cooled to a third
const FIRST_LIMIT = 40;
const NUM_EVICTED = 6;

const visible = (text) => text.replaceAll("\n", "⏎ ").replaceAll("\t", "⇥ ");

export class TreeView {
  #known = new Map(); // id → node, of the last snapshot
  #gone = new Map(); // id → node that was evicted and still fades
  #elements = new Map(); // id → its element
  #lastOrder = null; // of evictions
  #limit = FIRST_LIMIT;
  #focused = null;
  #boxes = [];
  #snapshot = null;

  constructor() {
    this.root = byId("tree");
    this.root.addEventListener("keydown", (event) => this.#move(event));
    byId("tree-more").addEventListener("click", () => {
      this.#limit *= 3;
      this.#draw();
    });
    new ResizeObserver(() => this.#snapshot && this.#draw()).observe(this.root);
  }

  show(tree, withTexts) {
    this.#noteEvictions(tree.evicted);
    this.#snapshot = { tree, withTexts };
    this.#known = new Map(tree.nodes.map((node) => [node.id, node]));
    this.#draw();
    this.#listEvicted(tree.evicted, withTexts);
  }

  /** What was seen and is gone now stays for a moment. */
  #noteEvictions(evicted) {
    const now = Date.now();
    for (const part of evicted) {
      const node = this.#known.get(part.node);
      if (this.#lastOrder === null || part.order <= this.#lastOrder || !node) continue;
      if (part.is_whole) this.#gone.set(part.node, { ...node, isGone: true, num_children: 0, untilMs: now + FADE_MS });
      else this.#elements.get(part.node)?.animate([{ backgroundColor: "var(--warm)" }, {}], 1500);
    }
    this.#lastOrder = evicted.at(-1)?.order ?? this.#lastOrder ?? 0;
    for (const [id, { untilMs }] of this.#gone) if (untilMs < now) this.#gone.delete(id);
  }

  #draw() {
    const { tree, withTexts } = this.#snapshot;
    const nodes = [...tree.nodes.slice(0, this.#limit), ...this.#gone.values()]; // those that matter most come first
    const { boxes, width, height } = layout(nodes, tree.num_roots, this.root.clientWidth);
    this.#boxes = boxes.sort((a, b) => a.y - b.y || a.x - b.x);
    const stale = new Set(this.#elements.keys());
    for (const box of this.#boxes) {
      const id = box.node ? box.node.id : `more ${box.of}`;
      stale.delete(id);
      if (!this.#elements.has(id)) this.#elements.set(id, this.#make(id));
      this.#dress(this.#elements.get(id), box, withTexts);
    }
    for (const id of stale) {
      this.#elements.get(id).remove();
      this.#elements.delete(id);
    }
    this.root.style.setProperty("--height", `${height}px`);
    this.root.style.setProperty("--width", `${width}px`);
    this.#summarise(tree);
    this.#focus(this.#elements.has(this.#focused) ? this.#focused : this.#firstId(), false);
    this.#describe();
  }

  #summarise(tree) {
    const shown = Math.min(tree.nodes.length, this.#limit);
    const part = shown < tree.num_nodes ? `; the ${count(shown)} in use or used last are shown` : "";
    byId("tree-total").textContent = tree.num_nodes
      ? `${plural(tree.num_nodes, "node")}, ${plural(tree.num_tokens, "token")}${part}`
      : "nothing is cached yet";
    byId("tree-more").hidden = shown >= tree.nodes.length;
    byId("tree-more").textContent = `Show more (${count(tree.num_nodes - shown)} are left out)`;
  }

  #make(id) {
    const made = element("div", { role: "treeitem", tabindex: -1 });
    made.append(element("span", { class: "tokens" }), element("span", { class: "text" }), element("span", { class: "users" }));
    made.addEventListener("focus", () => {
      this.#focus(id, false);
      this.#describe();
    });
    made.addEventListener("blur", () => this.#describe(null));
    made.addEventListener("pointerenter", () => this.#describe(id));
    made.addEventListener("pointerleave", () => this.#describe());
    this.root.append(made);
    return made;
  }

  #dress(holder, { node, more, x, y, w, h, depth }, withTexts) {
    Object.assign(holder.style, { left: `${x}px`, top: `${y}px`, width: `${w}px`, height: `${h}px` });
    holder.setAttribute("aria-level", depth);
    const [tokens, text, users] = holder.children;
    if (!node) {
      holder.className = "more";
      text.textContent = `… ${count(more)} more`;
      return;
    }
    holder.className = node.isGone ? "gone" : node.num_users ? "in-use" : "idle";
    holder.classList.toggle("tall", h > 40);
    holder.style.setProperty("--lines", Math.max(1, Math.floor((h - 28) / 16)));
    holder.style.setProperty("--warmth", Math.exp(-node.idle_s / LATELY_S).toFixed(2));
    tokens.textContent = count(node.num_tokens);
    text.textContent = withTexts ? visible(node.text) : "";
    users.textContent = node.num_users ? `×${node.num_users}` : "";
    holder.setAttribute("aria-label", describe(node));
  }

  // --- what is looked at ------------------------------------------------------------------------------------

  #firstId() {
    return this.#boxes.find((box) => box.node)?.node.id ?? null;
  }

  #focus(id, reallyFocus) {
    this.#elements.get(this.#focused)?.setAttribute("tabindex", -1);
    this.#focused = id;
    const holder = this.#elements.get(id);
    holder?.setAttribute("tabindex", 0);
    if (reallyFocus) holder?.focus();
  }

  /** Says more of the node under the pointer, or of the one with the focus. */
  #describe(id = this.root.contains(document.activeElement) ? this.#focused : null) {
    const node = this.#known.get(id);
    const hidden = this.#snapshot?.withTexts ? "" : " Texts are hidden here; the admin key may show them.";
    const hint = `Point at a node, or walk with the arrow keys: who shares it, how often it was found, when last.${hidden}`;
    byId("tree-detail").textContent = node ? describe(node) + (node.text ? `: “${visible(node.text)} …”` : "") : hint;
  }

  /** Arrow keys: to what comes before, to what follows, up and down. */
  #move(event) {
    const nodes = this.#boxes.filter((box) => box.node);
    const at = nodes.findIndex(({ node }) => node.id === this.#focused);
    if (at < 0) return;
    const target = {
      ArrowLeft: () => nodes[at].node.parent || null,
      ArrowRight: () => nodes.find(({ node }) => node.parent === this.#focused)?.node.id,
      ArrowDown: () => nodes[at + 1]?.node.id,
      ArrowUp: () => nodes[at - 1]?.node.id,
      Home: () => nodes[0].node.id,
      End: () => nodes.at(-1).node.id,
    }[event.key];
    if (!target) return;
    event.preventDefault();
    const id = target();
    if (id) this.#focus(id, true);
  }

  #listEvicted(evicted, withTexts) {
    const rows = evicted.slice(-NUM_EVICTED).reverse().map((part) => {
      const row = element("li", {});
      row.style.opacity = Math.max(0.35, 1 - part.age_s / 60);
      row.append(element("b", {}, `${count(part.num_tokens)} tokens`), part.is_whole ? " " : " off the end of ");
      if (withTexts) row.append(element("span", { class: "text" }, visible(part.text)));
      row.append(element("span", { class: "muted" }, ` ${seconds(part.age_s)} ago`));
      return row;
    });
    byId("evicted").replaceChildren(...(rows.length ? rows : [element("li", { class: "muted" }, "Nothing yet.")]));
  }
}

/** A node in words. */
function describe(node) {
  if (node.isGone) return `${plural(node.num_tokens, "token")}, evicted`;
  const use = node.num_users ? `shared by ${plural(node.num_users, "request")} now` : `idle for ${seconds(node.idle_s)}`;
  const namespace = node.namespace ? `, in namespace ${node.namespace}` : "";
  return (
    `${plural(node.num_tokens, "token")} in ${plural(node.num_pages, "page")}, ${use}, ` +
    `found ${plural(node.num_hits, "time")}${namespace}`
  );
}
