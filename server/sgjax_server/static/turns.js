// What one turn of the conversation looks like. Nothing here knows of requests.

import { count, element, plural, seconds } from "/static/format.js";

const button = (label, onclick) => element("button", { type: "button", class: "quiet", onclick }, label);

/** Text, with what is between fences as code. */
function showText(holder, text) {
  holder.replaceChildren(
    ...text.split(/```[^\n]*\n?/).map((part, i) => (i % 2 ? element("pre", {}, part.trimEnd()) : part))
  );
}

/** What the user said, to be edited: `onEdit(newText)`. */
export class UserTurn {
  constructor(text, onEdit) {
    this.text = element("div", { class: "text" }, text);
    this.tools = element("div", { class: "tools" }, button("Edit", () => this.edit(text, onEdit)));
    this.node = element("article", { class: "turn user", "aria-label": "You" }, this.text, this.tools);
  }

  edit(text, onEdit) {
    const box = element("textarea", { "aria-label": "Message" });
    box.value = text;
    const cancel = () => {
      box.replaceWith(this.text);
      this.tools.replaceChildren(button("Edit", () => this.edit(text, onEdit)));
    };
    const send = () => box.value.trim() && onEdit(box.value);
    box.addEventListener("keydown", (event) => {
      if (event.key === "Escape") cancel();
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        send();
      }
    });
    this.text.replaceWith(box);
    this.tools.replaceChildren(button("Send again", send), button("Cancel", cancel));
    box.focus();
  }
}

/** What the model says, while it comes and afterwards. */
export class AnswerTurn {
  content = "";
  reasoning = "";
  #due = false;
  #startedS = performance.now() / 1000;
  #firstS = null;

  /** `onRegenerate()` asks for another answer in its place. */
  constructor(onRegenerate) {
    this.answer = element("div", { class: "text answer" });
    this.thoughts = element("div", { class: "text" });
    this.summary = element("summary", {}, "Thinking …");
    this.details = element("details", { hidden: true }, this.summary, this.thoughts);
    this.tools = element("div", { class: "tools" });
    this.node = element("article", { class: "turn assistant streaming", "aria-label": "Model" });
    this.node.append(this.details, this.answer, this.tools);
    this.onRegenerate = onRegenerate;
  }

  /** One `delta` of the stream. */
  add({ content, reasoning_content: reasoning }) {
    if (!content && !reasoning) return;
    this.#firstS ??= performance.now() / 1000;
    this.content += content ?? "";
    this.reasoning += reasoning ?? "";
    if (this.#due) return;
    this.#due = true; // many pieces may come between two frames
    requestAnimationFrame(() => {
      this.#due = false;
      this.#show();
    });
  }

  #show() {
    showText(this.answer, this.content);
    this.thoughts.textContent = this.reasoning;
    this.details.hidden = !this.reasoning;
    if (this.content) this.summary.textContent = "Thoughts";
    this.node.dispatchEvent(new Event("grown", { bubbles: true }));
  }

  /** @param end {usage, finish, error, stopped} of the stream, as far as known */
  finish({ usage, finish, error, stopped }) {
    this.node.classList.remove("streaming");
    this.#show();
    if (error) this.node.insertBefore(element("p", { class: "error", role: "alert" }, error), this.tools);
    const parts = usage ? this.#receipt(usage) : [];
    if (stopped) parts.push(element("span", {}, "stopped"));
    if (finish === "length") parts.push(element("span", {}, "cut at its limit"));
    this.tools.replaceChildren(element("span", { class: "receipt" }, ...parts), element("span", { class: "grow" }));
    if (this.content) this.tools.append(button("Copy", () => navigator.clipboard.writeText(this.content)));
    this.tools.append(button(error && !this.content ? "Try again" : "Regenerate", this.onRegenerate));
    this.node.dispatchEvent(new Event("grown", { bubbles: true }));
  }

  #receipt(usage) {
    const now = performance.now() / 1000;
    const { prompt_tokens: prompt, completion_tokens: completion } = usage;
    const cached = usage.prompt_tokens_details?.cached_tokens ?? 0;
    const meter = element("span", { class: "meter" }, element("i"));
    meter.firstChild.style.width = `${(100 * cached) / prompt}%`;
    const parts = [element("span", {}, plural(completion, "token"))];
    if (this.#firstS !== null) {
      // The first token's time is the prompt's.
      if (completion > 1) parts.push(element("span", {}, `${((completion - 1) / (now - this.#firstS)).toFixed(1)} tokens/s`));
      parts.push(element("span", {}, `first after ${seconds(this.#firstS - this.#startedS)}`));
    }
    const title = `${plural(prompt, "prompt token")}: what was cached is not computed again`;
    parts.push(element("span", { title }, meter, `prompt: ${count(cached)} cached, ${count(prompt - cached)} computed`));
    return parts;
  }
}
