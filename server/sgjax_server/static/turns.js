// What one turn of the conversation looks like. Nothing here knows of requests.

import { copyFrom } from "/static/clipboard.js";
import { element } from "/static/format.js";
import { receiptOf } from "/static/receipt.js";

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

  /** @param end {receipt, finish, error, stopped} of the stream, as far as known */
  finish({ receipt, finish, error, stopped }) {
    this.node.classList.remove("streaming");
    this.#show();
    if (error) this.node.insertBefore(element("p", { class: "error", role: "alert" }, error), this.tools);
    this.tools.replaceChildren(receipt ? receiptOf(receipt) : "");
    if (stopped) this.tools.append(element("span", {}, "stopped"));
    if (finish === "length") this.tools.append(element("span", {}, "cut at its limit"));
    this.tools.append(element("span", { class: "grow" }));
    if (this.content) this.tools.append(button("Copy", (event) => copyFrom(event.target, this.content)));
    this.tools.append(button(error && !this.content ? "Try again" : "Regenerate", this.onRegenerate));
    this.node.dispatchEvent(new Event("grown", { bubbles: true }));
  }
}
