/* The index of a site: which measure is shown, of which experiments, and which methods. */
(() => {
  "use strict";
  const place = document.getElementById("beside");
  const tables = [...place.querySelectorAll("[data-measure]")];
  const boxes = [...place.querySelectorAll(".sets input")];
  const measure = document.getElementById("measure"), find = document.getElementById("find");

  function show() {
    const kept = new Set(boxes.filter((box) => box.checked).map((box) => box.value));
    const sought = find.value.trim().toLowerCase();
    for (const table of tables) table.hidden = table.dataset.measure !== measure.value;
    for (const cell of place.querySelectorAll("[data-set]")) cell.hidden = !kept.has(cell.dataset.set);
    for (const row of place.querySelectorAll("tbody tr")) {
      const filled = [...row.querySelectorAll("td")].some((cell) => !cell.hidden && cell.textContent !== "–");
      row.hidden = !filled || !row.querySelector("th").textContent.toLowerCase().includes(sought);
    }
  }

  place.querySelector(".needs-script").hidden = false;
  for (const control of [measure, find, ...boxes]) control.addEventListener("input", show);
  show();
  document.documentElement.dataset.ready = "";
})();
