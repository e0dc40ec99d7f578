"use strict";
// A click on a heading sorts its table: ascending, descending, then as it was.
const collator = new Intl.Collator(undefined, { numeric: true });

function compare(a, b) {
  const x = Number(a), y = Number(b);
  return Number.isNaN(x) || Number.isNaN(y) ? collator.compare(a, b) : x - y;
}

function sort(table, column, direction) {
  const body = table.tBodies[0];
  const value = (row) => row.cells[column].dataset.sort;
  const rows = Array.from(body.rows);
  rows.sort((a, b) => {
    if (direction === "none") return a.dataset.index - b.dataset.index;
    const x = value(a), y = value(b);
    if (x === "" || y === "") return (x === "") - (y === "");
    return direction === "ascending" ? compare(x, y) : compare(y, x);
  });
  body.append(...rows);
}

const following = { none: "ascending", ascending: "descending", descending: "none" };
for (const table of document.querySelectorAll("table.sortable")) {
  Array.from(table.tBodies[0].rows).forEach((row, i) => { row.dataset.index = i; });
  const headings = Array.from(table.tHead.rows[0].cells);
  headings.forEach((heading, column) => {
    heading.querySelector("button").addEventListener("click", () => {
      const direction = following[heading.getAttribute("aria-sort")];
      headings.forEach((other) => other.setAttribute("aria-sort", "none"));
      heading.setAttribute("aria-sort", direction);
      sort(table, column, direction);
    });
  });
}

// A link to a closed group opens it.
function open() {
  const target = document.getElementById(location.hash.slice(1));
  if (target instanceof HTMLDetailsElement) {
    target.open = true;
    target.scrollIntoView();
  }
}
addEventListener("hashchange", open);
for (const link of document.querySelectorAll("a[href^='#g']")) {
  link.addEventListener("click", () => setTimeout(open));
}
open();
