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
 * Set up the filters.
 *
 * @param {() => void} changed called when a reader changes a filter
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

/** Return a function that takes an item and returns whether the item passes all filters. */
export function matcher() {
  const text = search.value.trim().toLowerCase();
  const name = type.value;
  const who = visitor.value.trim();
  return (/** @type {Item} */ item) => {
    if (name && !hasType(item, name)) return false;
    if (who && !(item.is === "request" ? item.body : item.visitor).includes(who)) return false;
    return !text || searchText(item).includes(text);
  };
}

/**
 * Return whether an item is an event of this type, or a request with one. A violation has no type.
 *
 * @param {Item} item
 * @param {string} name
 */
const hasType = (item, name) => (item.is === "request" ? item.types.has(name) : item.is === "event" && item.name === name);

/** Return whether any filter is set. */
export const isFiltered = () => fields.some((field) => field.value.trim() !== "");

/** Remove all filters. */
export function clearFilters() {
  for (const field of fields) field.value = "";
  touch("list");
}

/** Move the focus to the search field, and select its text. */
export function focusSearch() {
  search.focus();
  search.select();
}

/**
 * Return whether a target is the search field.
 *
 * @param {EventTarget | null} target
 */
export const isSearch = (target) => target === search;

/** Add the types of all present events to the choices of the type filter. */
export function offerTypes() {
  const types = new Set(state.events.map((event) => event.name));
  const known = new Set(Array.from(type.options, (option) => option.value));
  for (const name of [...types].sort()) if (!known.has(name)) type.append(el("option", { value: name }, name));
}

/** Remove all types from the choices of the type filter, and reset the filter. */
export function forgetTypes() {
  type.length = 1;
}
