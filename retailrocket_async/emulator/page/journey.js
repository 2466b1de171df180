// The details of a visitor: the journey, which is the list of the visitor's events in order.

/** @import { EventItem } from "./items.js" */

import { el } from "./elements.js";
import { familyOf } from "./families.js";
import { clock, plural, span, textOf } from "./format.js";
import { heading } from "./heading.js";
import { select } from "./selection.js";
import { state } from "./state.js";

const SHOWN_EVENTS = 500;

/**
 * Return the details of a visitor, with the last 500 events.
 *
 * @param {string} visitor
 */
export function journeyParts(visitor) {
  const events = state.events.filter((event) => event.visitor === visitor);
  const shown = events.slice(-SHOWN_EVENTS);
  const accepted = events.filter((event) => event.accepted).length;
  const count = `${plural(accepted, "event")}${accepted < events.length ? `, ${events.length - accepted} more not accepted` : ""}`;
  return [
    heading("Journey", ...backButton()),
    el("p", {}, el("span", { class: "mono" }, visitor), el("span", { class: "faint" }, ` · ${count}`)),
    el("ol", { class: "journey" }, ...shown.map((event, index) => step(event, shown[index - 1]))),
  ];
}

function backButton() {
  const item = state.selected;
  return item ? [el("button", { type: "button", class: "quiet", click: () => select(item) }, "← Back")] : [];
}

/**
 * @param {EventItem} event
 * @param {EventItem | undefined} before the visitor's event before this one; undefined for the first event
 */
function step(event, before) {
  const time = event.request.time;
  const when = before ? `+${span(Math.max(0, time - before.request.time))}` : clock(time);
  const { sessionExternalId: _, ...fields } = event.fields;
  const texts = Object.entries(fields).map(([name, value]) => `${name} ${textOf(value)}`);
  return el("li", { "data-family": familyOf(event.name) },
    el("button", { type: "button", click: () => select(event) }, event.name),
    el("span", { class: "gap" }, when),
    ...(event.accepted ? [] : [" ", el("span", { class: "badge bad" }, "not accepted")]),
    el("div", { class: "what" }, texts.join(" · ")));
}
