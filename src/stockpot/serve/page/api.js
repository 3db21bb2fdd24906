/** All requests to the server. The token, where one is needed, lives in memory only and is asked for again after a reload. */

import { h } from "./dom.js";

/** An answer that is an error, with what the server says. */
export class ApiError extends Error {
  constructor(status, message, code) {
    super(message);
    this.name = "ApiError";
    this.status = status;
    this.code = code;
  }
}

let token = "";

/** Take the token out of an address like http://host/#token=…, so that it is not seen or kept. */
export function takeToken() {
  const found = /^#token=([\w.~-]+)$/.exec(location.hash);
  if (found) {
    token = found[1];
    history.replaceState(null, "", "#/chat");
  }
}

async function request(method, path, body, { signal, raw } = {}) {
  for (;;) {
    const headers = token ? { authorization: `Bearer ${token}` } : {};
    if (body !== undefined) headers["content-type"] = raw ? "application/octet-stream" : "application/json";
    let response;
    try {
      response = await fetch(path, {
        method,
        headers,
        signal,
        body: body === undefined ? undefined : raw ? body : JSON.stringify(body),
      });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ApiError(0, "The server cannot be reached. Is it still running?");
    }
    if (response.ok) return response;
    if (response.status === 401 && (await askForToken())) continue;
    const told = await response.json().catch(() => ({}));
    throw new ApiError(response.status, told.error?.message || `The server answered ${response.status}.`, told.error?.code);
  }
}

let asking = null;

/** Ask for the token once, however many requests wait for it. */
function askForToken() {
  asking ||= new Promise((resolve) => {
    const input = h("input", { type: "password", autocomplete: "off", required: true, id: "token" });
    const dialog = h(
      "dialog",
      { "aria-labelledby": "token-title" },
      h(
        "form",
        { method: "dialog" },
        h("h2", { id: "token-title" }, "This server needs a token"),
        h("p.soft", {}, "It was shown once when the server started."),
        h("label", { htmlFor: "token" }, "Token"),
        input,
        h("div.row", {}, h("button.btn.main", {}, "Go on")),
      ),
    );
    dialog.addEventListener("close", () => {
      token = input.value.trim();
      dialog.remove();
      asking = null;
      resolve(token !== "");
    });
    document.body.append(dialog);
    dialog.showModal();
  });
  return asking;
}

/** @returns {Promise<any>} */
export const get = async (path, options) => (await request("GET", path, undefined, options)).json();
/** @returns {Promise<any>} */
export const post = async (path, body, options) => (await request("POST", path, body, options)).json();
/** @returns {Promise<any>} */
export const del = async (path, options) => (await request("DELETE", path, undefined, options)).json();
/** @returns {Promise<string>} */
export const text = async (path, options) => (await request("GET", path, undefined, options)).text();

/**
 * Post and receive server-sent events.
 * @param {(event: any) => void} take is told every event
 */
export async function stream(path, body, take, { signal } = {}) {
  const response = await request("POST", path, body, { signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    held += value;
    const events = held.split("\n\n");
    held = events.pop();
    for (const event of events) {
      const data = event
        .split("\n")
        .filter((line) => line.startsWith("data:"))
        .map((line) => line.slice(5).trim())
        .join("\n");
      if (!data) continue;
      if (data === "[DONE]") return;
      const told = JSON.parse(data);
      if (told.error) throw new ApiError(500, told.error.message, told.error.code);
      take(told);
    }
  }
}
