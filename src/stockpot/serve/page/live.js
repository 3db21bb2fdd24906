/** Markdown that is still being written. */

import { render } from "./markdown.js";

/** Shows markdown while it grows: finished blocks stay as they are, the open end is drawn anew, at most once a frame. */
export class Live {
  /** @param {HTMLElement} into */
  constructor(into, about = {}) {
    this.into = into;
    this.about = about;
    this.text = "";
    this.done = 0; // characters that are drawn for good
    this.scanned = 0;
    this.fence = "";
    this.tail = [];
    this.waiting = 0;
    this.isFinished = false;
  }

  /** Add a piece of text. */
  push(piece) {
    this.text += piece;
    if (!this.waiting) {
      const pause = this.text.length - this.done > 20_000 ? 400 : 0;
      this.waiting = pause
        ? setTimeout(() => requestAnimationFrame(() => this.draw()), pause)
        : requestAnimationFrame(() => this.draw());
    }
  }

  /** Draw what has come, without looking ahead. */
  draw() {
    this.waiting = 0;
    if (this.isFinished) return;
    let line;
    while ((line = this.text.indexOf("\n", this.scanned)) >= 0) {
      const words = this.text.slice(this.scanned, line);
      const found = /^ {0,3}(`{3,}|~{3,})/.exec(words);
      if (this.fence) {
        if (
          found &&
          found[1][0] === this.fence[0] &&
          found[1].length >= this.fence.length &&
          !words.trim().slice(found[1].length)
        )
          this.fence = "";
      } else if (found) this.fence = found[1];
      this.scanned = line + 1;
      const isBlank = !words.trim() && !this.fence,
        next = this.text[line + 1];
      if (isBlank && next !== undefined && !/[\s\d*+-]/.test(next)) this.settle(line + 1);
    }
    for (const node of this.tail) node.remove();
    const rest = render(this.text.slice(this.done), this.about);
    this.tail = [...rest.childNodes];
    this.into.append(rest);
  }

  settle(upTo) {
    for (const node of this.tail) node.remove();
    this.tail = [];
    this.into.append(render(this.text.slice(this.done, upTo), this.about));
    this.done = upTo;
  }

  /** Draw the whole for good. */
  finish() {
    this.isFinished = true;
    cancelAnimationFrame(this.waiting);
    clearTimeout(this.waiting);
    this.into.replaceChildren(render(this.text, this.about));
  }
}
