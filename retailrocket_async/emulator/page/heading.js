// The heading of the details, with the button that closes them.

import { el } from "./elements.js";
import { list } from "./list.js";
import { closeDetail } from "./selection.js";

/**
 * Return the heading of the details.
 *
 * @param {string} title
 * @param {...Node} more badges and buttons beside the title
 */
export function heading(title, ...more) {
  const close = () => {
    closeDetail();
    list.focus();
  };
  return el("div", { class: "top" }, el("div", { class: "names" }, el("h2", {}, title), ...more),
    el("button", { type: "button", class: "quiet close", click: close }, "Close"));
}
