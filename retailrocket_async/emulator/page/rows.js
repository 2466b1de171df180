// The rows of the list: one line for an event, a request or a violation.

/** @import { EventItem, Item, RequestItem, ViolationItem } from "./items.js" */

import { el } from "./elements.js";
import { familyOf } from "./families.js";
import { clock, plural, size, span, textOf } from "./format.js";
import { PREFIX } from "./items.js";

const SHOWN_FIELDS = 8;
const SHOWN_CHARACTERS = 120;

/**
 * Return the row of an item.
 *
 * @param {Item} item
 */
export function rowOf(item) {
  return el("div", { class: `row ${item.is}`, role: "option", id: `item-${item.id}` }, ...cellsOf(item));
}

/** @param {Item} item */
function cellsOf(item) {
  if (item.is === "request") return requestCells(item);
  return item.is === "event" ? eventCells(item) : violationCells(item);
}

/**
 * Return the badge for a request's status: good if its events were accepted, a warning if a fault applied.
 *
 * @param {RequestItem} request
 */
export function statusBadge(request) {
  const kind = request.accepted && request.status === 200 ? "good" : request.fault ? "warn" : "bad";
  return el("span", { class: `badge ${kind}` }, request.status === null ? "none" : String(request.status));
}

/**
 * Return a few words about the two requests of a violation.
 *
 * @param {ViolationItem} violation
 */
export function violationText({ request, other, timestamp, other_timestamp: otherTimestamp }) {
  return timestamp === null || otherTimestamp === null
    ? `#${request} arrived while #${other} was under way`
    : `#${request} has an event ${span(otherTimestamp - timestamp)} older than one of #${other}`;
}

/** @param {EventItem} event */
function eventCells(event) {
  return [
    el("span", { class: "time" }, clock(event.request.time)),
    el("span", { class: "type", "data-family": familyOf(event.name) }, event.name),
    visitorCell(event.visitor),
    summary(event.fields),
  ];
}

/** @param {ViolationItem} violation */
function violationCells(violation) {
  return [
    el("span", { class: "time" }, clock(violation.time)),
    el("span", { class: "kind" }, el("span", { class: "badge bad" }, violation.kind)),
    visitorCell(violation.visitor),
    el("span", { class: "fields" }, violationText(violation)),
  ];
}

/** @param {string} visitor */
const visitorCell = (visitor) => el("span", { class: "who", title: `Journey of ${visitor}` }, visitor);

/** @param {Record<string, unknown>} fields */
function summary(fields) {
  const shown = Object.entries(fields).filter(([name]) => name !== "sessionExternalId").slice(0, SHOWN_FIELDS);
  return el("span", { class: "fields" }, ...shown.map(([name, value]) => {
    const text = textOf(value);
    const cut = text.length > SHOWN_CHARACTERS ? `${text.slice(0, SHOWN_CHARACTERS)}…` : text;
    return el("span", {}, el("i", {}, name), ` ${cut}`);
  }));
}

/** @param {RequestItem} request */
function requestCells(request) {
  const path = request.path.startsWith(PREFIX) ? request.path.slice(PREFIX.length) : request.path;
  return [
    el("span", { class: "time" }, clock(request.time)),
    el("span", { class: "status" }, statusBadge(request)),
    el("span", { class: "kind" }, `#${request.number} ${path}`),
    el("span", { class: "fields" }, ...outcome(request)),
  ];
}

/**
 * Return the reasons if a request was refused; otherwise its fault if there was one; otherwise its events.
 *
 * @param {RequestItem} request
 * @returns {(string | Node)[]}
 */
function outcome(request) {
  const events = `${plural(request.events, "event")}, ${size(request.bytes)}`;
  if (request.reasons.length) {
    const more = request.reasons.length > 1 ? ` (and ${request.reasons.length - 1} more)` : "";
    return [el("span", { class: "why" }, `${request.reasons[0]}${more}`)];
  }
  if (request.fault) {
    return [el("span", { class: "why fault" }, `fault: ${request.fault}`), request.accepted ? `, ${events}` : ""];
  }
  return [events];
}
