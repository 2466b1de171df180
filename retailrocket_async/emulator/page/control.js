// Requests to the control side of the emulator.

import { announce } from "./announcement.js";

/**
 * Send a request to `/_control/`. Return whether the request succeeded; if it failed, announce the error.
 *
 * @param {"POST" | "DELETE"} method
 * @param {string} name the last part of the path
 * @param {unknown} [body] the body, which is sent as JSON; by default there is no body
 * @returns {Promise<boolean>}
 */
export async function control(method, name, body) {
  try {
    const answer = await fetch(`/_control/${name}`, { method, body: body === undefined ? undefined : JSON.stringify(body) });
    if (answer.ok) return true;
    announce((await answer.json()).error);
  } catch {
    announce("The emulator does not answer");
  }
  return false;
}
