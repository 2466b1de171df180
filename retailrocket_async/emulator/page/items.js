// The items of the list: requests, the events of these requests, and violations of the order of a visitor's events.

import { textOf } from "./format.js";

/**
 * A request as the stream sends it, made by `RequestRecord.as_dict` in `_records.py`.
 *
 * @typedef {object} RequestRecord
 * @property {number} number
 * @property {number} time seconds since 1970
 * @property {string} method
 * @property {string} path
 * @property {Record<string, string>} query
 * @property {string | null} content_type
 * @property {number | null} status null if the request got no answer
 * @property {string | null} fault
 * @property {string[]} reasons why the request was refused
 * @property {number} events how many events were accepted
 * @property {number} bytes
 * @property {string} body
 * @property {boolean} cut whether a part of the body is missing
 */

/**
 * A request. `types` are the types of its events. `text` is the text that is searched, made by the first search.
 *
 * @typedef {RequestRecord & { id: number, is: "request", accepted: boolean, types: Set<string>, text?: string }} RequestItem
 */

/**
 * An event. `visitor` is empty if the event has no visitor.
 *
 * @typedef {object} EventItem
 * @property {number} id
 * @property {"event"} is
 * @property {RequestItem} request
 * @property {string} name
 * @property {Record<string, unknown>} fields
 * @property {string} visitor
 * @property {boolean} accepted
 * @property {string} [text] the text that is searched, made by the first search
 */

/**
 * A violation as the stream sends it. The docstring of `OrderViolation` in `_records.py` describes each field.
 *
 * @typedef {object} ViolationRecord
 * @property {number} number
 * @property {"overlap" | "backward"} kind
 * @property {string} visitor
 * @property {number} request
 * @property {number} time
 * @property {number} other
 * @property {number} other_time
 * @property {number | null} timestamp
 * @property {number | null} other_timestamp
 */

/** @typedef {ViolationRecord & { id: number, is: "violation", text?: string }} ViolationItem */

/** @typedef {RequestItem | EventItem | ViolationItem} Item */

/** The part of a path before the event type. */
export const PREFIX = "/1.0/";

const BATCH = "visitorEvents";

let lastId = 0;

/** Return the id of the newest item. Each new item gets the next higher integer as its id. */
export const newestId = () => lastId;

/**
 * A reviver for JSON.parse that returns a BigInt for an integer that a JavaScript number would round.
 *
 * @param {string} _
 * @param {unknown} value
 * @param {{ source?: string }} [context]
 */
function exactly(_, value, context) {
  if (typeof value !== "number" || !Number.isInteger(value) || Number.isSafeInteger(value)) return value;
  const source = context?.source ?? "";
  return /^-?\d+$/.test(source) ? BigInt(source) : value;
}

/**
 * @param {unknown} value
 * @returns {value is Record<string, unknown>}
 */
const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);

/**
 * Return the type and the fields of each event in a request. The list is empty if the body contains no events.
 *
 * @param {RequestRecord} request
 * @returns {[string, unknown][]}
 */
function pairsOf(request) {
  if (!request.path.startsWith(PREFIX)) return [];
  let data;
  try {
    data = JSON.parse(request.body, exactly);
  } catch {
    return [];
  }
  const name = request.path.slice(PREFIX.length);
  if (name !== BATCH) return [[name, data]];
  return Array.isArray(data) ? data.filter(isObject).flatMap((envelope) => Object.entries(envelope)) : [];
}

/**
 * Make the items of a request: the request itself, and its events.
 *
 * @param {RequestRecord} record
 * @returns {{ request: RequestItem, events: EventItem[] }}
 */
export function itemsOf(record) {
  const accepted = record.events > 0;
  const pairs = pairsOf(record);
  /** @type {RequestItem} */
  const request = { ...record, id: (lastId += 1), is: "request", accepted, types: new Set(pairs.map(([name]) => name)) };
  const events = pairs.map(([name, data]) => {
    const fields = isObject(data) ? data : {};
    const visitor = typeof fields.sessionExternalId === "string" ? fields.sessionExternalId : "";
    return { id: (lastId += 1), is: /** @type {const} */ ("event"), request, name, fields, visitor, accepted };
  });
  return { request, events };
}

/**
 * Make the item of a violation.
 *
 * @param {ViolationRecord} record
 * @returns {ViolationItem}
 */
export const violationItemOf = (record) => ({ ...record, id: (lastId += 1), is: "violation" });

/**
 * Return the text of an item that is searched, in lower case.
 *
 * @param {Item} item
 */
export function searchText(item) {
  item.text ??= rawText(item).toLowerCase();
  return item.text;
}

/** @param {Item} item */
function rawText(item) {
  if (item.is === "event") return `${item.name} ${textOf(item.fields)}`;
  if (item.is === "violation") return `${item.kind} ${item.visitor} #${item.request} #${item.other}`;
  return `#${item.number} ${item.status} ${item.path} ${item.fault ?? ""} ${item.reasons.join(" ")} ${item.body}`;
}
