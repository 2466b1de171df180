// Formats values for a human reader.

/**
 * Return a JSON value as text: a string unchanged, any other value as JSON.
 *
 * @param {unknown} value
 * @returns {string}
 */
export function textOf(value) {
  if (typeof value === "string") return value;
  if (typeof value === "bigint") return String(value);
  return JSON.stringify(value, (_, inner) => (typeof inner === "bigint" ? String(inner) : inner));
}

/**
 * Return a count with its noun: "1 event", "1,200 events".
 *
 * @param {number} count
 * @param {string} noun in the singular
 */
export const plural = (count, noun) => `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;

/**
 * @param {number} number
 * @param {number} width
 */
const pad = (number, width) => String(number).padStart(width, "0");

/**
 * Return the local time of day, with milliseconds.
 *
 * @param {number} seconds since 1970
 */
export function clock(seconds) {
  const at = new Date(seconds * 1000);
  return `${pad(at.getHours(), 2)}:${pad(at.getMinutes(), 2)}:${pad(at.getSeconds(), 2)}.${pad(at.getMilliseconds(), 3)}`;
}

/**
 * Return a number of bytes with its unit.
 *
 * @param {number} bytes
 */
export function size(bytes) {
  return bytes < 1024 ? `${bytes} B` : `${(bytes / 1024).toFixed(1)} KiB`;
}

/**
 * Return a duration with its unit.
 *
 * @param {number} seconds
 */
export function span(seconds) {
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  return seconds < 60 ? `${seconds.toFixed(1)} s` : `${Math.floor(seconds / 60)} min ${Math.round(seconds % 60)} s`;
}
