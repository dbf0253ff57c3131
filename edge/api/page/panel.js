// The side panel: the plan, where the time went, the link and the totals, drawn from what the agent tells.

import { shares, SOURCES } from "./answer.js";
import { html, svg } from "./dom.js";
import { bytes, energy, milliseconds, rate } from "./figures.js";

const STAGES = ["image", "vision", "connector", "decoder", "head"];
const WIDTH = 300; // of the drawings, in their own units

// Where a part of the time is spent; each place has a colour, each part of it a shade.
const PLACES = {
  device: ["prepare", "plan", "edge", "alone"],
  link: ["upload", "link"],
  cloud: ["queue", "cloud"],
};

export function answerFacts(state) {
  const { answer, planned } = state;
  const plan = answer?.plan ?? planned;
  const facts = [];
  if (plan) {
    facts.push(plan.mode === "edge" ? null : cutDrawing(answer ? answer.cut : plan.cut));
    facts.push(
      table({
        Mode: plan.mode,
        Cut: answer && answer.cut === null ? "none, the device alone" : plan.cut,
        Wire: plan.wire,
        Why: plan.why,
        "Runner-up": plan.runner_up && runnerUp(plan.runner_up),
      }),
    );
  }
  if (!answer) return facts;
  facts.push(html("h3", {}, "Time"));
  // What was predicted is a mean over answers of any length, kept by the gate or not; beside one answer stands what the
  // same prediction is for it.
  const expected = answer.plan?.hindsight_ms;
  facts.push(timeDrawing(answer, expected));
  facts.push(
    table({
      Measured: milliseconds(answer.latency_ms),
      "Expected of this answer": expected == null ? null : milliseconds(expected),
      "Predicted on average": plan?.predicted_ms == null ? null : milliseconds(plan.predicted_ms),
      "First word": milliseconds(answer.ttft_ms),
    }),
  );
  facts.push(html("h3", {}, "Words"));
  facts.push(...shareFacts(shares(answer.tokens)));
  facts.push(html("h3", {}, "Cost"));
  facts.push(
    table({
      Up: bytes(answer.bytes_up),
      Down: bytes(answer.bytes_down),
      "Round trips": answer.rounds,
      Energy: answer.energy && energy(answer.energy),
      Worker: answer.worker,
      Gate: answer.gate && gateSays(answer),
      "Asked as": answer.gate?.group,
      "The big model’s own words": answer.exact === null ? "not known" : answer.exact ? "all" : "not all",
    }),
  );
  return facts;
}

// What is promised of an answer: by the gate, or by a worker's word.
function gateSays({ exact, gate: { calibrated, decision, promised, agree, against } }) {
  if (promised != null) {
    const other = against === "answers" ? "it is wrong" : "the big model says something else";
    return `kept: ${other} in at most ${+(100 * promised).toPrecision(2)}% of such cases, compared by ${agree}`;
  }
  const asked = decision === "passed on" && !calibrated ? "passed on, as all that is asked like this" : decision;
  return exact ? asked : `${asked}: nothing is promised`;
}

function runnerUp({ mode, cut, wire, predicted_ms }) {
  const where = [mode, cut && `at ${cut}`, wire && `in ${wire}`].filter(Boolean).join(" ");
  return `${where}, ${milliseconds(predicted_ms)}`;
}

// How the link is, in one word: offline, alone (no worker was given), lost or up.
export function linkIs({ offline, workers, upstream }) {
  if (offline) return "offline";
  if (upstream) return "up";
  if (workers.length === 0) return "alone";
  return workers.every(isDown) ? "lost" : "up";
}

export function linkFacts(state) {
  const { link, workers, upstream } = state;
  const is = linkIs(state);
  const words = { offline: "Offline by your choice.", alone: "No worker was given.", lost: "No worker answers." };
  const figures = [link?.rtt_ms == null ? null : milliseconds(link.rtt_ms), link?.uplink_mbps == null ? null : `${rate(link.uplink_mbps)} up`];
  const known = figures.filter(Boolean).join(" · ");
  return [
    html(
      "p",
      { class: `ends ${is}` },
      html("span", {}, "device"),
      html("i", { "aria-hidden": "true" }),
      is === "up" && known ? html("b", { title: "round trip, and uplink" }, known) : null,
      is === "up" && known ? html("i", { "aria-hidden": "true" }) : null,
      html("span", {}, "cloud"),
    ),
    is === "up" ? null : html("p", { class: "means" }, words[is]),
    html("ul", { class: "workers" }, upstream && html("li", {}, html("code", {}, upstream), " answers in place of workers"), ...workers.map((one) => html("li", { class: isDown(one) ? "down" : "" }, html("code", {}, one.address), ` ${stateOf(one)}`))),
  ];
}

// What the header says of the link.
export function linkBrief(state) {
  const is = linkIs(state);
  const up = state.link?.rtt_ms == null ? "linked" : milliseconds(state.link.rtt_ms);
  return { offline: "offline", alone: "device alone", lost: "link lost", up }[is];
}

export function totalFacts(totals) {
  const { tokens } = totals;
  return [
    ...shareFacts(tokens),
    table({
      Answers: totals.answers,
      Up: bytes(totals.bytes_up),
      Down: bytes(totals.bytes_down),
      Energy: totals.joules === null ? null : energy(totals),
    }),
  ];
}

const isDown = (worker) => worker.breaker === "open";

function stateOf({ breaker, connected, retry_seconds }) {
  if (breaker === "open") return retry_seconds == null ? "does not answer" : `does not answer; tried again in ${Math.ceil(retry_seconds)} s`;
  if (breaker === "trying") return "is tried again";
  return connected ? "connected" : "not asked yet";
}

function shareFacts(found) {
  const whole = SOURCES.reduce((sum, source) => sum + found[source], 0);
  if (whole === 0) return [html("p", { class: "means" }, "No words yet.")];
  let x = 0;
  const bars = SOURCES.filter((source) => found[source]).map((source) => {
    const width = (WIDTH * found[source]) / whole;
    const bar = svg("rect", { class: source, x, y: 0, width: Math.max(width - 1.5, 1), height: 10, rx: 1.5 });
    x += width;
    return bar;
  });
  const said = SOURCES.map((source) => `${source} ${Math.round((100 * found[source]) / whole)}%`);
  return [
    svg("svg", { class: "stack", viewBox: `0 0 ${WIDTH} 10`, role: "img", "aria-label": `Share of the tokens: ${said.join(", ")}` }, ...bars),
    html("p", { class: "keys" }, ...SOURCES.map((source, i) => html("span", { class: `key ${source}` }, said[i]))),
  ];
}

// The layers as one line, cut: what is before the cut runs on the device, the rest in the cloud.
function cutDrawing(cut) {
  if (cut === null || cut === undefined) return null;
  const [stage, index] = cut.split(".");
  const step = WIDTH / STAGES.length;
  const x = Math.max(STAGES.indexOf(stage) * step + (index > 0 ? step / 2 : 0), 3);
  const middle = (i) => (i + 0.5) * step;
  return svg(
    "svg",
    { class: "cutting", viewBox: `0 0 ${WIDTH} 46`, role: "img", "aria-label": `The big model is cut at ${cut}: what comes before runs on the device, the rest in the cloud` },
    svg("line", { class: "here", x1: 0, x2: x, y1: 14, y2: 14 }),
    svg("line", { class: "there", x1: x, x2: WIDTH, y1: 14, y2: 14 }),
    ...STAGES.map((name, i) => svg("circle", { class: middle(i) < x ? "here" : "there", cx: middle(i), cy: 14, r: 3.5 })),
    ...STAGES.map((name, i) => svg("text", { x: middle(i), y: 36 }, name)),
    svg("line", { class: "seam", x1: x, x2: x, y1: 2, y2: 26 }),
  );
}

// Where the time went, part after part, and a mark where the plan expected the end of this answer.
function timeDrawing(answer, expected) {
  const parts = Object.entries(answer.parts_ms ?? {}).filter(([, ms]) => ms > 0);
  if (parts.length === 0) return null;
  const sum = parts.reduce((all, [, ms]) => all + ms, 0);
  const scale = WIDTH / Math.max(sum, expected ?? 0);
  const shades = shadesOf(parts.map(([name]) => name));
  let x = 0;
  const bars = parts.map(([name, ms], i) => {
    const bar = svg("rect", { class: shades[i], x, y: 6, width: Math.max(ms * scale - 1, 0.75), height: 16, rx: 1.5 }, svg("title", {}, `${name}: ${milliseconds(ms)}`));
    x += ms * scale;
    return bar;
  });
  const at = expected == null ? null : Math.min(Math.max(expected * scale, 1), WIDTH - 1);
  const said = parts.map(([name, ms]) => `${name} ${milliseconds(ms)}`).join(", ");
  return html(
    "div",
    {},
    svg(
      "svg",
      { class: "stack time", viewBox: `0 0 ${WIDTH} 28`, role: "img", "aria-label": `Where the time went: ${said}` },
      ...bars,
      at === null ? null : svg("path", { class: "tick", d: `M${at} 2v24` }, svg("title", {}, `expected: ${milliseconds(expected)}`)),
    ),
    html("ul", { class: "parts" }, ...parts.map(([name, ms], i) => html("li", {}, html("i", { class: shades[i], "aria-hidden": "true" }), html("span", {}, name), html("span", {}, milliseconds(ms))))),
  );
}

function shadesOf(names) {
  const places = names.map((name) => Object.keys(PLACES).find((place) => PLACES[place].includes(name)) ?? "other");
  return places.map((place, at) => `${place} shade${places.slice(0, at).filter((one) => one === place).length % 3}`);
}

function table(rows) {
  const given = Object.entries(rows).filter(([, value]) => value != null);
  return html("dl", { class: "facts" }, ...given.map(([name, value]) => html("div", {}, html("dt", {}, name), html("dd", {}, String(value)))));
}
