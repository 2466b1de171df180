// The section of the details that shows a command with which a reader can send the request again.

/** @import { RequestItem } from "./items.js" */

import { copy } from "./clipboard.js";
import { curlOf } from "./curl.js";
import { el } from "./elements.js";

const SHOWN_CHARACTERS = 2000;

// The character that replaces bytes which are not text, and control characters, which a terminal takes for keys.
const UNPASTABLE = /[\ufffd\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]/;

/**
 * Return the section. If there is no command for the request, the section is a sentence that says why.
 *
 * @param {RequestItem} request
 */
export function commandParts(request) {
  if (request.cut) return [el("p", { class: "faint" }, "The body is too long to make a command of it.")];
  if (UNPASTABLE.test(request.body)) return [el("p", { class: "faint" }, "The body holds bytes that no command can.")];
  const command = curlOf(request);
  const shown = command.length > SHOWN_CHARACTERS ? `${command.slice(0, SHOWN_CHARACTERS)}…` : command;
  const button = el("button", { type: "button", id: "copy-curl", click: () => copy(command, "Command") }, "Copy curl");
  return [
    el("h3", {}, "As a command", button),
    el("pre", { class: "code curl", tabindex: "0", "aria-label": "Command that sends the request again" }, shown),
  ];
}
