// Copying, also where the page did not come over HTTPS and browsers keep their clipboard closed.

/** @returns whether it worked */
export async function copy(text) {
  try {
    if (navigator.clipboard) {
      await navigator.clipboard.writeText(text);
      return true;
    }
    const box = document.createElement("textarea");
    box.value = text;
    document.body.append(box);
    box.select();
    const worked = document.execCommand("copy");
    box.remove();
    return worked;
  } catch {
    return false;
  }
}

/** Copies, and says so on the button. */
export async function copyFrom(button, text) {
  flash(button, (await copy(text)) ? "Copied" : "No clipboard here");
}

/** Shows a word on a button for a moment. */
export function flash(button, word) {
  button.dataset.label ??= button.textContent;
  button.textContent = word;
  setTimeout(() => (button.textContent = button.dataset.label), 1500);
}
