// The details of the selected item or visitor.

/** @import { EventItem, RequestItem } from "./items.js" */

import { bodyElement } from "./body.js";
import { commandParts } from "./command.js";
import { byId, el } from "./elements.js";
import { clock, plural, size, textOf } from "./format.js";
import { onFrame, touch } from "./frame.js";
import { heading } from "./heading.js";
import { visitorButton } from "./visitor.js";
import { journeyParts } from "./journey.js";
import { statusBadge } from "./rows.js";
import { select, showJourney } from "./selection.js";
import { state } from "./state.js";
import { violationParts } from "./violation.js";

export const detail = byId("detail");

/** @type {string | null} the visitor whose journey was drawn last */
let drawnJourney = null;

/** Set up the details, so that they are drawn when the selection changes. */
export function startDetail() {
  onFrame("detail", draw);
  touch("detail");
}

function draw() {
  const scroll = detail.scrollTop;
  const place = detail.contains(document.activeElement) ? buttons().findIndex((one) => one === document.activeElement) : null;
  const sameJourney = state.journey !== null && state.journey === drawnJourney;
  drawnJourney = state.journey;
  detail.dataset.open = String(state.journey !== null || state.selected !== null);
  detail.replaceChildren(...parts());
  detail.scrollTop = sameJourney ? scroll : 0;
  // New events are added at the end of a journey, so the earlier buttons of the journey keep their index.
  if (place !== null) ((sameJourney && buttons()[place]) || detail).focus({ preventScroll: true });
}

const buttons = () => [...detail.querySelectorAll("button")];

function parts() {
  if (state.journey !== null) return journeyParts(state.journey);
  const item = state.selected;
  if (item?.is === "request") return requestParts(item);
  if (item?.is === "event") return eventParts(item);
  if (item) return violationParts(item);
  return [el("p", { class: "hint" }, "Choose an event or a request to see all of it. A click on a visitor shows the journey.")];
}

/** @param {EventItem} event */
function eventParts(event) {
  const { request, visitor } = event;
  const rows = Object.entries(event.fields).map(([name, value]) => el("tr", {}, el("th", { scope: "row" }, name),
    el("td", {}, name === "sessionExternalId" && visitor ? visitorButton(visitor) : textOf(value))));
  const journey = el("button", { type: "button", click: () => showJourney(visitor) }, "Journey of this visitor");
  return [
    heading(event.name, ...(event.accepted ? [] : [el("span", { class: "badge bad" }, "not accepted")])),
    el("table", { class: "fields-table" }, el("tbody", {}, ...rows)),
    ...(visitor ? [el("div", {}, journey)] : []),
    el("h3", {}, "It came in"),
    el("div", {},
      el("button", { type: "button", class: "link", click: () => select(request) }, `request #${request.number}`), " ",
      statusBadge(request), el("span", { class: "faint" }, ` at ${clock(request.time)}`)),
    ...commandParts(request),
  ];
}

/** @param {RequestItem} request */
function requestParts(request) {
  const facts = [clock(request.time), size(request.bytes), `${plural(request.events, "event")} accepted`];
  return [
    heading(`Request #${request.number}`, statusBadge(request),
      ...(request.fault ? [el("span", { class: "badge warn" }, `fault: ${request.fault}`)] : [])),
    el("p", {}, el("span", { class: "mono" }, `${request.method} ${request.path}`),
      el("span", { class: "faint" }, ` · ${facts.join(" · ")}`)),
    ...(request.reasons.length ? [
      el("h3", {}, "Refused because"),
      el("ul", { class: "reasons" }, ...request.reasons.map((reason) => el("li", {}, reason))),
    ] : []),
    ...(request.body ? [
      el("h3", {}, request.cut ? "Body, the beginning of it" : "Body"),
      bodyElement(request.body, request.reasons, request.cut),
    ] : []),
    ...commandParts(request),
  ];
}
