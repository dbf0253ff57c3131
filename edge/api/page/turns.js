// Questions and answers as they stand in the conversation.

import { guessed, line, SOURCES, textOf, unverified, wordShares } from "./answer.js";
import { html } from "./dom.js";
import { bytes, count, milliseconds, words } from "./figures.js";

const WHOSE = {
  edge: "the device’s own, not verified",
  draft: "drafted on the device, confirmed by the cloud",
  cloud: "written by the cloud",
};

export function questionTurn(text, pictures) {
  return html(
    "li",
    { class: "turn asked" },
    html("h2", { class: "unseen" }, "You asked"),
    pictures.length ? html("div", { class: "photos" }, ...pictures.map((one) => html("img", { src: one.url, alt: one.name }))) : null,
    html("p", {}, text),
  );
}

// An answer that `show` brings up to date; `again` asks anew, `details` shows what it cost.
export class AnswerTurn {
  constructor({ again, details }) {
    this.rule = html("div", { class: "rule", "aria-hidden": "true" });
    this.text = html("p", { class: "text" });
    this.guess = html("span", { class: "guess", "aria-hidden": "true", title: "drafted, not yet confirmed" });
    this.notices = html("ul", { class: "notices" });
    this.sum = html("p", { class: "sum" });
    this.details = html("button", { type: "button", class: "plain small", onclick: details, hidden: true }, "Details");
    this.again = html("button", { type: "button", class: "plain small", onclick: again, hidden: true }, "Ask again");
    this.element = html(
      "li",
      { class: "turn answer", "aria-busy": "true" },
      html("h2", { class: "unseen" }, "Cutline answered"),
      this.rule,
      this.text,
      this.notices,
      html("div", { class: "foot" }, this.sum, this.again, this.details),
    );
    this.text.append(this.guess);
    this.pieces = []; // what stands in the text: tokens, and marks where a link was lost
    this.runs = []; // {element, end}: elements that hold them, and up to which piece
  }

  show(state) {
    this.#write(piecesOf(state), state.corrected !== null);
    const guess = guessed(state);
    this.guess.textContent = state.tokens.length ? guess : guess.trimStart();
    this.rule.replaceChildren(...ruleOf(state, guess));
    this.notices.replaceChildren(...noticesOf(state));
    this.sum.replaceChildren(...sumOf(state));
    this.element.classList.toggle("waiting", state.ended === null && state.tokens.length === 0 && guess === "");
    this.element.toggleAttribute("data-over", state.ended !== null);
    if (state.ended !== null) this.element.removeAttribute("aria-busy");
    this.details.hidden = state.answer === null && state.planned === null;
    this.again.hidden = state.ended !== "failed" && (state.ended !== "stopped" || unverified(state));
  }

  // Put `pieces` in place of those written before; what agrees stays as it is.
  #write(pieces, corrected) {
    let same = 0;
    while (same < this.pieces.length && same < pieces.length && alike(this.pieces[same], pieces[same])) same += 1;
    while (this.runs.length && this.runs.at(-1).end > same) this.runs.pop().element.remove();
    let at = this.runs.at(-1)?.end ?? 0;
    while (at < pieces.length) {
      const { lost, source } = pieces[at];
      let end = at + 1;
      while (!lost && end < pieces.length && pieces[end].source === source) end += 1;
      const element = lost
        ? html("span", { class: "cut", title: lost.why }, html("span", { class: "unseen" }, " (link lost here) "))
        : html("span", { class: `run ${source}${corrected ? " new" : ""}`, title: `${source}: ${WHOSE[source]}` });
      if (!lost) element.textContent = textOf(pieces.slice(at, end));
      this.guess.before(element);
      this.runs.push({ element, end });
      at = end;
    }
    this.pieces = pieces;
  }
}

function alike(one, other) {
  return one.text === other.text && one.source === other.source && one.lost?.position === other.lost?.position;
}

function piecesOf({ tokens, lost }) {
  const pieces = [];
  for (let at = 0; at <= tokens.length; at += 1) {
    for (const one of lost) if (one.position === at) pieces.push({ lost: one });
    if (at < tokens.length) pieces.push({ text: at ? tokens[at].text : tokens[at].text.trimStart(), source: tokens[at].source });
  }
  return pieces;
}

// The line above an answer: as long a piece as each source has words in it, and cut where a link was lost.
function ruleOf({ tokens, lost, ended }, guess) {
  const cuts = [...new Set(lost.map((one) => one.position))].filter((at) => at <= tokens.length).sort((a, b) => a - b);
  const parts = [];
  let from = 0;
  for (const to of cuts) {
    for (const [source, length] of line(tokens.slice(from, to))) parts.push(piece(source, length));
    parts.push(html("i", { class: "gap" }));
    from = to;
  }
  for (const [source, length] of line(tokens.slice(from))) parts.push(piece(source, length));
  if (guess) parts.push(piece("guessed", words(guess)));
  if (ended === null) parts.push(piece("open", 1));
  return parts;
}

function piece(name, length) {
  const element = html("i", { class: name });
  element.style.flexGrow = length;
  return element;
}

function noticesOf(state) {
  const { answer, corrected, ended, lost, tokens } = state;
  const notices = lost.map((one) => {
    const said = words(textOf(tokens.slice(0, one.position)));
    const next = one.next === null ? "the device went on alone" : `${one.next} went on`;
    return html("li", { class: "loss", title: one.why }, `link lost ${said ? `after ${count(said, "word")}` : "before the first word"}; ${next}`);
  });
  if (corrected) {
    notices.push(
      html("li", { class: "correction" }, "the link came back, and the cloud corrected the end; the device had said ", html("del", {}, corrected.before.trim())),
    );
  } else if (answer?.tail === "confirmed") notices.push(html("li", {}, "the link came back, and the cloud confirmed the end"));
  else if (answer?.tail === "unverified" || (ended === "stopped" && unverified(state))) notices.push(html("li", {}, "the end was not verified by the cloud"));
  if (answer && !answer.complete) notices.push(html("li", {}, "cut short at the limit of its length"));
  if (answer?.recalled) notices.push(html("li", {}, `remembered from ${milliseconds(answer.recalled.age_ms)} ago`));
  else if (ended === null && unverified(state)) notices.push(html("li", {}, "waiting for the link, to have the end verified"));
  if (ended === "stopped" && !unverified(state)) notices.push(html("li", {}, "stopped"));
  if (ended === "failed") notices.push(html("li", { class: "fault" }, state.trouble));
  return notices;
}

// In words, what the lines under the words say; and what it cost.
function sumOf({ tokens, answer, ended }) {
  if (ended === null || tokens.length === 0) return [];
  const found = wordShares(tokens);
  const parts = SOURCES.filter((source) => found[source]).map((source) => html("span", { class: `key ${source}`, title: WHOSE[source] }, count(found[source], `${source} word`)));
  if (answer) {
    parts.push(html("span", {}, milliseconds(answer.latency_ms)));
    parts.push(html("span", {}, answer.bytes_up ? `${bytes(answer.bytes_up)} up` : "nothing sent"));
    if (answer.exact) parts.push(html("span", { title: "it may be wrong, as the big model may; no word is the small one’s alone" }, "the big model’s own words"));
  }
  return parts;
}

// The same for the ear.
export function summary({ tokens, answer, ended, trouble, lost }) {
  if (ended === "failed") return `No answer: ${trouble}`;
  if (ended === "stopped") return unverified({ tokens, lost }) ? "The end was not verified." : "Stopped.";
  const found = wordShares(tokens);
  const whose = SOURCES.filter((source) => found[source]).map((source) => `${found[source]} ${WHOSE[source]}`);
  const loss = lost.length ? ` The link was lost ${count(lost.length, "time")}.` : "";
  return `Answered in ${milliseconds(answer.latency_ms)}. ${count(words(textOf(tokens)), "word")}: ${whose.join("; ")}.${loss}`;
}
