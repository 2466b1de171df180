// Makes the `curl` command that sends a request again. The command can be pasted into a shell safely.

/**
 * The parts of a request that are needed for the command.
 *
 * @typedef {object} Sendable
 * @property {string} method
 * @property {string} path
 * @property {Record<string, string>} query the parameters of the query except the key
 * @property {string | null} content_type null if the request had no Content-Type
 * @property {string} body
 * @property {string[]} reasons why the request was refused
 */

/** @param {string} text */
const shellQuoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

/**
 * Encode a part of a URL so that a shell does not change the part inside double quotes. Only one character that a shell
 * would change is not encoded by encodeURIComponent: "!".
 *
 * @param {string} text
 */
const encoded = (text) => encodeURIComponent(text.toWellFormed?.() ?? text).replaceAll("!", "%21");

/**
 * Return the command that sends a request again. The command takes the key from an environment variable.
 *
 * @param {Sendable} request
 */
export function curlOf(request) {
  const keyless = request.reasons.includes("apiKey is missing");
  const query = Object.entries(request.query).map(([name, value]) => `${encoded(name)}=${encoded(value)}`);
  if (!keyless) query.unshift("apiKey=$RETAILROCKET_API_KEY");
  const path = request.path.split("/").map(encoded).join("/");
  const method = /^[A-Z]+$/.test(request.method) ? request.method : shellQuoted(request.method);
  const how = method === "HEAD" ? "-I" : `-X ${method}`;
  const words = [`curl ${how} "${location.origin}${path}${query.length ? `?${query.join("&")}` : ""}"`];
  if (request.content_type !== null) words.push(`-H ${shellQuoted(`Content-Type: ${request.content_type}`)}`);
  else if (request.body) words.push("-H 'Content-Type:'");
  if (request.body) words.push(`--data-raw ${shellQuoted(request.body)}`);
  return words.join(" \\\n  ");
}
