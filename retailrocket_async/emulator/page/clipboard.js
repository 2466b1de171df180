// Copies texts to the clipboard.

import { announce } from "./announcement.js";
import { el } from "./elements.js";

/**
 * Copy a text to the clipboard, and announce the result.
 *
 * @param {string} text
 * @param {string} name the name of the text in the announcement
 */
export async function copy(text, name) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // A browser offers the clipboard only to pages from this machine and to pages under https.
    const area = el("textarea", { class: "sr" });
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  announce(`${name} copied`);
}
