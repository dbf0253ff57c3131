// What a screen reader hears of an answer: settled text alone, some words at a time; guesses never.

import { textOf } from "./answer.js";
import { find, html } from "./dom.js";
import { summary } from "./turns.js";

const PAUSE = 1200; // ms between two pieces, so that the reader is not cut short by the next word

export class Speech {
  constructor() {
    this.said = 0; // characters
    this.last = performance.now();
    find("spoken").replaceChildren();
    find("said").textContent = "";
  }

  hear(state, event) {
    const text = textOf(state.tokens);
    if ("lost" in event) find("said").textContent = "The link was lost.";
    if ("corrected" in event) {
      const changed = textOf(state.tokens.slice(event.corrected.position));
      this.#say(`Corrected: ${changed}`, text.length);
    } else if (performance.now() - this.last > PAUSE) {
      const end = text.search(/\s\S*$/); // of the last whole word
      if (end > this.said) this.#say(text.slice(this.said, end), end);
    }
  }

  finish(state) {
    const text = textOf(state.tokens);
    if (text.length > this.said) this.#say(text.slice(this.said), text.length);
    find("said").textContent = summary(state);
  }

  #say(text, end) {
    find("spoken").append(html("span", {}, text));
    this.said = end;
    this.last = performance.now();
  }
}
