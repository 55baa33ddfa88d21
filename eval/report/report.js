"use strict";
const all = (selector, within = document) => [...within.querySelectorAll(selector)];
const form = document.querySelector("nav form");

// Sorting: by the header's column, the highest first for numbers; cells without a value come last in both directions.
function sort(header) {
  const table = header.closest("table"), body = table.tBodies[0];
  const column = header.cellIndex, text = header.dataset.kind === "text";
  const before = header.getAttribute("aria-sort");
  const rising = before ? before === "descending" : text;
  all("th[aria-sort]", table).forEach((other) => other.removeAttribute("aria-sort"));
  header.setAttribute("aria-sort", rising ? "ascending" : "descending");
  const sign = rising ? 1 : -1;
  const value = (row) => row.cells[column].dataset.v;
  const rows = [...body.rows].sort((a, b) => {
    const [x, y] = [value(a), value(b)];
    if (x === undefined || y === undefined) return (x === undefined) - (y === undefined);
    return sign * (text ? x.localeCompare(y, "en", { numeric: true }) : Number(x) - Number(y));
  });
  body.append(...rows);
}

// Filters: whatever says by data-protocol, data-m (a model's number) or data-task what it is about is hidden with it.
function filter() {
  const protocol = form.elements.protocol.value;
  const task = form.elements.task.value.trim().toLowerCase();
  const models = new Set(all("input[name=model]:checked", form).map((box) => box.value));
  for (const part of all("[data-protocol], [data-m], [data-task]")) {
    const about = part.dataset;
    part.toggleAttribute("hidden", Boolean(
      (about.protocol !== undefined && protocol && about.protocol !== protocol)
      || (about.m !== undefined && !models.has(about.m))
      || (about.task !== undefined && task && !about.task.toLowerCase().includes(task))));
  }
  for (const chart of all("svg[data-step]")) {
    const step = Number(chart.dataset.step);
    const shown = all("g:not([hidden])", chart);
    shown.forEach((bar, line) => bar.setAttribute("transform", `translate(0 ${line * step})`));
    chart.setAttribute("height", shown.length * step);
  }
}

for (const header of all("th[data-kind]")) header.querySelector("button").addEventListener("click", () => sort(header));
form.addEventListener("input", filter);
form.addEventListener("reset", () => setTimeout(filter));
form.addEventListener("submit", (event) => event.preventDefault());
