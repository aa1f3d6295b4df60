"use strict";
(() => {
  const fault = (text) => console.error(`fault: ${text}`);
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  if (dark !== ("SCHEME" === "dark")) fault("not the scheme that was asked for");
  const root = document.documentElement;
  if (root.scrollWidth > innerWidth) fault(`${root.scrollWidth} pixels in a window of ${innerWidth}`);

  // Texts of plots: whole, and none on another.
  for (const svg of document.querySelectorAll("svg")) {
    const outer = svg.getBoundingClientRect();
    const texts = Array.from(svg.querySelectorAll("text"), (text) => {
      const { left, top, right, bottom } = text.getBoundingClientRect();
      return { left, top, right, bottom, says: text.textContent.trim() };
    });
    texts.forEach((a, at) => {
      if (a.left < outer.left || a.right > outer.right || a.top < outer.top || a.bottom > outer.bottom) {
        fault(`clipped: ${a.says}`);
      }
      for (const b of texts.slice(at + 1)) {
        const over = Math.min(a.right, b.right) - Math.max(a.left, b.left);
        const up = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
        // A box of text is higher than its letters.
        if (over > 0 && up > 3) fault(`${a.says} lies on ${b.says}`);
      }
    });
  }

  // Numbers sort as numbers, unknown ones last; a filter hides what does not hold its words.
  const table = document.querySelector("table.units");
  if (table) {
    const rows = () => Array.from(table.tBodies[0].rows).filter((row) => !row.hidden);
    const all = rows().length;
    Array.from(table.tHead.rows[0].cells).forEach((head, column) => {
      for (const way of [1, -1]) {
        head.querySelector("button").click();
        const numeric = head.classList.contains("n");
        const shown = rows().map((row) => row.cells[column].textContent.trim());
        const known = shown.filter((text) => text !== "–").map((text) => Number(text.replaceAll(",", "")));
        if (numeric && known.some((value, at) => isNaN(value) || (at && way * (value - known[at - 1]) < 0))) {
          fault(`column ${column} is not sorted`);
        }
        if (numeric && shown.slice(0, known.length).includes("–")) fault(`unknown first in column ${column}`);
      }
    });
    const input = document.querySelector(".filter input");
    const filter = (text) => {
      input.value = text;
      input.dispatchEvent(new Event("input"));
    };
    const last = rows()[all - 1].cells[0].textContent.trim();
    filter(last.split(".").reverse().join(" "));
    const found = rows().filter((row) => row.cells[0].textContent.trim() === last).length;
    if (found !== 1 || (all > 1 && rows().length >= all)) fault(`${rows().length} rows for a filter of ${last}`);
    filter("");
    if (rows().length !== all) fault("rows are lost");
  }
  root.dataset.probed = "true";
})();
