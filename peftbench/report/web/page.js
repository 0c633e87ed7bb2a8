/* The page: which result is shown, what the reader has, and everything that follows from it.
   The address keeps it all: #task=SLUG&margin=2&memory=300&figure=forest&sort=score, or #pairs for a section. */

(() => {
  const facts = JSON.parse(document.getElementById("facts").textContent);
  const { element } = Tables;
  const MIB = 2 ** 20;
  const COSTS = {  // name -> what the reader types, in which unit
    memory: { words: "Peak memory", unit: "MiB", factor: 1 / MIB },
    parameters: { words: "Trainable parameters", unit: "", factor: 1 },
    time: { words: "Step time", unit: "ms", factor: 1e3 },
    latency: { words: "Unmerged latency of one text", unit: "ms", factor: 1e3 },
  };
  const sections = [...document.querySelectorAll("section.result")];
  const state = { slug: sections[0] && sections[0].id, ...nothing(), view: {} };
  const FIGURES = ["front", "forest"], usual_figure = innerWidth < 560 ? "forest" : "front";
  const ready = new Map();  // slug -> what was set up for it
  document.documentElement.classList.add("js");

  const tablesOf = (slug) => (facts.tables[slug] ? [facts.tables[slug]] : facts.averages[slug] ? facts.averages[slug].tables.map((s) => facts.tables[s]) : []);
  const byLabel = (table, label) => table.rows.find((row) => row.label === label);
  const tidy = (x) => Number(x.toPrecision(3));

  // What a reader may choose, before any choice: limits, what is compared, and the figure. `view` is that of the table.
  function nothing() { return { margin: null, cost: null, limits: {}, figure: null, axis: null, near: false }; }

  // ---- the address ----

  const VIEW = ["sort", "order", "group", "find", "columns"];

  function plain(text) { try { return decodeURIComponent(text); } catch { return text; } }  // of what somebody typed

  function read() {
    const given = new URLSearchParams(location.hash.slice(1)), hash = plain(location.hash.slice(1));
    const number = (key) => (given.has(key) && given.get(key) !== "" && Number.isFinite(Number(given.get(key))) ? Number(given.get(key)) : null);
    const section = given.get("section") || (/^[\w-]+$/.test(hash) && !sections.some((s) => s.id === hash) ? hash : null);
    const asked = given.get("task") || hash;
    const named = sections.find((s) => s.id === asked || s.querySelector("h2").textContent === asked);
    if (named) state.slug = named.id;
    if (given.has("task")) Object.assign(state, nothing());  // a whole address: it says all
    if (number("margin") !== null && number("margin") >= 0) state.margin = number("margin");
    if (given.get("by") in COSTS) state.cost = given.get("by");
    for (const cost of Object.keys(COSTS)) if (number(cost) !== null) state.limits[cost] = number(cost);
    if (FIGURES.includes(given.get("figure"))) state.figure = given.get("figure");
    if (given.get("axis") in COSTS) state.axis = given.get("axis");
    if (given.get("near") === "yes") state.near = true;
    const view = Object.fromEntries(VIEW.filter((key) => given.has(key)).map((key) => [key, given.get(key)]));
    state.view = given.has("task") || Object.keys(view).length ? view : null;  // null leaves the table as it is
    return section;
  }

  function write() {
    const kept = new URLSearchParams({ task: state.slug });
    if (state.margin !== null) kept.set("margin", state.margin);
    if (state.cost) kept.set("by", state.cost);
    for (const [cost, limit] of Object.entries(state.limits)) kept.set(cost, limit);
    if (state.figure) kept.set("figure", state.figure);
    if (state.axis) kept.set("axis", state.axis);
    if (state.near) kept.set("near", "yes");
    const { table } = ready.get(state.slug) || {};
    for (const [key, value] of Object.entries(table ? Tables.view(table) : {})) kept.set(key, value);
    try { history.replaceState(null, "", `#${kept}`); } catch { /* a page within a frame may have no address */ }
  }

  // ---- which result ----

  function choose() {
    const nav = document.getElementById("choose");
    if (sections.length < 2) return;
    nav.hidden = false;
    const title = (s) => s.querySelector("h2").textContent;
    if (sections.length <= 7 && innerWidth >= 640) {
      for (const s of sections) nav.append(element("button", { type: "button", "data-slug": s.id, onclick: () => go(s.id) }, title(s)));
    } else {
      const list = element("select", { onchange: (e) => go(e.target.value) }, ...sections.map((s) => element("option", { value: s.id }, title(s))));
      nav.append(element("label", {}, "Result ", list));
    }
  }

  function go(slug) { state.slug = slug; show(); write(); }

  function show() {
    for (const s of sections) s.hidden = s.id !== state.slug;
    for (const b of document.querySelectorAll("#choose [data-slug]")) b.setAttribute("aria-pressed", String(b.dataset.slug === state.slug));
    const list = document.querySelector("#choose select");
    if (list) list.value = state.slug;
    const section = sections.find((s) => s.id === state.slug);
    if (!section) return;
    if (!ready.has(state.slug)) ready.set(state.slug, set_up(section));
    if (state.view && ready.get(state.slug).table) Tables.restore(ready.get(state.slug).table, state.view);
    state.view = null;  // the table has it from here on
    update();
  }

  // ---- a result, at its first sight ----

  function set_up(section) {
    const slug = section.id, made = { section, series: facts.series[slug] || {} };
    if (section.querySelector("table.scores")) {
      made.table = Tables.set_up(section, facts.sources[slug], (facts.averages[slug] || facts.tables[slug]).rows.map((row) => row.label), write);
      made.limits = limits(section, slug);
      made.figure = figures(section, made);
      matrix(section, slug);
    }
    made.charts = charts(section, made);
    return made;
  }

  // What the reader has: a slider over the values that the methods have, and a box for any number.
  function limits(section, slug) {
    const tables = tablesOf(slug), place = section.querySelector("[data-limits]");
    if (!tables.some((t) => t.rows.length > 1)) return null;
    place.hidden = false;
    const inputs = {}, grid = element("div", { class: "grid" });
    const scale = tables[0].scale, same = tables.every((t) => t.scale === scale && t.unit === tables[0].unit);
    const prefers = element("select", { "data-limit": "by", onchange: (e) => { state.cost = e.target.value; changed(); } },
      ...Object.keys(COSTS).map((cost) => element("option", { value: cost }, facts.text.cost_names[cost])));
    if (same) {
      const most = tables[0].unit ? 0.1 * (scale === 1 ? 100 : 1) : 5 * Math.max(...tables.map((t) => t.margin));
      const step = tidy(most / 200 * scale) || 0.01;
      inputs.margin = pair(`Difference that does not matter${tables[0].unit ? `, ${tables[0].unit}` : ""}`, "margin", { min: 0, max: most * scale, step }, (v) => { state.margin = v; });
      grid.append(inputs.margin.box);
    }
    for (const [cost, { words, unit, factor }] of Object.entries(COSTS)) {
      const values = [...new Set(tables.flatMap((t) => t.rows.map((r) => r.costs[cost])).filter((v) => v !== null).map((v) => v * factor))].sort((a, b) => a - b);
      if (values.length < 2) continue;
      const up = values.map((v) => (cost === "parameters" ? v : Math.ceil(v * 10) / 10));
      inputs[cost] = pair(`${words} at most${unit ? `, ${unit}` : ""}`, cost, { values: up }, (v) => { if (v === null) delete state.limits[cost]; else state.limits[cost] = v; });
      grid.append(inputs[cost].box);
    }
    grid.append(element("label", {}, "Cheapest by", element("br"), prefers));
    const fits = element("output", { "aria-live": "polite" });
    const reset = element("button", { type: "button", class: "small", "data-reset": true, onclick: () => { Object.assign(state, { margin: null, cost: null, limits: {} }); changed(); } }, "Reset");
    place.append(element("div", { class: "head" }, element("h3", {}, "What do you have?"), reset), grid, fits);
    return { inputs, prefers, fits };
  }

  function pair(words, name, { values, min, max, step }, set) {
    const end = values ? values.length : max;
    const slider = element("input", { type: "range", min: values ? 0 : min, max: end, step: values ? 1 : step, "data-slider": name, "aria-label": words });
    const box = element("input", { type: "number", min: 0, step: "any", "data-limit": name, "aria-label": `${words}, exactly`, placeholder: "any" });
    slider.addEventListener("input", () => { const at = Number(slider.value); set(values ? (at >= values.length ? null : values[at]) : tidy(at)); changed(); });
    box.addEventListener("input", () => { if (box.value === "" && !values) return; set(box.value === "" ? null : Math.max(0, Number(box.value))); changed(box); });
    return {
      box: element("div", {}, element("label", { "aria-hidden": "true" }, words), element("div", { class: "pair" }, slider, box)),
      show(value, keep) {
        if (box !== keep) box.value = value === null ? "" : tidy(value) === value ? value : Number(value.toPrecision(6));
        slider.value = values ? (value === null ? end : values.filter((v) => v <= value).length - 1) : value;
        slider.setAttribute("aria-valuetext", value === null ? "any" : `at most ${box.value}`);
      },
    };
  }

  function changed(box) { write(); update(box); }

  // ---- what follows ----

  const fits = (table) => (row) => Object.entries(state.limits).every(([cost, limit]) => row.costs[cost] !== null && row.costs[cost] * COSTS[cost].factor <= limit * (1 + 1e-12));

  function update(box) {
    const made = ready.get(state.slug), { section } = made, slug = state.slug;
    if (!made.table) return;
    const tables = tablesOf(slug), average = facts.averages[slug];
    const margins = tables.map((t) => (state.margin === null ? t.margin : state.margin / t.scale));
    const cost = state.cost || tables[0].prefer;
    const inAll = (row) => tables.every((t) => { const mine = byLabel(t, row.label); return !mine || fits(t)(mine); });
    const found = average ? Decide.overTasks(average, tables, facts.text, margins, cost, inAll) : Decide.verdict(tables[0], facts.text, margins[0], cost, fits(tables[0]));
    sentences(section, found.sentences);
    const rows = average ? average.rows : tables[0].rows, isIn = average ? inAll : fits(tables[0]);
    for (const tr of section.querySelectorAll("table.scores tbody tr[data-label]")) {
      const row = rows.find((r) => r.label === tr.dataset.label);
      tr.classList.toggle("out", !!row && !isIn(row));
      tr.classList.toggle("chosen", !!row && row.label === found.chosen);
    }
    const state_of = (row) => (row.label === found.chosen ? "chosen" : isIn(row) ? "in" : "out");
    if (made.limits) {
      const { inputs, prefers, fits: said } = made.limits, count = rows.filter(isIn).length;
      if (inputs.margin) inputs.margin.show(margins[0] * tables[0].scale, box);
      for (const name of Object.keys(COSTS)) if (inputs[name]) inputs[name].show(name in state.limits ? state.limits[name] : null, box);
      prefers.value = cost;
      said.textContent = count === rows.length ? "" : `${count} of ${rows.length} methods fit; the others are grey, and are not compared with.`;
    }
    if (!average) pairs(section, tables[0], margins[0], isIn);
    const behind = average ? [] : found.decided.behind;
    made.view = view(average, tables, state.near ? rows.filter((r) => !behind.includes(r.label)) : rows, state_of, margins);
    made.behind = behind.length;
    made.figure.redraw();
  }

  function sentences(section, words) {
    const place = section.querySelector(".verdict");
    if (!place || [...place.children].map((p) => p.textContent).join("\n") === words.join("\n")) return;
    place.replaceChildren(...words.map((s, i) => element("p", i ? {} : { class: "lead" }, s)));
  }

  // ---- the pairs ----

  const SYMBOLS = { better: "▲", worse: "▼", equal: "=", open: "·" };

  function pairs(section, table, margin, isIn) {
    const grid = section.querySelector("table.pairs");
    if (!grid) return;
    const labels = [...grid.tHead.rows[0].cells].slice(1).map((th) => th.textContent);
    const out = new Set(table.rows.filter((r) => !isIn(r)).map((r) => r.label));
    for (const tr of grid.tBodies[0].rows) {
      const label = tr.cells[0].textContent;
      labels.forEach((other, i) => {
        const cell = tr.cells[i + 1], how = label === other ? "self" : Decide.how(table, label, other, margin);
        cell.className = how;
        cell.classList.toggle("out", out.has(label) || out.has(other));
        if (label === other) return;
        cell.textContent = SYMBOLS[how];
        cell.setAttribute("aria-label", how);
      });
    }
    section.querySelector("[data-margin]").textContent = Decide.difference(table, margin);
  }

  function matrix(section, slug) {
    const grid = section.querySelector("table.pairs"), said = section.querySelector("[data-pair]");
    if (!grid) return;
    const table = facts.tables[slug], labels = [...grid.tHead.rows[0].cells].slice(1).map((th) => th.textContent);
    const words = { better: "is better than", worse: "is worse than", equal: "is equal within the margin to", open: "is not told apart from" };
    const cells = [...grid.tBodies[0].rows].flatMap((tr) => [...tr.cells].slice(1).filter((td) => td.className !== "self"));
    const say = (td) => {
      const a = td.parentNode.cells[0].textContent, b = labels[td.cellIndex - 1], p = (table.pairs[a] || {})[b];
      if (!p) return;
      const signed = (x) => (x === null ? "unknown" : `${x < 0 ? "−" : "+"}${Math.abs(x * table.scale).toFixed(table.scale === 100 ? 1 : 3)}`);
      const sure = Decide.hasInterval(table, a, b) ? ` [${signed(p[1])}, ${signed(p[2])}]` : "", unit = table.unit ? ` ${table.unit}` : "";
      const why = sure ? "(95 % interval of this pair alone)" : "in every seed: without a spread there is no interval, so nothing is decided";
      said.textContent = `${a} ${words[td.className.split(" ")[0]]} ${b}: ahead by ${signed(p[0])}${sure}${unit} ${why}.`;
    };
    if (cells[0]) cells[0].tabIndex = 0;
    grid.addEventListener("pointerover", (e) => { const td = e.target.closest("td"); if (cells.includes(td)) say(td); });
    grid.addEventListener("focusin", (e) => { if (cells.includes(e.target)) say(e.target); });
    grid.addEventListener("keydown", (e) => {
      const move = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }[e.key];
      if (!move || !cells.includes(e.target)) return;
      e.preventDefault();
      let [row, column] = [e.target.parentNode, e.target.cellIndex], to;
      do {
        row = move[0] > 0 ? row.nextElementSibling : move[0] < 0 ? row.previousElementSibling : row;
        column += move[1];
        to = row && row.cells[column];
      } while (to && to.classList.contains("self"));
      if (!to || !cells.includes(to)) return;
      e.target.tabIndex = -1; to.tabIndex = 0; to.focus();
    });
  }

  // ---- the figures ----

  const drawn_costs = ({ rows }) => Object.keys(COSTS).filter((cost) => rows.some((r) => r.costs[cost] !== null && r.mean !== null));

  // The cost on the axis: the chosen one, or peak memory, or the first that was measured here.
  function axis_of(of) {
    const costs = drawn_costs(of);
    return [state.axis, "memory"].find((cost) => costs.includes(cost)) || costs[0] || "memory";
  }

  function view(average, tables, rows, state_of, margins) {
    const table = tables[0], lower = !average && table.direction === "min", x = axis_of(average || table), of = COSTS[x];
    const relative = average && ["memory", "time"].includes(x);
    const factor = relative ? 1 : of.factor;
    const shown = rows.map((r) => {
      const spread = r.spread && r.spread[x];
      return {
        label: r.label, family: r.family, state: state_of(r), score: r.score, y: r.mean, low: r.low, high: r.high,
        x: r.costs[x] === null ? null : r.costs[x] * factor,
        xlow: spread ? spread[0] * factor : null, xhigh: spread ? spread[1] * factor : null,
        cost: (r.short && r.short[x]) || (r.costs[x] === null ? "—" : `${tidy(r.costs[x] * factor)}${relative ? "×" : ` ${of.unit}`}`),
      };
    });
    const best = average ? null : Decide.leader(table.rows.filter((r) => state_of(r) !== "out"), table.direction);
    return {
      rows: shown, charts: facts.charts, direction: lower ? "min" : "max", costname: facts.text.cost_names[x],
      band: best ? [lower ? { low: best.mean, high: best.mean + margins[0] } : { low: best.mean - margins[0], high: best.mean }] : [],
      xtitle: relative ? `${of.words.toLowerCase()} / ${average.reference}` : `${of.words.toLowerCase()}${of.unit ? `, ${of.unit}` : ""}`,
      ytitle: average ? `score relative to ${average.reference}` : `${table.metric}, ${lower ? "lower" : "higher"} is better`,
      describes: `${average ? average.title : table.title}: score against ${of.words.toLowerCase()}`,
    };
  }

  function figures(section, made) {
    const place = section.querySelector("[data-figures]"), slug = section.id;
    const of = facts.averages[slug] || facts.tables[slug], { rows } = of;
    if (!window.vegaEmbed || !rows.some((r) => r.mean !== null)) return { redraw: () => null };
    place.hidden = false;
    const costs = drawn_costs(of);
    const figure = element("figure", { class: "chart", "data-chart": "scores" }, element("figcaption"), element("div", { class: "drawn" }));
    const kinds = [["front", "Score against cost"], ["forest", "Method by method"]].map(([name, words]) =>
      element("button", { type: "button", "data-figure": name, onclick: () => { state.figure = name; changed(); } }, words));
    const axis = element("select", { "aria-label": "Cost on the axis", "data-axis": true, onchange: (e) => { state.axis = e.target.value; changed(); } },
      ...costs.map((cost) => element("option", { value: cost }, facts.text.cost_names[cost])));
    const near = Tables.toggle("Without those surely behind", state.near, (on) => { state.near = on; changed(); });
    place.append(element("div", { class: "bar-of-buttons" }, ...kinds, element("label", {}, "Cost ", axis), near), figure, key(rows));
    let drawing = Promise.resolve();
    const redraw = () => {
      const kind = costs.length ? state.figure || usual_figure : "forest";
      for (const b of kinds) b.setAttribute("aria-pressed", String(b.dataset.figure === kind));
      axis.parentNode.hidden = kind !== "front";
      axis.value = axis_of(of);
      near.hidden = !made.behind;
      near.setAttribute("aria-pressed", String(state.near));
      const lower = made.view.direction === "min";
      const margin = facts.tables[slug] ? `The band is the margin ${lower ? "above" : "below"} the best. ` : "";
      figure.querySelector("figcaption").textContent = kind === "front"
        ? `${lower ? "Down" : "Up"} and to the left is better. Lines are 95 % intervals of the score, and the spread of the times; the dashed line is the front. ${margin}An interval that the panel cuts off is whole in the table.`
        : `Means and 95 % intervals, in the report’s order. ${margin}`;
      const current = made.view;
      drawing = drawing.then(() => (current === made.view ? Draw[kind](figure, current) : null));
      return drawing;
    };
    return { redraw };
  }

  function key(rows) {
    const list = element("ul", { class: "key", "aria-label": "Shapes of the families" });
    for (const family of new Set(rows.map((r) => r.family))) {
      const item = element("li");
      item.innerHTML = `<svg width="13" height="13" viewBox="-1.4 -1.4 2.8 2.8" aria-hidden="true"><path fill="currentColor" d="${facts.shapes[family]}"/></svg>`;
      item.append(family);
      list.append(item);
    }
    return list;
  }

  // ---- the further charts, each drawn when it comes into sight ----

  function charts(section, made) {
    const seen = new IntersectionObserver((entries) => {
      for (const e of entries) if (e.isIntersecting) { seen.unobserve(e.target); e.target.redraw(); }
    }, { rootMargin: "300px" });
    const counts = {};
    return [...section.querySelectorAll("figure[data-chart]:not([data-chart=scores])")].map((figure) => {
      const kind = figure.dataset.chart, i = counts[kind] = (counts[kind] ?? -1) + 1;
      figure.redraw = drawer(kind, i, figure, made);
      figure.hidden = !figure.redraw;
      if (figure.redraw) seen.observe(figure);
      return figure;
    });
  }

  function drawer(kind, i, figure, { series }) {
    const data = kind === "axis" ? series : [series[kind]].flat()[i];
    if (!window.vegaEmbed || !data || (data.rows && !data.rows.length) || (kind === "axis" && !data.axis.length)) return null;
    const choice = (words, options, draw, first = "") => {
      const list = element("select", { "data-choice": kind, onchange: () => draw(list.value) }, ...options.map(([value, shown]) => element("option", { value }, shown)));
      figure.querySelector("figcaption").after(element("div", { class: "bar-of-buttons" }, element("label", { class: "fine" }, `${words} `, list)));
      if (options.some(([value]) => value === first)) list.value = first;
      return () => draw(list.value);
    };
    const lead = facts.tables[state.slug] && Decide.leader(facts.tables[state.slug].rows, facts.tables[state.slug].direction);
    switch (kind) {
      case "loss": return choice("Method", [["", "none"], ...data.curves.map((c) => [c.label, c.label])], (label) => Draw.loss(figure, data, facts.charts, label), lead ? lead.label : "");
      case "latency": { const shapes = [...new Set(data.rows.map((r) => r.where))]; return choice("Shape", shapes.map((s) => [s, `${s} tokens`]), (where) => Draw.latency(figure, data, facts.charts, where)); }
      case "memory": return series.memory.length ? () => Draw.memory(figure, series.memory, facts.parts, facts.charts) : null;
      case "tuning": return () => Draw.tuning(figure, data, facts.charts);
      default: return () => Draw.axis(figure, data, facts.charts);
    }
  }

  function redraw_all() {
    const made = ready.get(state.slug);
    if (!made) return;
    if (made.figure) made.figure.redraw();
    for (const figure of made.charts) if (figure.view) figure.redraw();
  }

  // ---- begin ----

  function jump(name) {
    const inside = (section) => [...section.querySelectorAll("[data-section]")].find((s) => s.dataset.section === name);
    const section = [...sections.filter((s) => s.id === state.slug), ...sections].find(inside);  // or the first that has it
    if (!section) return;
    if (section.id !== state.slug) { state.slug = section.id; show(); }
    const target = inside(section);
    if (target.tagName === "DETAILS") target.open = true;
    target.scrollIntoView();
  }

  document.querySelector(".skip").addEventListener("click", (e) => {  // the anchor alone would replace the address
    e.preventDefault();
    document.getElementById("main").focus();
  });
  const asked = read();
  choose();
  show();
  if (asked) jump(asked);
  addEventListener("hashchange", () => { const name = read(); show(); if (name) jump(name); });
  Draw.dark.addEventListener("change", redraw_all);
  let width = innerWidth, waiting;
  addEventListener("resize", () => { if (innerWidth === width) return; width = innerWidth; clearTimeout(waiting); waiting = setTimeout(redraw_all, 150); });
  document.documentElement.dataset.ready = "true";
})();
