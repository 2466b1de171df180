// Draws the changed parts of the page, at most once in each frame of the browser.

/** @typedef {"shop" | "counts" | "plot" | "faults" | "list" | "rows" | "detail"} Part */

/** @type {Map<Part, () => void>} */
const draws = new Map();

/** @type {Set<Part>} */
const changed = new Set();

let scheduled = false;

/**
 * Register the function that draws a part. Parts are drawn in the order in which they were registered. If drawing a
 * part calls `touch` for a later part, the later part is drawn in the same frame.
 *
 * @param {Part} part
 * @param {() => void} draw
 */
export function onFrame(part, draw) {
  draws.set(part, draw);
}

/**
 * Mark parts as changed, so that they are drawn in the next frame.
 *
 * @param {...Part} parts
 */
export function touch(...parts) {
  for (const part of parts) changed.add(part);
  if (scheduled) return;
  scheduled = true;
  requestAnimationFrame(drawChanged);
}

function drawChanged() {
  scheduled = false;
  for (const [part, draw] of draws) if (changed.delete(part)) draw();
}
