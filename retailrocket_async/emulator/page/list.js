// The list of events, requests or violations. Only the visible rows, and a few above and below them, are in the document.

/** @import { Item } from "./items.js" */
/** @import { View } from "./state.js" */

import { byId, setText } from "./elements.js";
import { isFiltered, matcher, offerTypes, startFilters } from "./filters.js";
import { onFrame, touch } from "./frame.js";
import { newestId } from "./items.js";
import { rowOf } from "./rows.js";
import { state } from "./state.js";

const OVERSCAN = 8; // rows above and below the visible rows
const HELD_BELOW = 4; // if the list is scrolled by more pixels, it is held: see `hold`

/** @type {Record<View, string>} */
const NAMES = { events: "Events", refused: "Refused requests", requests: "Requests", order: "Violations of the order" };

/** @type {Record<View, () => Item[]>} */
const ITEMS = {
  events: () => state.events.filter((event) => event.accepted),
  refused: () => state.requests.filter((request) => request.reasons.length),
  requests: () => state.requests,
  order: () => state.violations,
};

const VIEWS = /** @type {View[]} */ (Object.keys(ITEMS));

export const list = byId("list");
const rows = byId("rows");

/** @type {Map<Item, HTMLElement>} */
const drawn = new Map();

/** @type {WeakMap<Element, Item>} */
const itemsOfRows = new WeakMap();

/** Set up the list, so that it is drawn when its items change. */
export function startList() {
  onFrame("list", choose);
  onFrame("rows", drawRows);
  startFilters(() => {
    list.scrollTop = 0;
    touch("list");
  });
  for (const view of VIEWS) button(view).addEventListener("click", () => show(view));
  byId("newest").addEventListener("click", () => {
    state.hold = null;
    list.scrollTop = 0;
    touch("list");
    list.focus();
  });
  list.addEventListener("scroll", () => {
    if (list.scrollTop > HELD_BELOW) hold();
    else if (!state.selected) state.hold = null;
    touch("list");
  }, { passive: true });
  new ResizeObserver(() => touch("rows")).observe(list);
}

/** @param {View} view */
function button(view) {
  const found = document.querySelector(`[data-view=${view}]`);
  if (!found) throw new Error(`the page has no button for the view ${view}`);
  return found;
}

/** Hold the list: new items are only counted, and not shown, so that the shown rows do not move. */
export function hold() {
  state.hold ??= newestId();
}

/**
 * Scroll the list so that an item is visible.
 *
 * @param {Item} item
 */
export function reveal(item) {
  const top = state.shown.indexOf(item) * rowHeight();
  if (top < list.scrollTop) list.scrollTop = top;
  else if (top + rowHeight() > list.scrollTop + list.clientHeight) list.scrollTop = top + rowHeight() - list.clientHeight;
}

/** Return the number of fully visible rows minus one, but at least 1. */
export const pageLength = () => Math.max(1, Math.floor(list.clientHeight / rowHeight()) - 1);

/**
 * Call a function for each click on a row.
 *
 * @param {(item: Item, target: Element) => void} clicked
 */
export function onRowClick(clicked) {
  rows.addEventListener("click", ({ target }) => {
    const row = target instanceof Element ? target.closest(".row") : null;
    const item = row && itemsOfRows.get(row);
    if (item && target instanceof Element) clicked(item, target);
  });
}

/** @param {View} view */
function show(view) {
  state.view = view;
  state.hold = null;
  list.scrollTop = 0;
  list.setAttribute("aria-label", `${NAMES[view]}, newest first`);
  for (const other of VIEWS) button(other).setAttribute("aria-pressed", String(other === view));
  touch("list");
}

/** Choose the items to show. */
function choose() {
  const found = ITEMS[state.view]().filter(matcher()).reverse();
  const newest = state.hold;
  state.shown = newest === null ? found : found.filter((item) => item.id <= newest);
  state.fresh = found.length - state.shown.length;
  for (const view of VIEWS) setText(byId(`n-${view}`), ITEMS[view]().length.toLocaleString("en"));
  offerTypes();
  const filtered = isFiltered();
  byId("clear").hidden = !filtered;
  const isEmpty = state.requests.length === 0 && state.violations.length === 0;
  byId("empty").hidden = !isEmpty;
  byId("nothing").hidden = isEmpty || state.shown.length > 0;
  setText(byId("nothing-text"), filtered ? "Nothing here matches. " : "Nothing here yet.");
  byId("nothing-clear").hidden = !filtered;
  byId("newest").hidden = state.fresh === 0;
  setText(byId("newest"), `↑ ${state.fresh.toLocaleString("en")} new`);
  touch("rows");
}

const rowHeight = () => parseInt(getComputedStyle(list).getPropertyValue("--row"), 10);

/** Draw the visible rows. The element of a row is reused while the row remains visible. */
function drawRows() {
  const height = rowHeight();
  const total = state.shown.length;
  rows.style.height = `${total * height}px`;
  const from = Math.max(0, Math.floor(list.scrollTop / height) - OVERSCAN);
  const to = Math.min(total, Math.ceil((list.scrollTop + list.clientHeight) / height) + OVERSCAN);
  const wanted = new Set(state.shown.slice(from, to));
  for (const [item, row] of drawn) {
    if (wanted.has(item)) continue;
    row.remove();
    drawn.delete(item);
  }
  let active = null;
  for (let index = from; index < to; index += 1) {
    const item = state.shown[index];
    const row = drawn.get(item) ?? addRow(item);
    row.style.transform = `translateY(${index * height}px)`;
    row.setAttribute("aria-posinset", String(index + 1));
    row.setAttribute("aria-setsize", String(total));
    row.setAttribute("aria-selected", String(item === state.selected));
    if (item === state.selected) active = row.id;
  }
  if (active) list.setAttribute("aria-activedescendant", active);
  else list.removeAttribute("aria-activedescendant");
}

/** @param {Item} item */
function addRow(item) {
  const row = rowOf(item);
  drawn.set(item, row);
  itemsOfRows.set(row, item);
  rows.append(row);
  return row;
}
