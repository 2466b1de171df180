// Reads the stream of the emulator's messages, and shows whether the stream is connected.

import { sayOnly } from "./announcement.js";
import { byId, setText } from "./elements.js";
import { apply } from "./message.js";

const RECONNECT_MS = 2000;

let lastSeen = "";

/** Connect to the stream, and reconnect whenever the connection is lost. */
export function connect() {
  const source = new EventSource(`/_control/stream${lastSeen ? `?after=${encodeURIComponent(lastSeen)}` : ""}`);
  source.addEventListener("open", () => showConnection("live"));
  source.addEventListener("update", (event) => {
    lastSeen = event.lastEventId;
    apply(JSON.parse(event.data));
  });
  source.addEventListener("error", () => {
    showConnection("reconnecting");
    // The browser reconnects by itself, except if the answer was not a stream.
    if (source.readyState === EventSource.CLOSED) setTimeout(connect, RECONNECT_MS);
  });
}

/** @param {"live" | "reconnecting"} connection */
function showConnection(connection) {
  const node = byId("connection");
  const before = node.dataset.state;
  if (before === connection) return;
  node.dataset.state = connection;
  setText(byId("connection-text"), connection);
  if (before !== "connecting") sayOnly(connection === "live" ? "Connected again" : "Connection lost");
}
