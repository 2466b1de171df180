// The overview above the list: the shop, the counters, and the command that sends a first event.

import { copy } from "./clipboard.js";
import { curlOf } from "./curl.js";
import { byId, setText } from "./elements.js";
import { plural } from "./format.js";
import { onFrame } from "./frame.js";
import { PREFIX } from "./items.js";
import { state } from "./state.js";

/** Set up the overview, so that it is drawn when its values change. */
export function startOverview() {
  onFrame("shop", drawShop);
  onFrame("counts", drawCounts);
  byId("copy-first").addEventListener("click", () => copy(firstCommand(), "Command"));
}

function firstCommand() {
  return curlOf({
    method: "POST", path: `${PREFIX}view`, query: { partnerId: state.partner }, content_type: "application/json",
    body: '{"sessionExternalId":"visitor1","productId":123456}', reasons: [],
  });
}

function drawShop() {
  setText(byId("shop"), state.partner);
  setText(byId("base-url"), `RETAILROCKET_BASE_URL=${location.origin}${PREFIX}`);
  setText(byId("first-command"), firstCommand());
}

function drawCounts() {
  const { total_events: events, requests, refused, over_limit: over, overlaps, backward_steps: backward } = state.stats;
  setText(byId("count-events"), events.toLocaleString("en"));
  setText(byId("count-requests"), requests.toLocaleString("en"));
  setText(byId("count-refused"), refused.toLocaleString("en"));
  setText(byId("count-over"), over.toLocaleString("en"));
  setText(byId("count-order"), (overlaps + backward).toLocaleString("en"));
  byId("count-refused").dataset.bad = String(refused > 0);
  byId("count-over").dataset.bad = String(over > 0);
  byId("count-order").dataset.bad = String(overlaps + backward > 0);
  setText(byId("missed"), state.missed ? `${plural(state.missed, "earlier request")} not shown` : "");
}
