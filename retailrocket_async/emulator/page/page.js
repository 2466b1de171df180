// The emulator's live page: starts the parts of the page, then connects to the emulator.

import { announce } from "./announcement.js";
import { control } from "./control.js";
import { startDetail } from "./detail.js";
import { byId } from "./elements.js";
import { startFaults } from "./faults.js";
import { startKeyboard } from "./keyboard.js";
import { onRowClick, startList } from "./list.js";
import { startOverview } from "./overview.js";
import { startPlot } from "./plot.js";
import { select, showJourney, visitorOf } from "./selection.js";
import { connect } from "./stream.js";
import { startTheme } from "./theme.js";

startTheme();
startOverview();
startPlot();
startFaults();
startList();
startDetail();
startKeyboard();

onRowClick((item, target) => {
  select(item);
  if (target.closest(".who")) showJourney(visitorOf(item));
});
byId("reset").addEventListener("click", async () => {
  if (await control("POST", "reset")) announce("Everything forgotten");
});

connect();
