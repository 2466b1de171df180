// The form with which a reader adds faults, and the list of pending faults.

/** @import { PendingFault } from "./state.js" */

import { announce } from "./announcement.js";
import { control } from "./control.js";
import { byId, el, setText } from "./elements.js";
import { plural } from "./format.js";
import { onFrame, touch } from "./frame.js";
import { state } from "./state.js";

/**
 * A fault as it is sent to the emulator.
 *
 * @typedef {{ kind: string, status?: number, retry_after?: string, body?: string, seconds?: number }} NewFault
 */

/** @type {{ name: string, fault: NewFault, explanation: string }[]} */
const FAULTS = [
  { name: "503", fault: { kind: "status", status: 503 }, explanation: "The answer 503; the request is not recorded" },
  { name: "500", fault: { kind: "status", status: 500 }, explanation: "The answer 500; the request is not recorded" },
  {
    name: "429, wait 2 s",
    fault: { kind: "status", status: 429, retry_after: "2" },
    explanation: "The answer 429 with Retry-After: 2",
  },
  { name: "400", fault: { kind: "status", status: 400 }, explanation: "The answer 400, whatever the request holds" },
  {
    name: "403 of a proxy",
    fault: { kind: "status", status: 403, body: "<h1>Access denied</h1>" },
    explanation: "A page of HTML that is not the API's",
  },
  { name: "Slow, 2 s", fault: { kind: "latency", seconds: 2 }, explanation: "The usual answer, two seconds late" },
  { name: "Timeout", fault: { kind: "stall" }, explanation: "No answer until the client gives up" },
  {
    name: "Broken before",
    fault: { kind: "reset_before" },
    explanation: "The connection is reset; the request is not recorded",
  },
  {
    name: "Broken after",
    fault: { kind: "reset_after" },
    explanation: "The request is recorded, then the connection is reset: its answer is lost",
  },
  { name: "Closed", fault: { kind: "close_before" }, explanation: "The connection is closed in order without an answer" },
  {
    name: "Cut answer",
    fault: { kind: "truncate" },
    explanation: "The request is recorded; only the first bytes of the answer arrive",
  },
  { name: "Wrong answer", fault: { kind: "garbage" }, explanation: "Bytes that are no HTTP" },
];

const MOST_TIMES = 9999;

/** Set up the form and the list: a click on a button of the form adds a fault. */
export function startFaults() {
  onFrame("faults", draw);
  touch("faults");
  byId("fault-buttons").append(...FAULTS.map(({ name, fault, explanation }) =>
    el("button", { type: "button", title: explanation, "data-kind": fault.kind, click: () => add(name, fault) }, name)));
  byId("faults-clear").addEventListener("click", async () => {
    if (await control("DELETE", "faults")) announce("All faults dropped");
  });
  if (matchMedia("(max-width: 900px)").matches) byId("faults", HTMLDetailsElement).open = false;
}

/**
 * @param {string} name
 * @param {NewFault} fault
 */
async function add(name, fault) {
  const field = byId("times", HTMLInputElement);
  const times = Math.min(Math.max(1, Math.floor(Number(field.value) || 1)), MOST_TIMES);
  field.value = String(times);
  if (await control("POST", "faults", [{ ...fault, times }])) announce(`Fault added: ${name}, ${plural(times, "time")}`);
}

function draw() {
  byId("pending").replaceChildren(...state.faults.map((fault) =>
    el("li", {}, el("span", {}, nameOf(fault)), " ", el("span", {}, timesLeft(fault)))));
  byId("faults-clear").hidden = state.faults.length === 0;
  byId("faults-count").hidden = state.faults.length === 0;
  setText(byId("faults-count"), `${state.faults.length} pending`);
}

/** @param {PendingFault} fault */
function timesLeft({ times }) {
  return times === null ? "until dropped" : `${times.toLocaleString("en")} left`;
}

/** @param {PendingFault} fault */
function nameOf(fault) {
  const conditions = [fault.path, fault.contains && `with ${fault.contains}`].filter(Boolean).join(", ");
  return `${kindOf(fault)}${conditions ? ` (${conditions})` : ""}`;
}

/**
 * Return the name of the button that adds such a fault. If there is no such button, return the status or the kind.
 *
 * @param {PendingFault} fault
 */
function kindOf(fault) {
  if (fault.kind === "latency") return `latency ${fault.seconds} s`;
  const same = FAULTS.find(({ fault: { kind, status, retry_after: retryAfter = null, body = null } }) => kind === fault.kind
    && (kind !== "status" || (status === fault.status && retryAfter === fault.retry_after && body === fault.body)));
  return same?.name ?? (fault.kind === "status" ? String(fault.status) : fault.kind);
}
