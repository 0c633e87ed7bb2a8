/* The tables of scores: sort, filter, choose columns, group by family, copy, and say which records a cell comes from.
   What the reader chose is a view, which the address keeps: `view` gives it, `restore` takes it. */

const Tables = (() => {
  const element = (tag, attributes = {}, ...children) => {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
      else if (value === true) made.setAttribute(name, "");
      else if (value !== false && value !== null) made.setAttribute(name, value);
    }
    made.append(...children);
    return made;
  };

  function set_up(section, sources, order, changed) {
    const table = section.querySelector("table.scores"), tools = section.querySelector("[data-tools]");
    const state = { table, changed, sort: null, grouped: true, rows: [...table.querySelectorAll("tbody tr[data-label]")] };
    for (const row of state.rows) row.dataset.order = order.indexOf(row.dataset.label);  // of the report
    heads(state);
    state.find = element("input", { type: "search", size: 12, oninput: () => { arrange(state); changed(); } });
    state.toggle = toggle("Group by family", true, (on) => { if (on) unsort(state); state.grouped = on; arrange(state); changed(); });
    state.nothing = element("p", { class: "nothing", role: "status" });
    table.parentNode.after(state.nothing);
    tools.hidden = false;
    tools.append(element("label", {}, "Find ", state.find), state.toggle, chooser(state), element("span", { class: "gap" }), ...copies(state));
    cells(state, sources);
    restore(state, {});
    return state;
  }

  // ---- the view: what differs from how a table starts ----

  const heads_of = (state) => [...state.table.tHead.rows[0].cells];
  const shown_keys = (state) => heads_of(state).slice(1).filter((th) => !th.hidden).map((th) => th.dataset.key).join(",");
  const usual_keys = (state) => heads_of(state).slice(1).filter((th) => !("rare" in th.dataset)).map((th) => th.dataset.key).join(",");

  function view(state) {
    const th = state.sort && heads_of(state)[state.sort.column], found = {};
    if (th) Object.assign(found, { sort: th.dataset.key, order: th.getAttribute("aria-sort") });
    else if (!state.grouped) found.group = "no";
    if (state.find.value) found.find = state.find.value;
    if (shown_keys(state) !== usual_keys(state)) found.columns = shown_keys(state);
    return found;
  }

  function restore(state, { sort: key, order, group, find, columns }) {
    const known = heads_of(state).slice(1).map((th) => th.dataset.key), asked = (columns ?? "").split(",").filter((name) => known.includes(name));
    const kept = columns === "" || asked.length ? asked : usual_keys(state).split(",");
    for (const th of heads_of(state).slice(1)) show(state.table, th.cellIndex, kept.includes(th.dataset.key));
    for (const box of state.boxes) box.checked = kept.includes(box.value);
    state.find.value = find ?? "";
    const th = heads_of(state).find((one) => one.dataset.key === key);
    group_by(state, !th && group !== "no");
    unsort(state);
    if (th) sort_by(state, th, ["ascending", "descending"].includes(order) ? order : first_order(th));
    arrange(state);
  }

  const toggle = (words, on, changed) => element("button", {
    type: "button", "aria-pressed": String(on),
    onclick: (e) => { const now = e.currentTarget.getAttribute("aria-pressed") !== "true"; e.currentTarget.setAttribute("aria-pressed", String(now)); changed(now); },
  }, words);

  // ---- sorting and filtering ----

  function heads(state) {
    for (const th of state.table.tHead.rows[0].cells) {
      const words = th.textContent;
      th.textContent = "";
      th.append(element("button", { type: "button", title: "Sort by this column", onclick: () => sort(state, th) }, words));
      th.setAttribute("aria-sort", "none");
    }
  }

  // Numbers first from the largest, texts first from a; a second press turns the order round, a third gives the report's.
  function sort(state, th) {
    const first = first_order(th), second = first === "descending" ? "ascending" : "descending";
    const now = th.getAttribute("aria-sort");
    const next = now === "none" ? first : now === first ? second : "none";
    unsort(state);
    if (next !== "none") sort_by(state, th, next);
    group_by(state, false);  // an order is that of all rows
    arrange(state);
    state.changed();
  }

  const first_order = (th) => (th.classList.contains("n") ? "descending" : "ascending");

  function sort_by(state, th, order) {
    th.setAttribute("aria-sort", order);
    state.sort = { column: th.cellIndex, sign: order === "ascending" ? 1 : -1 };
  }

  function unsort(state) {
    for (const th of heads_of(state)) th.setAttribute("aria-sort", "none");
    state.sort = null;
  }

  function group_by(state, on) {
    state.grouped = on;
    state.toggle.setAttribute("aria-pressed", String(on));
  }

  function compare(state, a, b) {
    if (!state.sort) return a.dataset.order - b.dataset.order;
    const [x, y] = [a, b].map((row) => row.cells[state.sort.column]);
    const [v, w] = [x, y].map((cell) => (cell.dataset.v === undefined ? null : Number(cell.dataset.v)));
    if (v === null && w === null) return state.sort.sign * text(x).localeCompare(text(y), "en", { numeric: true }) || a.dataset.order - b.dataset.order;
    if (v === null || w === null) return v === null ? 1 : -1;  // what was not measured comes last in any order
    return state.sort.sign * (v - w) || a.dataset.order - b.dataset.order;
  }

  const text = (cell) => cell.textContent.trim();

  function arrange(state) {
    const { table, grouped } = state, sought = state.find.value.trim();
    const rows = [...state.rows].sort((a, b) => compare(state, a, b));
    for (const row of rows) row.hidden = !`${row.dataset.label} ${row.dataset.family}`.toLowerCase().includes(sought.toLowerCase());
    missing(state.nothing, rows.some((row) => !row.hidden) ? "" : sought, () => { state.find.value = ""; arrange(state); state.changed(); state.find.focus(); });
    const bodies = [...table.tBodies].filter((body) => body.dataset.family);
    for (const body of bodies) {
      const mine = rows.filter((row) => grouped && row.dataset.family === body.dataset.family);
      body.append(...mine);
      body.hidden = !mine.some((row) => !row.hidden);
    }
    if (!state.flat) { state.flat = element("tbody"); table.append(state.flat); }
    if (!grouped) state.flat.append(...rows);
    rove(state);
  }

  // Says that nothing has a name that was sought, and offers to forget it; empty where something has.
  function missing(place, sought, clear) {
    place.replaceChildren(...(sought ? [`No method matches “${sought}”. `, element("button", { type: "button", class: "small", onclick: clear }, "Clear the search")] : []));
  }

  // ---- columns ----

  function show(table, column, on) {
    for (const row of table.querySelectorAll("tr:not(.family)")) if (row.cells[column]) row.cells[column].hidden = !on;
    const shown = [...table.tHead.rows[0].cells].filter((th) => !th.hidden).length;
    for (const th of table.querySelectorAll("tr.family th")) th.colSpan = shown;
  }

  function chooser(state) {
    state.boxes = heads_of(state).slice(1).map((th) => element("input", {
      type: "checkbox", value: th.dataset.key, onchange: (e) => { show(state.table, th.cellIndex, e.target.checked); state.changed(); },
    }));
    const labels = heads_of(state).slice(1).map((th, i) => element("label", {}, state.boxes[i], ` ${text(th)}`));
    const panel = element("details", {}, element("summary", {}, "Columns"), element("div", {}, ...labels));
    const leave = (e) => { if (!panel.contains(e.target)) panel.open = false; };
    for (const event of ["pointerdown", "focusin"]) document.addEventListener(event, leave);
    document.addEventListener("keydown", (e) => {
      if (e.key !== "Escape" || !panel.open) return;
      const inside = panel.contains(document.activeElement);
      panel.open = false;
      if (inside) panel.firstChild.focus();
    });
    return panel;
  }

  // ---- copying ----

  function grid(state) {
    const columns = [...state.table.tHead.rows[0].cells].filter((th) => !th.hidden).map((th) => th.cellIndex);
    const rows = [...state.table.querySelectorAll("tbody tr[data-label]")].filter((row) => !row.hidden);
    const words = (cell) => (cell.cellIndex === 0 ? cell.parentNode.dataset.label || text(cell) : text(cell));
    const head = columns.map((i) => text(state.table.tHead.rows[0].cells[i]));
    return { head, cells: rows.map((row) => columns.map((i) => row.cells[i])), words };
  }

  const FORMATS = {
    Markdown(state) {
      const { head, cells, words } = grid(state), line = (parts) => `| ${parts.map((p) => p.replace(/[|\\]/g, "\\$&")).join(" | ")} |`;
      return [line(head), `|:--${"|--:".repeat(head.length - 1)}|`, ...cells.map((row) => line(row.map(words)))].join("\n");
    },
    LaTeX(state) {
      const { head, cells, words } = grid(state);
      const special = { "\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}", "•": "$\\bullet$", "×": "$\\times$", "−": "$-$", "±": "$\\pm$", "↑": "$\\uparrow$", "↓": "$\\downarrow$", "—": "---" };
      const line = (parts) => `${parts.map((p) => p.replace(/[\\~^•×−±↑↓—&%$#_{}]/g, (c) => special[c] || `\\${c}`)).join(" & ")} \\\\`;
      return [`\\begin{tabular}{l${"r".repeat(head.length - 1)}}`, "\\toprule", line(head), "\\midrule", ...cells.map((row) => line(row.map(words))), "\\bottomrule", "\\end{tabular}"].join("\n");
    },
    CSV(state) {  // numbers unrounded where a cell has one
      const { head, cells, words } = grid(state), quoted = (s) => (/[",\n]/.test(s) ? `"${s.replace(/"/g, '""')}"` : s);
      const value = (cell) => (cell.dataset.v === undefined ? words(cell) : cell.dataset.v);
      const around = head.map((_, i) => cells.some((row) => row[i].dataset.low !== undefined));
      const ends = (cell) => [cell.dataset.low ?? "", cell.dataset.high ?? ""];
      const heads = head.flatMap((h, i) => (around[i] ? [h, `${h}, low`, `${h}, high`] : [h]));
      return [heads, ...cells.map((row) => row.flatMap((cell, i) => [value(cell), ...(around[i] ? ends(cell) : [])]))].map((row) => row.map(quoted).join(",")).join("\n");
    },
  };

  function copies(state) {
    const said = element("span", { role: "status", class: "fine" });
    const buttons = Object.entries(FORMATS).map(([name, make]) => element("button", {
      type: "button", class: "small", "data-copy": name,
      onclick: async () => { said.textContent = (await copy(make(state))) ? `copied as ${name}` : "the browser forbids copying"; },
    }, name));
    return [element("span", { class: "fine" }, "Copy as"), ...buttons, said];
  }

  // A page that is opened from disk may have no clipboard of its own; then the older way.
  async function copy(words) {
    document.body.dataset.copied = words;
    try { await navigator.clipboard.writeText(words); return true; } catch { /* below */ }
    const area = element("textarea", { class: "off" });
    area.value = words;
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }

  // ---- what is behind a cell: one cell is in the order of the tab key, arrows lead to the others ----

  function rove(state) {
    const cells = shown(state);
    if (!cells.some((cell) => cell.tabIndex === 0)) { for (const cell of cells) cell.tabIndex = -1; if (cells[0]) cells[0].tabIndex = 0; }
  }

  const shown = (state) => [...state.table.querySelectorAll("tbody tr[data-label] td[data-s]")].filter((c) => !c.hidden && !c.parentNode.hidden);

  function cells(state, sources) {
    const { table } = state, tip = document.getElementById("tip");
    const hide = () => { tip.hidden = true; };
    const say = (cell) => {
      const label = cell.parentNode.dataset.label, head = text(table.tHead.rows[0].cells[cell.cellIndex]);
      const files = sources && sources.of[label] ? sources.of[label][cell.dataset.s] : [];
      tip.replaceChildren(element("b", {}, `${label}, ${head}: `), text(cell));
      if (files.length) tip.append(element("div", {}, "from ", ...files.map((file) => element(...(sources.runs ? ["a", { href: `${sources.runs}/${encodeURIComponent(file)}`, tabindex: -1 }] : ["span", {}]), file))));
      tip.hidden = false;
      const box = cell.getBoundingClientRect(), width = tip.offsetWidth;
      tip.style.left = `${Math.max(8, Math.min(box.left, document.documentElement.clientWidth - width - 8)) + scrollX}px`;
      tip.style.top = `${box.bottom + scrollY + 2}px`;
    };
    const of = (e) => e.target.closest && e.target.closest("tbody tr[data-label] td[data-s]");
    let leaving;
    table.addEventListener("pointerover", (e) => { clearTimeout(leaving); if (of(e) && e.pointerType !== "touch") say(of(e)); });
    table.addEventListener("pointerleave", () => { leaving = setTimeout(hide, 250); });
    tip.addEventListener("pointerenter", () => clearTimeout(leaving));
    tip.addEventListener("pointerleave", hide);
    table.addEventListener("focusin", (e) => { if (of(e)) say(of(e)); });
    table.addEventListener("focusout", hide);
    table.addEventListener("click", (e) => { if (of(e)) of(e).focus({ preventScroll: true }); });
    table.addEventListener("keydown", (e) => {
      if (e.key === "Escape") hide();
      const move = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }[e.key];
      if (!move || !of(e)) return;
      e.preventDefault();
      const row = of(e).parentNode, rows = [...new Set(shown(state).map((cell) => cell.parentNode))];
      const inRow = (r) => [...r.cells].filter((cell) => cell.dataset.s && !cell.hidden);
      const at = inRow(row).indexOf(of(e)), next = rows[rows.indexOf(row) + move[0]];
      const to = next && inRow(next)[at + move[1]];
      if (!to) return;
      of(e).tabIndex = -1; to.tabIndex = 0; to.focus();
    });
  }

  return { set_up, view, restore, element, toggle, FORMATS };
})();
