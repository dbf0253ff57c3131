// An answer in the making: pure functions from one state and what happened to the next.

export const SOURCES = ["edge", "draft", "cloud"];
export const MOST = 256; // tokens of an answer

export const BEGUN = Object.freeze({
  tokens: [], // settled: {text, source}
  guess: null, // {position, text}: what the drafter believes to follow the first `position` tokens
  planned: null,
  lost: [], // {worker, why, position, silent_ms, next}
  corrected: null, // {position, before}: where the tail was replaced, and the text that stood there
  answer: null, // the whole Answer, once it is complete
  ended: null, // "answered", "stopped" or "failed"
  trouble: null,
});

// The state after one event, an object with one key: planned, guessed, settled, lost, corrected or answer.
export function after(state, event) {
  const [[name, what]] = Object.entries(event);
  switch (name) {
    case "planned":
      return { ...state, planned: what };
    case "guessed":
      return { ...state, guess: what };
    case "settled":
      return { ...state, tokens: [...state.tokens.slice(0, what.position), ...what.tokens] };
    case "lost":
      return { ...state, lost: [...state.lost, what] };
    case "corrected": {
      const before = textOf(state.tokens.slice(what.position));
      const tokens = [...state.tokens.slice(0, what.position), ...what.tokens];
      return { ...state, tokens, guess: null, corrected: { position: what.position, before } };
    }
    case "answer":
      return { ...state, tokens: what.tokens, guess: null, lost: what.lost ?? state.lost, answer: what, ended: "answered" };
    default: // of a later version of the agent
      return state;
  }
}

export const stopped = (state) => ({ ...state, guess: null, ended: "stopped" });

export const failed = (state, trouble) => ({ ...state, guess: null, ended: "failed", trouble });

export function textOf(tokens) {
  return tokens.map((token) => token.text).join("");
}

// What of the guess is still only guessed: the part after the settled tokens, if these agree with it.
export function guessed(state) {
  if (state.guess === null || state.guess.position > state.tokens.length) return "";
  const since = textOf(state.tokens.slice(state.guess.position));
  return state.guess.text.startsWith(since) ? state.guess.text.slice(since.length) : "";
}

// Whether the device has ended the answer alone, and no more than a worker's word on that is waited for.
export function unverified({ lost, tokens }) {
  const ended = tokens.at(-1)?.text === "" || tokens.length >= MOST; // a model's last token has no text
  return lost.length > 0 && lost.at(-1).next === null && ended;
}

// How many tokens are from where: {edge, draft, cloud}.
export function shares(tokens) {
  const found = Object.fromEntries(SOURCES.map((source) => [source, 0]));
  for (const token of tokens) found[token.source] += 1;
  return found;
}

// How many words are from where; a word is whose its first letter is.
export function wordShares(tokens) {
  const found = Object.fromEntries(SOURCES.map((source) => [source, 0]));
  let within = false;
  for (const { text, source } of tokens) {
    for (const letter of text) {
      const space = /\s/.test(letter);
      if (!space && !within) found[source] += 1;
      within = !space;
    }
  }
  return found;
}

// The line above an answer: [source, tokens] in order, neighbours of one source together.
export function line(tokens) {
  const segments = [];
  for (const { source } of tokens) {
    const last = segments.at(-1);
    if (last?.[0] === source) last[1] += 1;
    else segments.push([source, 1]);
  }
  return segments;
}
