// The clipboard.

import { announce } from "./announcement.js";
import { el } from "./elements.js";

/**
 * Copy a text, and announce it.
 *
 * @param {string} text
 * @param {string} name what the announcement calls the text
 */
export async function copy(text, name) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // A browser offers a clipboard only to pages of this machine or under https.
    const area = el("textarea", { class: "sr" });
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  announce(`${name} copied`);
}
