"use strict";
// Sorting: a click, or Enter on the focused head; a second one turns it round; what has no value
// stays last.
function sort(head) {
  const row = head.parentNode, column = [...row.children].indexOf(head);
  const sign = head.ariaSort === "ascending" ? -1 : 1;
  for (const other of row.children) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
  const body = head.closest("table").tBodies[0];
  const key = (line) => line.cells[column].dataset.order;
  const compare = (a, b) => {
    const x = key(a), y = key(b);
    if (x === undefined || y === undefined) return (x === undefined) - (y === undefined);
    const numbers = Number(x) - Number(y);
    return sign * (Number.isNaN(numbers) ? (x === y ? 0 : x < y ? -1 : 1) : numbers);
  };
  body.append(...[...body.rows].sort(compare));
}
for (const head of document.querySelectorAll(".sortable thead th"))
  head.firstChild.addEventListener("click", () => sort(head));

// Hover values: a mark's own title, or the point of a line that is nearest to the pointer.
const tip = document.getElementById("tip");
for (const title of document.querySelectorAll("svg title")) {
  const mark = title.parentNode;
  mark.dataset.tip = title.textContent;
  mark.setAttribute("aria-label", title.textContent);
  title.remove(); // else the browser would show it too
}
function show(text, x, y) {
  tip.textContent = text;
  tip.hidden = false;
  const room = document.documentElement.clientWidth - tip.offsetWidth - 8;
  tip.style.left = `${scrollX + Math.max(4, Math.min(x + 12, room))}px`;
  tip.style.top = `${scrollY + (y > tip.offsetHeight + 16 ? y - tip.offsetHeight - 10 : y + 16)}px`;
}
function hide(svg) {
  tip.hidden = true;
  svg?.classList.remove("near");
}
function nearest(svg, x, y) {
  const at = new DOMPoint(x, y).matrixTransform(svg.getScreenCTM().inverse());
  let best = { distance: 40 ** 2 };
  for (const line of svg.querySelectorAll("polyline"))
    [...line.points].forEach((p, i) => {
      const distance = (p.x - at.x) ** 2 + (p.y - at.y) ** 2;
      if (distance < best.distance) best = { distance, line, i };
    });
  return best;
}
function point(event) {
  const svg = event.currentTarget, mark = event.target.closest("[data-tip]:not(polyline)");
  if (mark) return show(mark.dataset.tip, event.clientX, event.clientY);
  const { line, i } = nearest(svg, event.clientX, event.clientY);
  if (!line) return hide(svg);
  svg.classList.add("near");
  for (const other of svg.querySelectorAll("polyline")) other.classList.toggle("nearest", other === line);
  const [x, y] = [line.dataset.x, line.dataset.y].map((values) => values.split(" ")[i]);
  show(`${line.dataset.tip}\n${svg.dataset.x} ${x}: ${svg.dataset.y} ${y}`, event.clientX, event.clientY);
}
for (const svg of document.querySelectorAll(".scroll > svg")) {
  svg.addEventListener("pointermove", point);
  svg.addEventListener("pointerdown", point);
  svg.addEventListener("pointerleave", () => hide(svg));
}
for (const mark of document.querySelectorAll("[data-tip][tabindex]")) {
  mark.addEventListener("focus", () => {
    const box = mark.getBoundingClientRect();
    show(mark.dataset.tip, box.x + box.width / 2, box.y);
  });
  mark.addEventListener("blur", () => hide());
}

// A link to a record or a run opens it; on paper all is open.
function open() {
  const block = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (block?.tagName === "DETAILS") {
    block.open = true;
    block.scrollIntoView();
  }
}
addEventListener("hashchange", open);
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((d) => (d.open = true)));
open();
