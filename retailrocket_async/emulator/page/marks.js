// Finds the places in a body to which the reasons of a refusal refer.

/** @import { JsonEntry, JsonNode, JsonObject } from "./json.js" */

/**
 * The notes about a node or an entry: those about its value, and those about missing fields.
 *
 * @typedef {{ notes: string[], absent: string[] }} Mark
 */

/**
 * The place to which a reason refers. `way` has all nodes from the root to `node`. If a field is missing, `absent` is
 * set, and `node` is the object without the field.
 *
 * @typedef {object} Place
 * @property {JsonNode[]} way
 * @property {JsonNode} node
 * @property {JsonEntry | null} entry the object's entry with the node as its value; null if the node is no such value
 * @property {string} [note]
 * @property {string} [absent]
 */

const NAME_LENGTH = 50;

/**
 * Cut a long name in the same way as the emulator does in its reasons.
 *
 * @param {string} name
 */
const cutName = (name) => Array.from(name).slice(0, NAME_LENGTH).join("");

/**
 * Return the place of a reason such as "[3].view.productId: must be an integer"; null if the reason has no place.
 *
 * @param {JsonNode} root
 * @param {string} reason
 * @returns {Place | null}
 */
function locate(root, reason) {
  let node = root;
  let rest = `.${reason}`;
  if (reason.startsWith("[")) rest = reason;
  else if (reason.startsWith("body: ") && !reason.endsWith("is no field of this event")) rest = reason.slice(4);
  /** @type {JsonEntry | null} */
  let entry = null;
  const way = [root];
  for (;;) {
    if (rest.startsWith(": ")) return { way, node, entry, note: rest.slice(2) };
    const index = /^\[(\d+)\]/.exec(rest);
    const item = index && "items" in node ? node.items[Number(index[1])] : undefined;
    if (index && item) {
      node = item;
      entry = null;
      rest = rest.slice(index[0].length);
    } else if (rest.startsWith(".") && "entries" in node) {
      entry = named(node, rest.slice(1));
      if (!entry) return rest.endsWith(": is missing") ? { way, node, entry, absent: rest.slice(1) } : null;
      node = entry.node;
      rest = rest.slice(1 + cutName(entry.key).length);
    } else {
      return null;
    }
    way.push(node);
  }
}

/**
 * Return the entry with whose key a path begins, or null. If there are several, return the one with the longest key.
 *
 * @param {JsonObject} object
 * @param {string} path
 * @returns {JsonEntry | null}
 */
function named({ entries }, path) {
  /** @param {JsonEntry} entry */
  const fits = ({ key }) => path.startsWith(cutName(key)) && ":.[".includes(path[cutName(key).length] ?? " ");
  return entries.filter(fits).sort((one, other) => one.key.length - other.key.length).at(-1) ?? null;
}

/**
 * Return the marks of the nodes and entries to which the reasons refer, and all nodes on the way to one of them.
 *
 * @param {JsonNode} root
 * @param {string[]} reasons
 */
export function marksOf(root, reasons) {
  /** @type {Map<JsonNode | JsonEntry, Mark>} */
  const marks = new Map();
  /** @type {Set<JsonNode>} */
  const ways = new Set();
  for (const reason of reasons) {
    const place = locate(root, reason);
    if (!place) continue;
    for (const node of place.way) ways.add(node);
    // If a field is not allowed, its name is marked together with its value.
    const whole = place.entry && /^is no /.test(place.note ?? "") ? place.entry : place.node;
    const mark = marks.get(whole) ?? { notes: [], absent: [] };
    if (place.absent) mark.absent.push(place.absent);
    else mark.notes.push(place.note ?? "");
    marks.set(whole, mark);
  }
  return { marks, ways };
}
