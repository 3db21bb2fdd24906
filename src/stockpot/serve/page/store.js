/** What stays in this browser: conversations (IndexedDB) and harmless preferences (localStorage). Nothing of it is sent anywhere. */

const NAME = "stockpot",
  STORE = "conversations";

/** @returns {Promise<IDBDatabase>} */
let opened;
function open() {
  opened ||= new Promise((resolve, reject) => {
    const request = indexedDB.open(NAME, 1);
    request.onupgradeneeded = () => request.result.createObjectStore(STORE, { keyPath: "id" });
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
  return opened;
}

async function ask(mode, work) {
  const database = await open();
  return new Promise((resolve, reject) => {
    const request = work(database.transaction(STORE, mode).objectStore(STORE));
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

/** Give all conversations, the latest first. */
export const conversations = async () => (await ask("readonly", (store) => store.getAll())).sort((a, b) => b.changed - a.changed);
/** Keep a conversation. */
export const keep = (conversation) => ask("readwrite", (store) => store.put(conversation));
/** Forget a conversation. */
export const forget = (id) => ask("readwrite", (store) => store.delete(id));

const DEFAULTS = {
  theme: "auto",
  model: "",
  rater: "",
  system: "",
  temperature: "",
  top_p: "",
  top_k: "",
  max_tokens: "",
  seed: "",
  documents: true,
  first: "",
  second: "",
  compareTemperature: "0.8",
  compareTokens: "256",
};

/** Preferences, kept when they change. */
export const preferences = new Proxy(
  { ...DEFAULTS, ...read() },
  {
    set(target, key, value) {
      target[key] = value;
      try {
        localStorage.setItem("stockpot", JSON.stringify(target));
      } catch {
        /* private windows may refuse; then they last as long as the page */
      }
      return true;
    },
  },
);

function read() {
  try {
    return JSON.parse(localStorage.getItem("stockpot") || "{}");
  } catch {
    return {};
  }
}
