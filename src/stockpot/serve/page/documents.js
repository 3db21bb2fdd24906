/** Documents that answers rest on: dropped in, listed, forgotten; and the passage behind a citation. */

import { del, get, post } from "./api.js";
import { button, h, toast, tried } from "./dom.js";

const MOST = 32 * 2 ** 20;
let known = { documents: [], is_open: false, is_fixed: false };

/** Ask which documents there are. */
export async function takesDocuments() {
  known = await get("/v1/documents").catch(() => known);
  return known;
}

/** Upload files, one after another. */
export async function takeFiles(files) {
  for (const file of files) {
    if (file.size > MOST) throw new Error(`${file.name} is larger than 32 MB.`);
    toast(`Reading ${file.name} …`);
    const told = await post(`/v1/documents?name=${encodeURIComponent(file.name)}`, file, { raw: true });
    toast(`${told.name}: ${told.passages} passages.`);
  }
  return takesDocuments();
}

/** What people called a file, whatever it is called on the server. */
const nameOf = (file) => known.documents.find((one) => one.id === file)?.name || file;

/** Show a passage in full. */
export function showPassage(passage) {
  const dialog = h(
    "dialog.passage",
    { "aria-labelledby": "passage-title" },
    h("h2", { id: "passage-title" }, `Passage ${passage.number}`),
    h(
      "p.soft.small",
      {},
      [nameOf(passage.file), passage.title, passage.place]
        .filter((one, index, all) => one && all.indexOf(one) === index)
        .join(" · "),
    ),
    h("blockquote.passage-text", { tabIndex: 0 }, passage.text),
    h("form", { method: "dialog" }, h("button.btn.main", { autofocus: true }, "Close")),
  );
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
}

/** List the documents and take new ones. @param {() => void} changed */
export async function showDocuments(changed) {
  await takesDocuments();
  const list = h("div.stack");
  const picker = h("input", {
    type: "file",
    multiple: true,
    hidden: true,
    onchange: async () => {
      await tried(() => takeFiles(picker.files));
      picker.value = "";
      draw();
      changed();
    },
  });
  function draw() {
    list.replaceChildren(
      ...known.documents.map((one) =>
        h(
          "div.row",
          {},
          h("span.grow", {}, one.name, h("small.soft", {}, ` ${one.passages} passages`)),
          button(`Forget ${one.name}`, {
            name: "bin",
            onclick: async () => {
              await tried(() => del(`/v1/documents/${one.id}`));
              await takesDocuments();
              draw();
              changed();
            },
          }),
        ),
      ),
      known.documents.length
        ? ""
        : h(
            "p.soft",
            {},
            known.is_fixed
              ? "This server answers from an index that was named when it started."
              : "None yet. Add PDF, Word, Markdown, HTML, CSV or text files: answers then rest on their passages, and say on which.",
          ),
    );
  }
  draw();
  const dialog = h(
    "dialog",
    { "aria-labelledby": "documents-title" },
    h("h2", { id: "documents-title" }, "Documents"),
    list,
    picker,
    h(
      "form",
      { method: "dialog" },
      h(
        "div.row",
        {},
        known.is_fixed ? "" : button("Add documents", { name: "plus", word: "Add", onclick: () => picker.click() }),
        h("span.grow"),
        h("button.btn.main", {}, "Done"),
      ),
    ),
  );
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
}
