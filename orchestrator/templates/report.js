"use strict";
// Tooltips out of <title> elements: without this script the browser shows them by itself.
const tip = document.getElementById("tip");
for (const title of document.querySelectorAll("svg title")) {
  const owner = title.parentElement;
  owner.dataset.tip = title.textContent;
  title.remove();
}
function place(event) {
  const box = tip.getBoundingClientRect();
  const x = Math.min(event.clientX + 14, innerWidth - box.width - 8);
  const y = event.clientY + 16 + box.height > innerHeight ? event.clientY - box.height - 12 : event.clientY + 16;
  tip.style.left = Math.max(8, x) + "px";
  tip.style.top = Math.max(8, y) + "px";
}
// Everything that stands for one trial lights up together: its row, its marks, its lines.
let lit = null;
function light(key) {
  if (key === lit) return;
  for (const element of document.querySelectorAll(".lit")) element.classList.remove("lit");
  lit = key;
  if (key === null) return;
  for (const element of document.querySelectorAll(`[data-key="${CSS.escape(key)}"]`)) element.classList.add("lit");
}
document.addEventListener("pointermove", (event) => {
  const target = event.target.closest ? event.target : null;
  const owner = target && target.closest("[data-tip]");
  const keyed = target && target.closest("[data-key]");
  light(keyed ? keyed.dataset.key : null);
  if (owner) {
    tip.textContent = owner.dataset.tip;
    tip.style.visibility = "visible";
    place(event);
  } else {
    tip.style.visibility = "hidden";
  }
});
document.addEventListener("pointerleave", () => { tip.style.visibility = "hidden"; light(null); });
// Tables whose headers hold buttons can be sorted; rows without a value stay at the end.
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const header = button.closest("th");
    const descending = header.getAttribute("aria-sort") === "ascending";
    for (const other of header.parentElement.children) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", descending ? "descending" : "ascending");
    const body = header.closest("table").tBodies[0];
    const value = (row) => row.cells[header.cellIndex].dataset.value ?? row.cells[header.cellIndex].textContent.trim();
    const rows = [...body.rows].sort((a, b) => {
      const left = value(a), right = value(b);
      if (left === "" || right === "") return (left === "") - (right === "");
      const order = isNaN(left) || isNaN(right) ? left.localeCompare(right) : left - right;
      return descending ? -order : order;
    });
    body.append(...rows);
  });
}
addEventListener("beforeprint", () => { for (const details of document.querySelectorAll("details")) details.open = true; });
