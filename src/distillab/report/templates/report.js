"use strict";
// Comfort only: rows of charts can be hidden or picked out, tables sorted. Without this script the page says the same.
const root = document.documentElement;
root.classList.add("scripted");

// Rows: what shows each of them, in all charts and tables.

const numberOf = (element) => element.dataset.series ?? element.getAttribute("class").match(/series-(\d+)/)[1];
const parts = new Map();
for (const part of document.querySelectorAll("[class*='series-'], #legend button")) {
  const number = numberOf(part);
  parts.set(number, [...(parts.get(number) ?? []), part]);
}

for (const button of document.querySelectorAll("#legend button")) {
  button.addEventListener("click", () => {
    const shown = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", String(shown));
    parts.get(button.dataset.series).forEach((part) => part !== button && part.classList.toggle("off", !shown));
  });
}

let picked = null;
const pick = (event) => {
  const part = event.target.closest?.("[class*='series-'], #legend button") ?? null;
  const number = part && !part.classList.contains("off") ? numberOf(part) : null;
  if (number === picked) return;
  parts.get(picked)?.forEach((one) => one.classList.remove("picked"));
  parts.get(number)?.forEach((one) => one.classList.add("picked"));
  root.classList.toggle("picking", number !== null);
  picked = number;
};
document.addEventListener("pointerover", pick);
document.addEventListener("focusin", pick);

// Tips: the words of a mark, beside the mouse; browsers' own come late and small.

const tip = document.createElement("div");
tip.className = "tip";
tip.hidden = true;
document.body.append(tip);
const words = new WeakMap();
for (const title of document.querySelectorAll("svg title")) {
  words.set(title.parentNode, title.textContent);
  title.remove();
}
document.addEventListener("pointermove", (event) => {
  let mark = event.target.closest?.("svg g") ?? null;
  while (mark && !words.has(mark)) mark = mark.parentNode.closest("g");
  tip.hidden = !mark;
  if (!mark) return;
  tip.textContent = words.get(mark);
  const left = Math.min(event.clientX + 14, root.clientWidth - tip.offsetWidth - 8);
  const below = event.clientY + 18;
  const top = below + tip.offsetHeight < innerHeight ? below : event.clientY - tip.offsetHeight - 10;
  tip.style.left = `${Math.max(8, left)}px`;
  tip.style.top = `${top}px`;
});

// Tables: a click on a head sorts by that column, a second one the other way round; what there is not comes last.

const value = (row, column) => {
  const text = row.cells[column].textContent.trim();
  const number = parseFloat(text.replace(/[,<+ ]/g, "").replace("\u2212", "-"));
  return Number.isNaN(number) ? text : number;
};

const compare = (a, b, sign) => {
  if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
  return sign * (typeof a === "number" ? a - b : a.localeCompare(b));
};

for (const table of document.querySelectorAll("table")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const falling = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", falling ? "descending" : "ascending");
      const rows = [...table.tBodies[0].rows];
      rows.sort((a, b) => compare(value(a, column), value(b, column), falling ? -1 : 1));
      table.tBodies[0].append(...rows);
    });
  });
}
