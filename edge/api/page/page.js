// The agent's page: what a person does, put together with what the agent tells.

import { ask, goOffline, Refused, state as stateOfAgent } from "./agent.js";
import { after, BEGUN, failed, MOST, stopped, textOf, unverified } from "./answer.js";
import { canSee, takePicture } from "./camera.js";
import { find, html } from "./dom.js";
import { answerFacts, linkBrief, linkFacts, linkIs, totalFacts } from "./panel.js";
import { filesOf, pictureOf } from "./pictures.js";
import { closeSheet, openSheet, setUpSheet } from "./sheet.js";
import { Speech } from "./speech.js";
import { AnswerTurn, questionTurn } from "./turns.js";

const POLL = 2000; // ms between two looks at the link
const MAX_REQUEST = 44 * 1024 * 1024; // characters; the agent takes 48 MiB
const CORRECT_SECONDS = 10;
const MEANS = {
  auto: "The device answers where it can be trusted; else the cloud verifies what it drafted.",
  edge: "The device alone. Quick, and nothing leaves it.",
  draft: "The device drafts while the cloud verifies and writes on.",
  cloud: "The cloud alone. The picture is sent to it.",
};

let turns = []; // {text, pictures, state, asked, answer}
let pictures = []; // of the next question
let shown = null; // the turn that the panel tells of
let told = null; // what it tells of it
let plans = false; // whether the agent plans in mode auto
let asking = null; // aborts the answer in the making
let answering = Promise.resolve(); // until it has ended

const question = find("question");

// ---- A question and its answer

function send(text, attached) {
  const turn = { text, pictures: attached, state: BEGUN };
  asking = new AbortController();
  const events = ask(requestOf(turn), asking.signal); // before anything is drawn, which takes longer
  turn.asked = questionTurn(text, attached);
  turn.answer = new AnswerTurn({ again: () => askAgain(turn), details: () => (show(turn), openSheet()) });
  turns.push(turn);
  find("turns").append(turn.asked, turn.answer.element);
  find("empty").hidden = true;
  find("anew").hidden = false;
  show(turn);
  answering = answer(turn, events);
}

async function answer(turn, events) {
  const speech = new Speech();
  busy(true);
  update(turn);
  turn.answer.element.scrollIntoView({ block: "nearest" });
  try {
    for await (const event of events) {
      turn.state = after(turn.state, event);
      speech.hear(turn.state, event);
      soon(turn);
    }
  } catch (error) {
    if (error.name === "AbortError") turn.state = stopped(turn.state);
    else if (error instanceof Refused) turn.state = failed(turn.state, error.message);
    else throw error;
  } finally {
    busy(false);
  }
  update(turn);
  if (turns.includes(turn)) speech.finish(turn.state);
  look();
}

function requestOf(turn) {
  const said = turns.filter((one) => textOf(one.state.tokens) !== "");
  return {
    messages: [
      ...said.flatMap((one) => [messageOf(one), { role: "assistant", content: textOf(one.state.tokens).trim() }]),
      messageOf(turn),
    ],
    stream: true,
    stream_options: { include_usage: true },
    max_tokens: MOST,
    cutline: { ...chosen(), priority: "interactive", guesses: true, correct_seconds: CORRECT_SECONDS },
  };
}

function messageOf({ text, pictures }) {
  const images = pictures.map((one) => ({ type: "image_url", image_url: { url: one.url } }));
  return { role: "user", content: [...images, { type: "text", text }] };
}

function askAgain(turn) {
  if (asking) return;
  forget(turn);
  send(turn.text, turn.pictures);
}

function forget(turn) {
  turns = turns.filter((one) => one !== turn);
  turn.asked.remove();
  turn.answer.element.remove();
}

// Bring it up to date before the next frame: of many events at once nobody could see each.
function soon(turn) {
  if (turn.due) return;
  turn.due = true;
  const frame = document.hidden ? setTimeout : requestAnimationFrame; // there are no frames where nobody looks
  frame(() => turn.due && update(turn));
}

function update(turn) {
  const low = document.documentElement.scrollHeight - innerHeight - scrollY < 80; // a person who scrolled up reads there
  turn.due = false;
  turn.answer.show(turn.state);
  if (turn === shown) show(turn);
  if (low) scrollTo(0, document.documentElement.scrollHeight);
}

function show(turn) {
  const { planned, answer } = turn.state;
  if (shown === turn && told === (answer ?? planned)) return;
  [shown, told] = [turn, answer ?? planned];
  const facts = answerFacts(turn.state);
  if (facts.length) find("told").replaceChildren(...facts.filter(Boolean));
}

function stop() {
  asking?.abort();
}

function busy(is) {
  if (!is) asking = null;
  const focused = [find("send"), find("stop")].includes(document.activeElement);
  find("send").hidden = is;
  find("stop").hidden = !is;
  if (focused) question.focus();
}

// ---- The question in the making

async function attach(files) {
  complain(null);
  for (const file of files) {
    try {
      pictures.push(await pictureOf(file));
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      complain(error.message);
    }
  }
  showPictures();
  question.focus();
}

async function attachExample(name) {
  const shown = await fetch(`examples/${name}`).catch(() => null);
  if (!shown?.ok) return complain("the card did not come; is the agent still running?");
  await attach([new File([await shown.blob()], name, { type: "image/png" })]);
}

function showPictures() {
  find("pictures").hidden = pictures.length === 0;
  find("pictures").replaceChildren(
    ...pictures.map((one) => {
      const remove = () => {
        pictures = pictures.filter((other) => other !== one);
        showPictures();
        question.focus();
      };
      return html(
        "li",
        {},
        html("img", { src: one.url, alt: one.name }),
        html("button", { type: "button", "aria-label": `Remove ${one.name}`, title: "Remove", onclick: remove }, "×"),
      );
    }),
  );
}

async function submit() {
  const text = question.value.trim();
  if (asking && !unverified(turns.at(-1).state)) return;
  if (text === "") return complain(pictures.length ? "ask something about the picture" : "write a question first");
  const size = [...turns.flatMap((one) => one.pictures), ...pictures].reduce((all, one) => all + one.url.length, 0);
  if (size > MAX_REQUEST) return complain("the pictures are too big together; begin a new conversation, or send smaller ones");
  const attached = pictures;
  pictures = [];
  question.value = "";
  stop();
  await answering;
  send(text, attached);
  complain(null);
  showPictures();
  grow();
}

function complain(trouble) {
  find("trouble").textContent = trouble ?? "";
  find("trouble").hidden = trouble === null;
}

function grow() {
  question.style.height = "auto";
  question.style.height = `${question.scrollHeight}px`;
}

function beginAnew() {
  stop();
  turns.forEach(forget);
  shown = null;
  find("empty").hidden = false;
  find("anew").hidden = true;
  question.focus();
}

async function useCamera() {
  if (!canSee()) return find("shot").click(); // a phone's own camera, or a file
  const taken = await takePicture();
  return taken && attach([taken]);
}

// ---- Controls, link and totals

function chosen() {
  const mode = document.querySelector("[name=mode]:checked").value;
  const effort = Number(find("effort").value);
  return mode === "auto" && plans && find("exact").checked ? { mode, effort, exact: true } : { mode, effort };
}

function showChosen() {
  const mode = document.querySelector("[name=mode]:checked").value;
  const { effort } = chosen();
  find("means").textContent = MEANS[mode];
  find("effort-now").textContent = effort.toFixed(1);
  find("effort").disabled = mode === "edge" || mode === "cloud";
  find("exact").disabled = mode !== "auto" || !plans; // only a plan keeps to it, whatever becomes of the link
  find("exact-means").textContent = plans ? "Every word the big model’s own" : "For agents that plan";
}

async function look() {
  try {
    showState(await stateOfAgent());
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    showBrief("gone", "agent gone");
  }
}

function showState(state) {
  showBrief(linkIs(state), linkBrief(state));
  plans = state.plans;
  allow(state.modes);
  find("offline").checked = state.offline;
  find("offline").disabled = !state.switchable;
  find("offline-means").textContent = state.switchable ? "Nothing leaves this device" : "Set by who runs the agent";
  find("link").replaceChildren(...linkFacts(state).filter(Boolean));
  find("totals").replaceChildren(...totalFacts(state.totals));
}

// Only the modes that can answer now can be chosen.
function allow(modes) {
  const choices = [...document.querySelectorAll("[name=mode]")];
  for (const one of choices) one.disabled = !modes.includes(one.value);
  if (choices.some((one) => one.checked && one.disabled)) {
    const first = choices.find((one) => !one.disabled);
    if (first) first.checked = true;
  }
  showChosen();
}

function showBrief(is, words) {
  find("now").dataset.state = is;
  find("now").firstElementChild.textContent = words;
}

async function switchOffline() {
  try {
    showState(await goOffline(find("offline").checked));
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    find("offline").checked = !find("offline").checked;
    complain(error.message);
  }
}

// ---- Everything put together

find("composer").onsubmit = (event) => {
  event.preventDefault();
  submit();
};
find("stop").onclick = stop;
find("anew").onclick = beginAnew;
question.oninput = grow;
question.onkeydown = (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  submit();
};
document.onkeydown = (event) => {
  if (event.key === "Escape" && !find("camera").open && !closeSheet()) stop();
};
for (const button of document.querySelectorAll("[data-choose]")) button.onclick = () => find("files").click();
for (const button of document.querySelectorAll("[data-camera]")) button.onclick = useCamera;
for (const button of document.querySelectorAll("[data-example]")) button.onclick = () => attachExample(button.dataset.example);
for (const input of [find("files"), find("shot")]) {
  input.onchange = async () => {
    await attach([...input.files]);
    input.value = ""; // so that the same file can be chosen again
  };
}
document.onpaste = (event) => {
  const files = filesOf(event.clipboardData);
  if (files.length === 0) return;
  event.preventDefault();
  attach(files);
};
document.ondragover = (event) => {
  if (!event.dataTransfer.types.includes("Files")) return;
  event.preventDefault();
  find("drop").hidden = false;
};
document.ondragleave = (event) => {
  if (event.relatedTarget === null) find("drop").hidden = true;
};
document.ondrop = (event) => {
  find("drop").hidden = true;
  const files = filesOf(event.dataTransfer);
  if (files.length === 0) return;
  event.preventDefault();
  attach(files);
};
document.querySelector(".modes").onchange = showChosen;
find("effort").oninput = showChosen;
find("offline").onchange = switchOffline;
document.onvisibilitychange = () => document.hidden || look();
setInterval(() => document.hidden || look(), POLL);

setUpSheet();
showChosen();
look();
question.focus({ preventScroll: true });
