/** The frame: which view is shown, the theme, the keys that work everywhere. */

import { takeToken } from "./api.js";
import { button, h, icon, toast } from "./dom.js";
import { loadModels } from "./shared.js";
import { preferences } from "./store.js";

const VIEWS = {
  chat: ["Chat", "chat", () => import("./chat.js")],
  inside: ["Look inside", "inside", () => import("./inside.js")],
  compare: ["Compare", "compare", () => import("./compare.js")],
  train: ["Train on it", "train", () => import("./train.js")],
  report: ["Report", "report", () => import("./report.js")],
};
const KEYS = [
  ["Alt 1 … Alt 5", "the five views"],
  ["n", "new chat"],
  ["/", "to the message field"],
  ["↑", "edit the last message"],
  ["Esc", "stop the answer"],
  ["← = →", "vote: left, tie, right"],
  ["s · u · w", "vote: skip, undo, say why"],
  ["← → · s · b", "look inside: move, step, back"],
  ["?", "this list"],
];
let leave = null;
let turn = 0;

function drawNav(here) {
  document
    .getElementById("nav")
    .replaceChildren(
      ...Object.entries(VIEWS).map(([name, [word, sign]]) =>
        h("a", { href: `#/${name}`, "aria-current": name === here ? "page" : undefined }, icon(sign), h("span", {}, word)),
      ),
    );
}

/** Show the view that the address names. */
async function go() {
  const [, name = "chat", id] = /^#\/(\w+)(?:\/([\w-]+))?/.exec(location.hash) || [];
  const here = VIEWS[name] ? name : "chat";
  const mine = ++turn;
  leave?.();
  leave = null;
  drawNav(here);
  closeDrawer();
  document.body.dataset.view = here;
  document.title = `${VIEWS[here][0]} · stockpot`;
  if (here !== "chat") document.getElementById("side").replaceChildren();
  const main = document.getElementById("main");
  try {
    const view = await VIEWS[here][2]();
    if (mine !== turn) return;
    const place = h("div.place"); // one for each visit: what comes late for a view that was left is drawn into nothing
    main.replaceChildren(place);
    scrollTo(0, 0);
    const left = await view.show(place, id);
    if (mine === turn) leave = left;
    else left?.();
  } catch (error) {
    toast(error.message, "bad");
  }
}

function theme() {
  if (preferences.theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = preferences.theme;
}

function closeDrawer() {
  document.body.classList.remove("drawer");
}

function drawFoot() {
  const next = { auto: "dark", dark: "light", light: "auto" };
  document.getElementById("foot").replaceChildren(
    button("Keys (?)", { word: [h("kbd", {}, "?"), " keys"], kind: "bare", onclick: keys }),
    button(`Colours: ${preferences.theme}`, {
      name: "sun",
      onclick: () => {
        preferences.theme = next[preferences.theme] || "auto";
        theme();
        drawFoot();
        toast(`Colours: ${preferences.theme}`);
      },
    }),
    button("Close the list", { name: "close", kind: "phone", onclick: closeDrawer }),
  );
}

function keys() {
  const dialog = h(
    "dialog",
    { "aria-labelledby": "keys-title" },
    h("h2", { id: "keys-title" }, "Keys"),
    h(
      "table",
      {},
      h(
        "tbody",
        {},
        KEYS.map(([key, words]) => h("tr", {}, h("td", {}, h("kbd", {}, key)), h("td", {}, words))),
      ),
    ),
    h("form", { method: "dialog" }, h("button.btn.main", {}, "Close")),
  );
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
}

document.addEventListener("keydown", (event) => {
  const typing = /^(INPUT|TEXTAREA|SELECT)$/.test(document.activeElement?.tagName || "");
  if (event.altKey && event.code >= "Digit1" && event.code <= "Digit5") {
    event.preventDefault();
    location.hash = `#/${Object.keys(VIEWS)[Number(event.code.at(-1)) - 1]}`;
  } else if (event.key === "?" && !typing && !document.querySelector("dialog[open]")) keys();
});
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  document.getElementById("main").focus();
});
document.getElementById("rail").addEventListener("click", (event) => {
  if (event.target.closest("a")) closeDrawer(); // also where the address stays the same
});
addEventListener("hashchange", go);
takeToken();
theme();
drawFoot();
drawNav("chat");
loadModels()
  .catch((error) => toast(error.message, "bad"))
  .then(go);
