// Makes an element that shows the body of a request: parsed and indented, with marks where the reasons find mistakes.

/** @import { JsonArray, JsonEntry, JsonNode, JsonObject } from "./json.js" */

import { el } from "./elements.js";
import { plural } from "./format.js";
import { parseJson } from "./json.js";
import { marksOf } from "./marks.js";

/**
 * A function that appends a part of the body to a parent, and returns the notes that are shown after the part.
 *
 * @typedef {(into: ParentNode) => string[]} Part
 */

const SHOWN_EVENTS = 20;
const UNFOLDED_EVENTS = 100;

/**
 * Return an element that shows a body.
 *
 * @param {string} text
 * @param {string[]} reasons why the request was refused
 * @param {boolean} cut whether a part of the body is missing
 */
export function bodyElement(text, reasons, cut) {
  try {
    return new JsonPrinter(parseJson(text), reasons).print();
  } catch {
    // The body is not JSON, or is nested too deeply for the stack.
    return textElement(text, cut ? [] : reasons);
  }
}

const frame = () => el("pre", { class: "code body", tabindex: "0", "aria-label": "Body" });

/** @param {string} text */
const noteElement = (text) => el("span", { class: "note" }, `  ← ${text}`);

/**
 * Return an element for a body that is not JSON. The character at which the emulator's parser failed is marked.
 *
 * @param {string} text
 * @param {string[]} reasons
 */
function textElement(text, reasons) {
  const out = frame();
  const match = reasons.map((reason) => /\(char (\d+)\)$/.exec(reason)).find(Boolean);
  const characters = Array.from(text);
  const place = match ? Math.min(Number(match[1]), Math.max(0, characters.length - 1)) : characters.length;
  out.append(characters.slice(0, place).join(""));
  if (match) {
    out.append(el("mark", {}, characters[place] ?? " "), noteElement("here it stops being JSON  "));
    out.append(characters.slice(place + 1).join(""));
  }
  return out;
}

/** Makes the element for a body that is JSON. */
class JsonPrinter {
  /**
   * @param {JsonNode} root
   * @param {string[]} reasons
   */
  constructor(root, reasons) {
    this.root = root;
    const { marks, ways } = marksOf(root, reasons);
    this.marks = marks;
    this.ways = ways;
  }

  print() {
    const out = frame();
    this.note(out, this.value(out, this.root, ""));
    return out;
  }

  /**
   * Print a node or an entry. If there are notes about it, print it inside a `mark` element, and return these notes.
   *
   * @param {ParentNode} into
   * @param {JsonNode | JsonEntry} thing
   * @param {(into: ParentNode) => void} print
   */
  marked(into, thing, print) {
    const notes = this.marks.get(thing)?.notes ?? [];
    if (notes.length === 0) {
      print(into);
    } else {
      const made = el("mark");
      print(made);
      into.append(made);
    }
    return notes;
  }

  /**
   * @param {ParentNode} into
   * @param {string[]} notes
   */
  note(into, notes) {
    if (notes.length) into.append(noteElement(notes.join("; ")));
  }

  /**
   * @param {ParentNode} into
   * @param {JsonNode} node
   * @param {string} indent
   * @returns {string[]} the notes that are shown after the value
   */
  value(into, node, indent) {
    return this.marked(into, node, (inner) => {
      if ("entries" in node) this.object(inner, node, indent);
      else if ("items" in node) this.array(inner, node, indent);
      else inner.append(el("span", { class: node.kind }, node.raw));
    });
  }

  /**
   * @param {ParentNode} into
   * @param {JsonObject} node
   * @param {string} indent
   */
  object(into, node, indent) {
    /** @type {Part[]} */
    const parts = node.entries.map((entry) => (here) => {
      /** @type {string[]} */
      let notes = [];
      const above = this.marked(here, entry, (within) => {
        within.append(el("span", { class: "key-name" }, entry.raw), ": ");
        notes = this.value(within, entry.node, `${indent}  `);
      });
      return [...above, ...notes];
    });
    for (const text of this.marks.get(node)?.absent ?? []) {
      parts.push((here) => {
        here.append(el("mark", { class: "absent" }, text));
        return [];
      });
    }
    if (parts.length) this.members(into, indent, "{", "}", parts);
    else into.append("{}");
  }

  /**
   * Print an array. If all items are scalars without marks, print the array on one line.
   *
   * @param {ParentNode} into
   * @param {JsonArray} node
   * @param {string} indent
   */
  array(into, node, indent) {
    const scalars = node.items.flatMap((item) => ("raw" in item && !this.marks.has(item) ? [item.raw] : []));
    if (scalars.length === node.items.length) into.append(`[${scalars.join(", ")}]`);
    else if (node === this.root) this.envelopes(into, node.items);
    else this.members(into, indent, "[", "]", node.items.map((item) => (here) => this.value(here, item, `${indent}  `)));
  }

  /**
   * Print the parts of an object or array, each on a line of its own.
   *
   * @param {ParentNode} into
   * @param {string} indent
   * @param {string} open
   * @param {string} close
   * @param {Part[]} parts
   */
  members(into, indent, open, close, parts) {
    into.append(open);
    parts.forEach((part, index) => {
      into.append(`\n${indent}  `);
      const notes = part(into);
      if (index < parts.length - 1) into.append(",");
      this.note(into, notes);
    });
    into.append(`\n${indent}${close}`);
  }

  /**
   * Print the events of a batch. If there are more than 20, events without a mark are hidden behind buttons.
   *
   * @param {ParentNode} into
   * @param {JsonNode[]} items
   */
  envelopes(into, items) {
    const bad = items.filter((item) => this.ways.has(item));
    const open = new Set(items.length <= SHOWN_EVENTS ? items : (bad.length ? bad : items).slice(0, SHOWN_EVENTS));
    into.append("[");
    for (let index = 0; index < items.length; index += 1) {
      const start = index;
      while (index < items.length && !open.has(items[index])) index += 1;
      if (index > start) into.append("\n  ", this.fold(items.slice(start, index)));
      if (index < items.length) this.envelope(into, items[index], index === items.length - 1);
    }
    into.append("\n]");
  }

  /**
   * @param {ParentNode} into
   * @param {JsonNode} item
   * @param {boolean} last whether this is the last item, which no comma follows
   */
  envelope(into, item, last) {
    into.append("\n  ");
    const notes = this.value(into, item, "  ");
    if (!last) into.append(",");
    this.note(into, notes);
  }

  /**
   * Return a button for hidden events. A click replaces the button by the first 100 of these events.
   *
   * @param {JsonNode[]} items
   */
  fold(items) {
    const button = el("button", { type: "button", click: () => {
      const shown = document.createDocumentFragment();
      items.slice(0, UNFOLDED_EVENTS).forEach((item, index) => this.envelope(shown, item, index === items.length - 1));
      const left = items.slice(UNFOLDED_EVENTS);
      if (left.length) shown.append("\n  ", this.fold(left));
      button.replaceWith(shown);
    } }, `… ${plural(items.length, "more event")}`);
    return button;
  }
}
