// Short messages: shown for a moment, and read out by screen readers.

import { byId } from "./elements.js";

const SHOWN_MS = 2500;

let timer = 0;

/**
 * Show a message for 2.5 seconds, and have a screen reader say it once.
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
 * Have a screen reader say a message that the page shows elsewhere.
 *
 * @param {string} text
 */
export function sayOnly(text) {
  byId("status").textContent = text;
}
