/* Light or dark: as the system says, until the switch is used. In the head, so that nothing flashes. */
"use strict";
(function () {
  const root = document.documentElement;
  const system = window.matchMedia("(prefers-color-scheme: dark)");

  function stored() {
    try {
      return localStorage.getItem("hsd-theme");
    } catch (error) {
      return null; // pages on a disk may have no storage
    }
  }

  function isDark() {
    const theme = root.dataset.theme;
    return theme ? theme === "dark" : system.matches;
  }

  const before = stored();
  if (before === "dark" || before === "light") {
    root.dataset.theme = before;
  }
  document.addEventListener("DOMContentLoaded", function () {
    const button = document.getElementById("theme");
    const show = () => button.setAttribute("aria-pressed", String(isDark()));
    show();
    system.addEventListener("change", show);
    button.addEventListener("click", function () {
      root.dataset.theme = isDark() ? "light" : "dark";
      try {
        localStorage.setItem("hsd-theme", root.dataset.theme);
      } catch (error) {
        /* then it lasts for this page */
      }
      show();
    });
  });
})();
