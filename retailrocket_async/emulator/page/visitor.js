// The button that shows the journey of a visitor.

import { el } from "./elements.js";
import { showJourney } from "./selection.js";

/**
 * Return the button, with the visitor's name.
 *
 * @param {string} visitor
 */
export function visitorButton(visitor) {
  return el("button", { type: "button", class: "link", title: "Show the journey", click: () => showJourney(visitor) }, visitor);
}
