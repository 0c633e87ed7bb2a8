/* The index of a site: which measure is shown, of which experiments, and which methods. */
(() => {
  "use strict";
  const place = document.getElementById("beside");
  const tables = [...place.querySelectorAll("[data-measure]")];
  const boxes = [...place.querySelectorAll(".sets input")];
  const measure = document.getElementById("measure"), find = document.getElementById("find");

  const nothing = place.querySelector(".nothing");

  function show() {
    const kept = new Set(boxes.filter((box) => box.checked).map((box) => box.value));
    const sought = find.value.trim().toLowerCase();
    for (const table of tables) table.hidden = table.dataset.measure !== measure.value;
    for (const cell of place.querySelectorAll("[data-set]")) cell.hidden = !kept.has(cell.dataset.set);
    for (const row of place.querySelectorAll("tbody tr")) {
      const filled = [...row.querySelectorAll("td")].some((cell) => !cell.hidden && cell.textContent !== "–");
      row.hidden = !filled || !row.querySelector("th").textContent.toLowerCase().includes(sought);
    }
    const found = [...place.querySelectorAll("[data-measure]:not([hidden]) tbody tr")].some((row) => !row.hidden);
    missing(found ? "" : find.value.trim());
  }

  function missing(sought) {
    nothing.textContent = sought ? `No method matches “${sought}”. ` : "";
    if (!sought) return;
    const clear = document.createElement("button");
    Object.assign(clear, { type: "button", className: "small", textContent: "Clear the search" });
    clear.addEventListener("click", () => { find.value = ""; show(); find.focus(); });
    nothing.append(clear);
  }

  place.querySelector(".needs-script").hidden = false;
  for (const control of [measure, find, ...boxes]) control.addEventListener("input", show);
  show();
  document.documentElement.dataset.ready = "";
})();
