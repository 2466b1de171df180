// The selection of the reader: an item of the list, or a visitor.

/** @import { Item } from "./items.js" */

import { touch } from "./frame.js";
import { hold, list, reveal } from "./list.js";
import { state } from "./state.js";

/**
 * Select an item: show its details, and hold the list.
 *
 * @param {Item} item
 */
export function select(item) {
  state.selected = item;
  state.journey = null;
  hold();
  touch("rows", "detail");
}

/**
 * Select the item that is `step` rows below the selected item, and scroll to the new item.
 *
 * @param {number} step a negative number selects an item above
 */
export function move(step) {
  if (!state.shown.length) return;
  const place = (state.selected ? state.shown.indexOf(state.selected) : -1) + step;
  const item = state.shown[Math.min(Math.max(place, 0), state.shown.length - 1)];
  select(item);
  reveal(item);
}

/**
 * Show the journey of a visitor. If the name is empty, do nothing.
 *
 * @param {string} visitor
 */
export function showJourney(visitor) {
  if (!visitor) return;
  state.journey = visitor;
  touch("detail");
}

/**
 * Return the visitor of an event or a violation, or an empty string for a request.
 *
 * @param {Item} item
 */
export const visitorOf = (item) => (item.is === "request" ? "" : item.visitor);

/** Remove the selection. If the list is scrolled to its top, the list is no longer held. */
export function closeDetail() {
  state.selected = null;
  state.journey = null;
  if (list.scrollTop === 0) state.hold = null;
  touch("list", "detail");
}
