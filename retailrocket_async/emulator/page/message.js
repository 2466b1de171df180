// Applies the messages of the stream, which report changes of the emulator, to the state of the page.

/** @import { RequestRecord, ViolationRecord } from "./items.js" */
/** @import { PendingFault, Stats } from "./state.js" */

import { forgetTypes } from "./filters.js";
import { touch } from "./frame.js";
import { itemsOf, violationItemOf } from "./items.js";
import { state } from "./state.js";

/**
 * A message. The docstring of `_stream.py` describes each field.
 *
 * @typedef {object} Message
 * @property {number} now
 * @property {boolean} [reset]
 * @property {{ limit: number | null, per: number, partner_id: string }} [settings]
 * @property {PendingFault[]} [faults]
 * @property {number} [missed]
 * @property {Stats} [stats]
 * @property {[number, number, number][]} [rates]
 * @property {RequestRecord[]} [requests]
 * @property {ViolationRecord[]} [violations]
 */

const KEEP_EVENTS = 5000;
const KEEP_REQUESTS = 1000;
const KEEP_VIOLATIONS = 1000;

/**
 * Apply a message to the state of the page.
 *
 * @param {Message} message
 */
export function apply(message) {
  state.skew = message.now - Date.now() / 1000;
  if (message.reset) forget();
  if (message.settings) {
    state.limit = message.settings.limit;
    state.per = message.settings.per;
    state.partner = message.settings.partner_id;
    touch("shop");
  }
  if (message.faults) {
    state.faults = message.faults;
    touch("faults");
  }
  if (message.missed) state.missed += message.missed;
  if (message.stats) state.stats = message.stats;
  if (message.rates) state.rates = new Map(message.rates.map(([second, arrived, over]) => [second, [arrived, over]]));
  if (message.requests?.length) add(message.requests);
  if (message.violations) addViolations(message.violations);
  touch("list", "counts", "plot");
}

/** @param {RequestRecord[]} records */
function add(records) {
  const items = records.map(itemsOf);
  state.requests = state.requests.concat(items.map(({ request }) => request)).slice(-KEEP_REQUESTS);
  state.events = state.events.concat(items.flatMap(({ events }) => events)).slice(-KEEP_EVENTS);
  const visitor = state.journey;
  if (visitor !== null && records.some(({ body }) => body.includes(visitor))) touch("detail");
  const item = state.selected;
  if (item?.is === "violation" && records.some(({ number }) => [item.request, item.other].includes(number))) touch("detail");
}

/** @param {ViolationRecord[]} records */
function addViolations(records) {
  // After a reconnection the emulator sends all violations again.
  const last = state.violations.at(-1)?.number ?? 0;
  const items = records.filter(({ number }) => number > last).map(violationItemOf);
  state.violations = state.violations.concat(items).slice(-KEEP_VIOLATIONS);
}

function forget() {
  forgetTypes();
  state.violations = [];
  state.events = [];
  state.requests = [];
  state.rates.clear();
  state.missed = 0;
  state.selected = null;
  state.journey = null;
  state.hold = null;
  touch("detail");
}
