"use strict";
(() => {
  const table = document.querySelector("table.units");
  if (!table) return;
  const body = table.tBodies[0];
  const heads = Array.from(table.tHead.rows[0].cells);
  const shown = document.getElementById("shown");
  const all = shown.textContent;
  const rows = Array.from(body.rows, (row, at) => ({ row, at, text: row.textContent.toLowerCase() }));

  // Unknown numbers, which are shown as a dash, come last either way.
  const byNumber = (a, b, way) => {
    if (isNaN(a) || isNaN(b)) return isNaN(a) - isNaN(b);
    return way * (a - b);
  };
  const words = new Intl.Collator(undefined, { numeric: true });

  const sort = (head, column) => {
    const way = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    const numeric = head.classList.contains("n");
    for (const entry of rows) {
      const text = entry.row.cells[column].textContent.trim();
      entry.key = numeric ? Number(text.replaceAll(",", "")) : text;
    }
    const compare = numeric
      ? (a, b) => byNumber(a.key, b.key, way)
      : (a, b) => way * words.compare(a.key, b.key);
    const sorted = rows.slice().sort((a, b) => compare(a, b) || a.at - b.at);
    body.append(...sorted.map(({ row }) => row));
    for (const other of heads) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", way > 0 ? "ascending" : "descending");
  };
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    button.addEventListener("click", () => sort(head, column));
    head.replaceChildren(button);
  });

  const input = document.createElement("input");
  input.type = "search";
  const label = document.createElement("label");
  label.className = "filter";
  label.append("Filter", input);
  shown.before(label);
  input.addEventListener("input", () => {
    const wanted = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    for (const { row, text } of rows) {
      row.hidden = !wanted.every((word) => text.includes(word));
      count += !row.hidden;
    }
    const [some, every] = [count, rows.length].map((number) => number.toLocaleString("en"));
    shown.textContent = wanted.length ? `${some} of ${every}` : all;
  });
})();
