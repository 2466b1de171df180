// The keyboard shortcuts, with which the whole page can be used without a mouse.

import { detail } from "./detail.js";
import { clearFilters, focusSearch, isFiltered, isSearch } from "./filters.js";
import { list, pageLength } from "./list.js";
import { closeDetail, move, showJourney, visitorOf } from "./selection.js";
import { state } from "./state.js";

/** Set up the keyboard shortcuts. */
export function startKeyboard() {
  list.addEventListener("keydown", onListKey);
  document.addEventListener("keydown", onKey);
}

/** @param {KeyboardEvent} event */
function onListKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const page = pageLength();
  /** @type {Record<string, number>} */
  const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -state.shown.length, End: state.shown.length };
  if (Object.hasOwn(steps, event.key)) move(steps[event.key]);
  else if (event.key === "Enter" && state.selected) detail.focus();
  else if (event.key.toLowerCase() === "v" && state.selected) showJourney(visitorOf(state.selected));
  else return;
  event.preventDefault();
}

/** @param {KeyboardEvent} event */
function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  const typing = event.target instanceof Element && event.target.closest("input, select, textarea");
  if (event.key === "/" && !typing) {
    focusSearch();
  } else if (event.key === "ArrowDown" && isSearch(event.target)) {
    list.focus();
    move(1);
  } else if (event.key === "Escape") {
    escape();
  } else {
    return;
  }
  event.preventDefault();
}

/** Close the details if the focus is inside them or no filter is set; otherwise clear the filters. */
function escape() {
  if (detail.contains(document.activeElement)) {
    closeDetail();
    list.focus();
  } else if (isFiltered()) {
    clearFilters();
  } else {
    closeDetail();
  }
}
