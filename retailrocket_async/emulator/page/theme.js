// The colours: those of the system, light, or dark. The browser remembers the choice.

import { byId, setText } from "./elements.js";

const THEMES = ["system", "light", "dark"];
const KEY = "retailrocket-emulator-theme";

/** Use the theme that the browser remembers; a button changes it. */
export function startTheme() {
  use(remembered());
  byId("theme").addEventListener("click", () => {
    const theme = document.documentElement.dataset.theme ?? "system";
    use(THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length]);
  });
}

/** @param {string} theme */
function use(theme) {
  if (theme === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  setText(byId("theme-name"), theme);
  byId("theme").setAttribute("aria-label", `Theme: ${theme}`);
  try {
    localStorage.setItem(KEY, theme);
  } catch {
    // A browser without storage uses the theme until the page is closed.
  }
}

function remembered() {
  try {
    const theme = localStorage.getItem(KEY);
    return theme && THEMES.includes(theme) ? theme : "system";
  } catch {
    return "system";
  }
}
