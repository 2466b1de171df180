// The state of the page: the data from the emulator, and the view that the reader has chosen.

/** @import { EventItem, Item, RequestItem, ViolationItem } from "./items.js" */

/**
 * A fault as the emulator describes it. Fields without a value are null.
 *
 * @typedef {object} PendingFault
 * @property {string} kind
 * @property {number | null} times the number of requests left; null if the fault applies until it is removed
 * @property {number | null} status
 * @property {string | null} retry_after
 * @property {string | null} body
 * @property {number | null} seconds
 * @property {string | null} path
 * @property {string | null} contains
 */

/**
 * The counters of the overview.
 *
 * @typedef {object} Stats
 * @property {number} total_events
 * @property {number} requests
 * @property {number} refused
 * @property {number} over_limit
 * @property {number} overlaps
 * @property {number} backward_steps
 */

/** @typedef {"events" | "refused" | "requests" | "order"} View */

export const state = {
  /** @type {EventItem[]} oldest first; events of refused requests are included */
  events: [],
  /** @type {RequestItem[]} oldest first */
  requests: [],
  /** @type {ViolationItem[]} oldest first */
  violations: [],
  /** @type {Stats} */
  stats: { total_events: 0, requests: 0, refused: 0, over_limit: 0, overlaps: 0, backward_steps: 0 },
  /** @type {Map<number, [number, number]>} by second: the number of arrivals, and of those over the limit */
  rates: new Map(),
  /** @type {number | null} requests in `per` seconds; null if there is no limit */
  limit: null,
  per: 1,
  /** @type {PendingFault[]} */
  faults: [],
  partner: "",
  skew: 0, // seconds by which the emulator's clock is ahead of the browser's clock
  missed: 0, // how many requests the stream left out
  /** @type {View} */
  view: "events",
  /** @type {Item[]} the items of the list, newest first */
  shown: [],
  /** @type {number | null} the id of the newest item that a held list shows; null if the list is not held */
  hold: null,
  fresh: 0, // how many new items the held list does not show
  /** @type {Item | null} */
  selected: null,
  /** @type {string | null} the visitor whose journey is shown */
  journey: null,
};

/** Return the current time of the emulator's clock, in seconds since 1970. */
export const now = () => Date.now() / 1000 + state.skew;
