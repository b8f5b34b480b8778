// Tables sort by a click on a heading; values that are not numbers stay last in either direction.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  [...table.tHead.rows[0].cells].forEach((heading, column) => {
    const button = document.createElement("button");
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const down = heading.getAttribute("aria-sort") === "ascending";
      for (const cell of table.tHead.rows[0].cells) cell.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", down ? "descending" : "ascending");
      const numeric = heading.classList.contains("num");
      const key = (row) => numeric ? parseFloat(row.cells[column].dataset.sort) : row.cells[column].textContent;
      const missing = (value) => numeric && Number.isNaN(value);
      const order = (a, b) => numeric ? a - b : a.localeCompare(b);
      const rows = [...body.rows].map((row) => [key(row), row]);
      rows.sort(([a], [b]) => missing(a) - missing(b) || (missing(a) ? 0 : (down ? -1 : 1) * order(a, b)));
      body.append(...rows.map(([, row]) => row));
    });
  });
}
