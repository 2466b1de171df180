// Short messages, which the page shows for 2.5 seconds and screen readers read out.

import { byId } from "./elements.js";

const SHOWN_MS = 2500;

let timer = 0;

/**
 * Show a message for 2.5 seconds; a screen reader reads the message out once.
 *
 * @param {string} text
 */
export function announce(text) {
  sayOnly(text);
  const toast = byId("toast");
  toast.textContent = text;
  toast.hidden = false;
  clearTimeout(timer);
  timer = setTimeout(() => { toast.hidden = true; }, SHOWN_MS);
}

/**
 * Let a screen reader read out a message that another part of the page shows.
 *
 * @param {string} text
 */
export function sayOnly(text) {
  byId("status").textContent = text;
}
