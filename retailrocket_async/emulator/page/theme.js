// The colours of the page: those of the system, light, or dark. The browser stores the choice.

import { byId, setText } from "./elements.js";

const THEMES = ["system", "light", "dark"];
const KEY = "retailrocket-emulator-theme";

/** Apply the theme that the browser has stored, and set up the button that changes the theme. */
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
    // If the browser stores nothing, the theme is used until the page is closed.
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
