// The filters of the list: by text, by type, and by visitor.

/** @import { Item } from "./items.js" */

import { byId, el } from "./elements.js";
import { touch } from "./frame.js";
import { searchText } from "./items.js";
import { state } from "./state.js";

const search = byId("search", HTMLInputElement);
const type = byId("type", HTMLSelectElement);
const visitor = byId("visitor", HTMLInputElement);
const fields = [search, type, visitor];

/**
 * Apply the filters from now on.
 *
 * @param {() => void} changed is called when a reader changes a filter
 */
export function startFilters(changed) {
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  for (const field of fields) field.addEventListener("input", changed);
  for (const id of ["clear", "nothing-clear"]) {
    byId(id).addEventListener("click", () => {
      clearFilters();
      search.focus();
    });
  }
}

/** Return a function that says whether an item passes the filters. */
export function matcher() {
  const text = search.value.trim().toLowerCase();
  const name = type.value;
  const who = visitor.value.trim();
  return (/** @type {Item} */ item) => {
    if (name && !(item.isRequest ? item.types.has(name) : item.name === name)) return false;
    if (who && !(item.isRequest ? item.body : item.visitor).includes(who)) return false;
    return !text || searchText(item).includes(text);
  };
}

/** Return whether any filter is set. */
export const isFiltered = () => fields.some((field) => field.value.trim() !== "");

/** Unset all filters. */
export function clearFilters() {
  for (const field of fields) field.value = "";
  touch("list");
}

/** Move the focus to the search field, with its text selected. */
export function focusSearch() {
  search.focus();
  search.select();
}

/**
 * Return whether this is the search field.
 *
 * @param {EventTarget | null} target
 */
export const isSearch = (target) => target === search;

/** Offer the types of all events, besides those already offered. */
export function offerTypes() {
  const types = new Set(state.events.map((event) => event.name));
  const known = new Set(Array.from(type.options, (option) => option.value));
  for (const name of [...types].sort()) if (!known.has(name)) type.append(el("option", { value: name }, name));
}

/** Offer no type, and filter by none. */
export function forgetTypes() {
  type.length = 1;
}
