// Parses JSON into a tree that has the text of each value, so that a body is shown with the digits that were sent.

/**
 * @typedef {{ entries: JsonEntry[] }} JsonObject
 * @typedef {{ items: JsonNode[] }} JsonArray
 * @typedef {{ raw: string, kind: "str" | "lit" }} JsonScalar a string, or a number, true, false or null
 * @typedef {JsonObject | JsonArray | JsonScalar} JsonNode
 * @typedef {{ raw: string, key: string, node: JsonNode }} JsonEntry a key as it was written, its text, and its value
 */

/**
 * Parse JSON into nodes.
 *
 * @param {string} text
 * @returns {JsonNode}
 * @throws {SyntaxError} if the text is not JSON
 */
export function parseJson(text) {
  // The text is known to be JSON from here on, so the parser below does not check for mistakes.
  JSON.parse(text);
  let at = 0;
  const space = /[ \t\n\r]*/y;
  const string = /"[^"\\]*(?:\\.[^"\\]*)*"/y;
  const bare = /[^\s,\]}]+/y;

  /** @param {RegExp} pattern */
  function token(pattern) {
    pattern.lastIndex = at;
    const raw = pattern.exec(text)?.[0] ?? "";
    at += raw.length;
    return raw;
  }

  /**
   * Read the parts of an object or array, up to the bracket that closes it.
   *
   * @param {string} close
   * @param {() => void} part reads one part
   */
  function parts(close, part) {
    at += 1;
    for (token(space); text[at] !== close; token(space)) {
      part();
      token(space);
      if (text[at] === ",") at += 1;
    }
    at += 1;
  }

  /** @returns {JsonEntry} */
  function entry() {
    const raw = token(string);
    token(space);
    at += 1;
    return { raw, key: JSON.parse(raw), node: value() };
  }

  /** @returns {JsonNode} */
  function value() {
    token(space);
    if (text[at] === "{") {
      /** @type {JsonEntry[]} */
      const entries = [];
      parts("}", () => entries.push(entry()));
      return { entries };
    }
    if (text[at] === "[") {
      /** @type {JsonNode[]} */
      const items = [];
      parts("]", () => items.push(value()));
      return { items };
    }
    return text[at] === '"' ? { raw: token(string), kind: "str" } : { raw: token(bare), kind: "lit" };
  }

  return value();
}
