// The plot of requests per second in the last minute.

import { byId, setText } from "./elements.js";
import { onFrame, touch } from "./frame.js";
import { now, state } from "./state.js";

const WINDOW = 60; // seconds
const SVG = "http://www.w3.org/2000/svg";

/**
 * @typedef {object} Shapes
 * @property {SVGSVGElement} plot
 * @property {SVGElement} moving the group of all bars
 * @property {[SVGElement, SVGElement][]} bars two for each second: requests within the limit, and requests over it
 * @property {SVGElement} limitLine
 */

let drawnSecond = 0;

/** Set up the plot, so that it is drawn when its values change. */
export function startPlot() {
  const shapes = makeShapes();
  onFrame("plot", () => draw(shapes));
  const reduced = matchMedia("(prefers-reduced-motion: reduce)").matches;
  setInterval(() => moveOn(shapes), reduced ? 1000 : 100);
}

/** @returns {Shapes} */
function makeShapes() {
  const plot = byId("plot", SVGSVGElement);
  const moving = shape(plot, "g", "moving");
  /** @type {[SVGElement, SVGElement][]} */
  const bars = Array.from({ length: WINDOW + 1 }, (_, x) => [
    shape(moving, "rect", "within", { x, width: 0.8 }),
    shape(moving, "rect", "beyond", { x, width: 0.8 }),
  ]);
  return { plot, moving, bars, limitLine: shape(plot, "line", "limit") };
}

/**
 * @param {SVGElement} parent
 * @param {"g" | "rect" | "line"} name
 * @param {string} kind the class
 * @param {Record<string, number>} [attributes]
 * @returns {SVGElement}
 */
function shape(parent, name, kind, attributes = {}) {
  const made = document.createElementNS(SVG, name);
  made.setAttribute("class", kind);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, String(value));
  parent.append(made);
  return made;
}

/**
 * Move the plot to the left as time passes. Once a second the plot is drawn anew.
 *
 * @param {Shapes} shapes
 */
function moveOn({ moving }) {
  if (document.hidden) return;
  const time = now();
  if (Math.floor(time) !== drawnSecond) touch("plot");
  moving.setAttribute("transform", `translate(${(Math.floor(time) - time).toFixed(3)})`);
}

/** @param {Shapes} shapes */
function draw({ plot, bars, limitLine }) {
  drawnSecond = Math.floor(now());
  const first = drawnSecond - WINDOW;
  const limit = state.limit === null ? null : state.limit / state.per;
  let most = 0;
  for (const [second, [arrived]] of state.rates) if (second >= first) most = Math.max(most, arrived);
  const top = Math.max(most, limit ?? 0, 1) * 1.15;
  bars.forEach(([within, beyond], index) => {
    const [arrived, over] = state.rates.get(first + index) ?? [0, 0];
    const lower = (100 * (arrived - over)) / top;
    setBar(within, 0, lower);
    setBar(beyond, lower, (100 * arrived) / top);
  });
  const y = limit === null ? -10 : 100 - (100 * limit) / top;
  for (const [name, at] of Object.entries({ x1: 0, x2: WINDOW, y1: y, y2: y })) limitLine.setAttribute(name, String(at));
  const [last] = state.rates.get(drawnSecond - 1) ?? [0];
  setText(byId("rate-now"), String(last));
  setText(byId("rate-most"), String(most));
  setText(byId("rate-limit"), limit === null ? "none" : String(Number(limit.toFixed(2))));
  plot.setAttribute("aria-label", `Requests per second in the last minute: ${last} in the last second, ${most} at most`);
}

/**
 * @param {SVGElement} rect
 * @param {number} from the lower end, in percent of the height from below
 * @param {number} to the upper end, likewise
 */
function setBar(rect, from, to) {
  rect.setAttribute("y", (100 - to).toFixed(2));
  rect.setAttribute("height", Math.max(0, to - from).toFixed(2));
}
