// Tables of results sort by their column headers: ascending, descending, as written. Without scripts they stay as written.
(() => {
  const ORDERS = ["none", "ascending", "descending"];
  const number = (text) => parseFloat(text.replace(/,/g, "").replace("\u2212", "-"));
  const missing = (text) => ["", "-", "nan", "none", "None"].includes(text);

  // Return the order of two cells' texts; what is missing comes last whichever way the others go.
  const compare = (a, b, sign, numeric) => {
    if (missing(a) || missing(b)) return missing(a) - missing(b);
    return sign * (numeric ? number(a) - number(b) : a.localeCompare(b, "en", { numeric: true }));
  };

  const sort = (table, heads, column, written) => {
    const order = ORDERS[(ORDERS.indexOf(heads[column].getAttribute("aria-sort")) + 1) % 3];
    const text = (row) => row.cells[column].textContent.trim();
    const numeric = written.every((row) => missing(text(row)) || /^[+\-\u2212]?[\d.,]+/.test(text(row)));
    const sign = order === "descending" ? -1 : 1;
    const rows = order === "none" ? written : [...written].sort((a, b) => compare(text(a), text(b), sign, numeric));
    heads.forEach((head) => head?.setAttribute("aria-sort", "none"));
    heads[column].setAttribute("aria-sort", order);
    table.tBodies[0].append(...rows);
  };

  const prepare = (table) => {
    const rows = [...(table.tBodies[0]?.rows ?? [])], tops = [...(table.tHead?.rows ?? [])];
    const merged = [...rows, ...tops].some((row) => [...row.cells].some((cell) => cell.colSpan > 1 || cell.rowSpan > 1));
    if (rows.length < 3 || !tops.length || merged) return;
    // pandas writes the name of the index under the names of the columns
    const heads = [...tops[0].cells].map((_, i) => tops.map((row) => row.cells[i]).find((cell) => cell?.textContent.trim()));
    heads.forEach((head, column) => {
      if (!head) return;
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      button.addEventListener("click", () => sort(table, heads, column, rows));
      head.replaceChildren(button);
      head.classList.add("sortable");
      head.setAttribute("aria-sort", "none");
    });
  };

  // In a table wider than what shows it, let a long name break after its signs, before its capitals and in the middle of a key.
  const LONG = /(\S{16,})/, BREAKS = /(?<=\w[_/.,=(-])(?=\w{3})|(?<=[a-z])(?=[A-Z])|(?<=\b[\da-f]{8})(?=[\da-f]{8}\b)/;
  const breakable = (table) => {
    const shown = table.closest(".output, .pst-scrollable-table-container") ?? table.parentElement;
    if (shown.scrollWidth <= shown.clientWidth) return;
    const walker = document.createTreeWalker(table, NodeFilter.SHOW_TEXT), texts = [];
    while (walker.nextNode()) if (LONG.test(walker.currentNode.data)) texts.push(walker.currentNode);
    texts.forEach((text) => {
      const pieces = text.data.split(LONG).flatMap((part) => (LONG.test(part) ? part.split(BREAKS).flatMap((piece) => [document.createElement("wbr"), piece]).slice(1) : [part]));
      text.replaceWith(...pieces);
    });
  };

  document.addEventListener("DOMContentLoaded", () => document.querySelectorAll(".cell_output table, table.results").forEach(prepare));
  document.addEventListener("DOMContentLoaded", () => document.querySelectorAll("article table").forEach(breakable));
})();
