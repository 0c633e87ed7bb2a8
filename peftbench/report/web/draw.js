/* The charts: data for the templates of the block "facts", names beside their points, and SVG to save.
   A point stands where its value is. Names move to where there is room, with a line to their point. */

const Draw = (() => {
  const { element } = Tables;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const LETTERS = { weights: "W", adapter: "A", head: "H", gradients: "G", optimizer: "O", activations: "X", temporaries: "T" };
  const COLOURS = ["#3b6ea5", "#8a4f9e", "#7a7a72", "#b3541e", "#8a6d00", "#2a7d64", "#9c3d54"];

  function inks() {
    const style = getComputedStyle(document.documentElement), of = (name) => style.getPropertyValue(`--${name}`).trim();
    return { ink: of("ink"), muted: of("muted"), faint: of("faint"), accent: of("accent"), band: of("accent"), paper: of("paper"), line: of("line") };
  }

  function theme() {
    const c = inks(), font = "ui-sans-serif, system-ui, sans-serif";
    return {
      background: "transparent", font, view: { stroke: null }, range: { category: COLOURS },
      axis: { labelColor: c.muted, titleColor: c.muted, gridColor: c.line, domainColor: c.faint, tickColor: c.faint, titleFontWeight: "normal", labelFontSize: 11, titleFontSize: 12, labelFont: font, titleFont: font },
      header: { labelColor: c.ink, labelFontSize: 12 }, legend: { labelColor: c.ink, titleColor: c.ink, labelFontSize: 12, symbolStrokeColor: c.ink },
    };
  }

  const filled = (spec, words) => JSON.parse(JSON.stringify(spec), (key, value) => (typeof value === "string" && value in words ? words[value] : value));

  async function embed(place, spec, datasets, words, params, describes) {
    const c = { ...inks(), ...params };
    const made = filled(spec, words);
    made.params = made.params.map((p) => (p.name in c ? { ...p, value: c[p.name] } : p));
    made.datasets = datasets;
    if (made.layer) made.layer = made.layer.filter((layer) => !layer.data || layer.data.name !== "band" || datasets.band.length);
    made.description = describes;
    const drawn = place.querySelector(".drawn");
    if (place.view) place.view.finalize();
    place.view = await vegaEmbed(drawn, made, { renderer: "svg", actions: false, config: theme(), ast: false, tooltip: { theme: dark.matches ? "dark" : "light" } });
    save(place, describes);
    return place.view;
  }

  function save(place, name) {
    if (place.querySelector(".actions")) return;
    place.append(element("div", { class: "actions" }, element("button", { type: "button", class: "small", "data-svg": true, onclick: () => download(place, name) }, "Save as SVG")));
  }

  async function download(place, name) {
    const svg = await place.view.view.toSVG();
    const link = element("a", { href: URL.createObjectURL(new Blob([svg], { type: "image/svg+xml" })), download: `${name.replace(/[^\w-]+/g, "-").slice(0, 80)}.svg` });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  const width = (place, less) => Math.max(160, Math.min(1040, place.clientWidth || 640) - less);

  // ---- score against cost ----

  function front(place, view) {
    const scaled = view.rows.filter((r) => r.y !== null && r.x !== null);
    const w = width(place, 64), h = w < 420 ? 380 : 440, lower = view.direction === "min";
    const xs = scaled.flatMap((r) => [r.x, r.xlow, r.xhigh]).filter((x) => x !== null);
    const log = Math.min(...xs) > 0 && Math.max(...xs) > 20 * Math.min(...xs);
    const pad = (lo, hi, f) => [lo - f * (hi - lo || Math.abs(lo) || 1), hi + f * (hi - lo || Math.abs(lo) || 1)];
    const [x0, x1] = log ? pad(Math.log10(Math.min(...xs)), Math.log10(Math.max(...xs)), 0.07).map((v) => 10 ** v) : pad(Math.min(...xs), Math.max(...xs), 0.07);
    const ends = scaled.flatMap((r) => [r.y, r.low, r.high]).filter((y) => y !== null);
    // The panel shows every point; an interval that is much wider than the others leaves it.
    const ys = scaled.map((r) => r.y), halves = scaled.filter((r) => r.low !== null).map((r) => Math.max(r.high - r.y, r.y - r.low)).sort((a, b) => a - b);
    const usual = halves.length ? 1.15 * halves[Math.floor(halves.length / 2)] : 0;
    const [y0, y1] = pad(Math.max(Math.min(...ends), Math.min(...ys) - usual), Math.min(Math.max(...ends), Math.max(...ys) + usual), 0.03);
    const toX = (x) => (log ? (Math.log10(x) - Math.log10(x0)) / (Math.log10(x1) - Math.log10(x0)) : (x - x0) / (x1 - x0)) * w;
    const fromX = (p) => (log ? 10 ** (Math.log10(x0) + (p / w) * (Math.log10(x1) - Math.log10(x0))) : x0 + (p / w) * (x1 - x0));
    const toY = (y) => (1 - (y - y0) / (y1 - y0)) * h, fromY = (p) => y0 + (1 - p / h) * (y1 - y0);
    const rows = scaled.map((r) => ({ ...r, low: r.low ?? r.y, high: r.high ?? r.y, xlow: r.xlow ?? r.x, xhigh: r.xhigh ?? r.x }));
    const labels = named(rows.map((r) => ({ ...r, px: toX(r.x), py: toY(r.y) })), w, h)
      .map((l) => ({ ...l, lx: fromX(l.lpx), ly: fromY(l.lpy) }));
    const spec = { ...view.charts[log ? "front_log" : "front"], width: w, height: h };
    return embed(place, spec, { rows, labels, front: steps(rows.filter((r) => r.state !== "out"), lower, lower ? y1 : y0, x1), band: view.band },
      { "@x": view.xtitle, "@y": view.ytitle, "@cost": view.costname }, { x0, x1, y0, y1 }, view.describes);
  }

  // The front: no other row is at least as good and at most as costly. It ends where the panel ends.
  function steps(rows, lower, worst, end) {
    const sorted = [...rows].sort((a, b) => a.x - b.x || (lower ? a.y - b.y : b.y - a.y)), points = [];
    for (const r of sorted) if (!points.length || (lower ? r.y < points[points.length - 1].y : r.y > points[points.length - 1].y)) points.push({ x: r.x, y: r.y });
    return points.length ? [{ x: points[0].x, y: worst }, ...points, { x: end, y: points[points.length - 1].y }] : [];
  }

  // A place for each name that covers no other name and no point, the nearest first; without any, it has none but the tip.
  function named(points, w, h) {
    const boxes = points.map((p) => [p.px - 5, p.py - 5, p.px + 5, p.py + 5]), found = [];
    const order = [...points].sort((a, b) => (b.state === "chosen") - (a.state === "chosen") || (a.state === "out") - (b.state === "out"));
    for (const p of order) {
      const wide = p.label.length * 6.1 + 7;
      const place = candidates(p, wide).find((c) => c.box[0] > -30 && c.box[2] < w + 30 && c.box[1] > 0 && c.box[3] < h && !boxes.some((b) => meets(b, c.box)));
      if (!place) continue;
      boxes.push(place.box);
      found.push({ ...p, lpx: place.x, lpy: place.y, side: place.side });
    }
    return found;
  }

  function candidates(p, wide) {
    const found = [];
    for (const far of [9, 16, 26, 38, 54, 74, 98, 126, 158]) {
      for (const angle of [0, 180, 30, -30, 150, -150, 60, -60, 120, -120, 85, -85]) {
        const x = p.px + far * Math.cos(angle * Math.PI / 180), y = p.py - far * Math.sin(angle * Math.PI / 180);
        const side = Math.abs(angle) <= 90 ? "left" : "right";
        found.push({ x, y, side, box: side === "left" ? [x - 1, y - 7, x + wide, y + 7] : [x - wide, y - 7, x + 1, y + 7] });
      }
    }
    return found;
  }

  const meets = (a, b) => a[0] < b[2] && b[0] < a[2] && a[1] < b[3] && b[1] < a[3];

  function forest(place, view) {
    const rows = view.rows.filter((r) => r.y !== null).map((r, i) => ({ ...r, order: i, low: r.low ?? r.y, high: r.high ?? r.y }));
    const longest = Math.min(220, Math.max(0, ...rows.map((r) => r.label.length * 6.4)));
    const spec = { ...view.charts.forest, width: width(place, longest + 30) };
    return embed(place, spec, { rows, band: view.band }, { "@y": view.ytitle, "@cost": view.costname }, {}, view.describes);
  }

  // ---- further charts ----

  // Names at the right end of lines, moved apart where they would cover each other.
  function ends(points, h, low, high) {
    const sorted = [...points].sort((a, b) => b.y - a.y), room = 12.5, toY = (y) => (1 - (y - low) / (high - low || 1)) * h;
    let places = sorted.map((p) => toY(p.y));
    for (let i = 1; i < places.length; i++) places[i] = Math.max(places[i], places[i - 1] + room);
    const over = places.length ? places[places.length - 1] - h : 0;
    if (over > 0) { places[places.length - 1] = h; for (let i = places.length - 2; i >= 0; i--) places[i] = Math.min(places[i], places[i + 1] - room); }
    return sorted.map((p, i) => ({ ...p, ly: low + (1 - places[i] / h) * (high - low) }));
  }

  function loss(place, data, charts, picked) {
    const shown = data.curves.filter((c) => c.points.length), all = shown.flatMap((c) => c.points.map((p) => p[1]));
    if (!shown.length) return null;
    const low = Math.min(...all), high = Math.max(...all), last = Math.max(...shown.map((c) => c.points[c.points.length - 1][0]));
    const w = width(place, 200), h = Math.max(280, 13 * shown.length);
    const rows = shown.flatMap((c) => c.points.map(([step, loss]) => ({ label: c.label, step, loss, picked: picked === c.label })));
    const names = ends(shown.map((c) => { const [x, y] = c.points[c.points.length - 1]; return { label: c.label, failed: c.failed, x, y, step: x, loss: y, picked: picked === c.label }; }), h, low, high)
      .map((p) => ({ ...p, lx: last * (1 + 30 / w) }));
    const spec = filled(charts.loss, {});
    spec.width = w; spec.height = h;
    if (!shown.some((c) => c.failed)) spec.layer.pop();  // the crosses of failed runs
    for (const layer of spec.layer) for (const [channel, of] of Object.entries(layer.encoding)) {
      if (channel === "x") of.scale = { domain: [1, last], nice: false };
      if (channel === "y") of.scale = { domain: [low, high], nice: false, zero: false };
    }
    return embed(place, spec, { loss: rows, ends: names }, { "@y": "training loss" }, {}, "Training loss by step");
  }

  function memory(place, rows, parts, charts) {
    const total = Math.max(...rows.map((r) => r.peak)), longest = Math.min(220, Math.max(0, ...rows.map((r) => r.label.length * 6.4))), w = width(place, longest + 30);
    const data = rows.flatMap((r, order) => {
      let from = 0;
      return parts.map((part, i) => {
        const made = { label: r.label, order, part, part_order: i, mib: r[part], middle: from + r[part] / 2, letter: (r[part] / total) * w > 14 ? LETTERS[part] : "" };
        from += r[part];
        return made;
      });
    });
    return embed(place, { ...charts.memory, width: w }, { memory: data }, {}, {}, "Peak memory by part");
  }

  function latency(place, pass, charts, where) {
    const rows = pass.rows.filter((r) => r.where === where).map((r, order) => ({ ...r, order }));
    const by = new Map();
    for (const r of rows) { const s = by.get(r.label) || [r.ms, r.ms]; by.set(r.label, [Math.min(s[0], r.ms), Math.max(s[1], r.ms)]); }
    const data = rows.map((r) => ({ ...r, low: by.get(r.label)[0], high: by.get(r.label)[1] }));
    const longest = Math.min(220, Math.max(0, ...rows.map((r) => r.label.length * 6.4)));
    return embed(place, { ...charts.latency, width: width(place, longest + 30) }, { latency: data }, { "@x": `ms, median: ${where} tokens` }, {}, `Latency, ${where}`);
  }

  function tuning(place, data, charts) {
    const w = width(place, 40), columns = Math.max(1, Math.min(4, Math.floor(w / 210)));
    const orders = new Map([...new Set(data.rows.map((r) => r.label))].map((label, i) => [label, i]));
    const spec = filled(charts.tuning, {});
    spec.columns = columns;
    spec.spec.width = Math.floor(w / columns) - 48;
    return embed(place, spec, { trials: data.rows.map((r) => ({ ...r, order: orders.get(r.label) })) }, data.words, {}, "Trials by learning rate");
  }

  function axis(place, data, charts) {
    const rows = data.axis, xs = rows.map((r) => r.x), all = rows.flatMap((r) => [r.y, r.low, r.high]).filter((y) => y !== null);
    const w = width(place, 200), h = 340, low = Math.min(...all), high = Math.max(...all), x0 = Math.min(...xs), x1 = Math.max(...xs);
    const last = new Map();
    for (const r of rows) if (!last.has(r.label) || r.x > last.get(r.label).x) last.set(r.label, r);
    const names = ends([...last.values()], h, low, high).map((p) => ({ ...p, lx: x1 * (x1 / x0) ** (14 / w) }));
    const spec = filled(charts.axis, {});
    spec.width = w; spec.height = h;
    for (const layer of spec.layer) {
      if (layer.encoding.x) layer.encoding.x.scale = { type: "log", domain: [x0, x1], nice: false };
      if (layer.encoding.y) layer.encoding.y.scale = { domain: [low, high], nice: false, zero: false };
    }
    return embed(place, spec, { points: rows, ends: names }, data.words, {}, "Scores along an axis");
  }

  return { front, forest, loss, memory, latency, tuning, axis, dark };
})();
