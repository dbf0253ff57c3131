// Numbers as people read them.

export function milliseconds(value) {
  if (value == null) return "–";
  if (value < 9.95) return `${value.toFixed(1)} ms`;
  if (value < 999.5) return `${Math.round(value)} ms`;
  return `${(value / 1000).toFixed(value < 9950 ? 2 : 1)} s`;
}

export function bytes(value) {
  if (value < 1000) return `${value} B`;
  if (value < 999_500) return `${(value / 1000).toFixed(value < 9950 ? 1 : 0)} kB`;
  return `${(value / 1e6).toFixed(1)} MB`;
}

function joules(value) {
  return value < 0.9995 ? `${+(value * 1000).toPrecision(2)} mJ` : `${value.toFixed(value < 9.95 ? 2 : 0)} J`;
}

// Of several answers, "estimated" if any part of it was.
export function energy({ joules: spent, estimated }) {
  return `${joules(spent)}, ${estimated ? "estimated" : "measured"}`;
}

export function rate(mbps) {
  return `${+mbps.toPrecision(2)} Mbit/s`;
}

export function count(number, word) {
  return `${number} ${word}${number === 1 ? "" : "s"}`;
}

// How many words a text has.
export function words(text) {
  return text.split(/\s+/).filter(Boolean).length;
}
