// The details of a violation: what the two requests did, and why this is wrong.

/** @import { ViolationItem } from "./items.js" */

import { el } from "./elements.js";
import { clock } from "./format.js";
import { heading } from "./heading.js";
import { statusBadge, violationText } from "./rows.js";
import { select } from "./selection.js";
import { state } from "./state.js";
import { visitorButton } from "./visitor.js";

const RULES = {
  overlap: "The API asks that the second request with events of a visitor is sent only after the first was answered.",
  backward: "The requests were sent in another order than the events happened, or the shop gave the events these timestamps.",
};

/**
 * Return the details of a violation.
 *
 * @param {ViolationItem} violation
 */
export function violationParts(violation) {
  const { kind, visitor, request, time, other, other_time: otherTime } = violation;
  const rows = [
    row("Visitor", visitorButton(visitor)),
    ...requestRows("Request", request, time, violation.timestamp),
    ...requestRows("Other request", other, otherTime, violation.other_timestamp),
  ];
  return [
    heading("Order of a visitor's events", el("span", { class: "badge bad" }, kind)),
    el("p", {}, `Request ${violationText(violation)}.`),
    el("p", { class: "faint" }, RULES[kind]),
    el("table", { class: "fields-table" }, el("tbody", {}, ...rows)),
  ];
}

/**
 * @param {string} name
 * @param {number} number
 * @param {number} time
 * @param {number | null} timestamp
 */
function requestRows(name, number, time, timestamp) {
  const rows = [row(name, ...requestLink(number)), row("arrived at", clock(time))];
  return timestamp === null ? rows : [...rows, row("timestamp", new Date(timestamp * 1000).toISOString())];
}

/** @param {number} number */
function requestLink(number) {
  const found = state.requests.find((request) => request.number === number);
  if (!found) return [`#${number} `, el("span", { class: "faint" }, "under way, or no longer shown")];
  return [el("button", { type: "button", class: "link", click: () => select(found) }, `request #${number}`), " ", statusBadge(found)];
}

/**
 * @param {string} name
 * @param {...(string | Node)} value
 */
const row = (name, ...value) => el("tr", {}, el("th", { scope: "row" }, name), el("td", {}, ...value));
