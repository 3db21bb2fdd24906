/** What the views share: the models of this server, and what one view hands to another. */

import { get } from "./api.js";
import { h, select } from "./dom.js";
import { preferences } from "./store.js";

/** @type {{models: any[], look: any, compare: any}} */
export const shared = { models: [], look: null, compare: null };

/** Ask the server which models it has. */
export async function loadModels() {
  shared.models = (await get("/v1/models")).data;
  return shared.models;
}

/** Whether a model can do something: "chat", "complete", "embed", "image". */
export const can = (name, what) => (shared.models.find((one) => one.id === name)?.can || []).includes(what);

/** The model that was chosen last, or the first one there is. */
export const chosenModel = (fits = () => true) =>
  (shared.models.find((one) => one.id === preferences.model && fits(one)) || shared.models.find(fits) || shared.models[0])?.id ||
  "";

/** Make a list of models to choose from. */
export const modelSelect = (chosen, onchange, fits = () => true) =>
  select(
    shared.models.filter(fits).map((one) => one.id),
    chosen,
    onchange,
  );

/** Sampling settings as they are sent; what is left empty is the model's own choice. */
export function sampling() {
  const sent = {};
  for (const key of ["temperature", "top_p", "top_k", "max_tokens", "seed"]) {
    const value = Number(preferences[key]);
    if (preferences[key] !== "" && Number.isFinite(value)) sent[key] = value;
  }
  return sent;
}

/** Who votes here. */
export const rater = () => preferences.rater.trim() || "anonymous";

/** A place that has nothing to show yet. */
export const empty = (drawn, title, ...rest) => h("div.empty", {}, drawn, h("h2", {}, title), ...rest);
