// The panel stands beside the conversation where there is room; on a phone it is a sheet that covers it.

import { find } from "./dom.js";

const wide = matchMedia("(min-width: 60rem)");

export function setUpSheet() {
  find("open-panel").onclick = openSheet;
  find("close-panel").onclick = closeSheet;
  find("veil").onclick = closeSheet;
  wide.onchange = () => setOpen(false);
  setOpen(false);
}

export function openSheet() {
  if (wide.matches) return find("this-answer").scrollIntoView({ block: "start" });
  setOpen(true);
  return find("panel").focus();
}

// Whether there was one to close.
export function closeSheet() {
  if (wide.matches || find("veil").hidden) return false;
  setOpen(false);
  find("open-panel").focus();
  return true;
}

function setOpen(open) {
  const panel = find("panel");
  panel.toggleAttribute("data-open", open);
  panel.inert = !wide.matches && !open;
  panel.setAttribute("role", wide.matches ? "complementary" : "dialog");
  if (open) panel.setAttribute("aria-modal", "true");
  else panel.removeAttribute("aria-modal");
  for (const rest of [find("talk"), document.querySelector(".bar")]) rest.inert = open;
  find("veil").hidden = !open;
  find("open-panel").setAttribute("aria-expanded", String(open));
}
