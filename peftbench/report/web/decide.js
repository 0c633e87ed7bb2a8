"use strict";
/* What is decided at a margin, among the rows that fit the reader's limits, and the verdict in three sentences.

   The same rules as report/data/decisions.py and the same templates as report/web/wording.py, on the numbers of the block
   "facts". A test holds the two against each other. */

const Decide = (() => {
  // A row is surely within a margin of the best if it is surely not worse than each candidate by more than the margin.
  function decide(table, margin, fits = () => true) {
    const known = table.rows.filter((row) => row.known && fits(row));
    const all = known.length === table.rows.filter((row) => row.known).length;
    const behind = new Set(all ? table.behind : beaten(table, known));
    const candidates = all ? table.candidates : known.map((row) => row.label).filter((label) => !behind.has(label));
    const isWithin = (row) => candidates.every((other) => other === row.label || least(table, row.label, other) > -margin);
    const within = known.length < 2 || !table.answerable ? [] : known.filter(isWithin).map((row) => row.label);
    const rest = known.map((row) => row.label).filter((label) => !within.includes(label));
    return {
      known: known.map((row) => row.label), candidates, within,
      behind: rest.filter((label) => behind.has(label)),
      open: rest.filter((label) => !behind.has(label)),
    };
  }

  // The rows that another is surely better than. A row that is behind itself decides on no other.
  function beaten(table, known) {
    const sign = table.direction === "min" ? -1 : 1;
    const order = [...known].sort((a, b) => sign * (b.mean - a.mean) || (a.label < b.label ? -1 : 1));
    const found = new Set();
    for (const best of order) {
      if (found.has(best.label)) continue;
      for (const row of known) if (row !== best && most(table, row.label, best.label) < 0) found.add(row.label);
    }
    return found;
  }

  const pair = (table, a, b) => (table.pairs[a] || {})[b];
  const least = (table, a, b) => { const p = pair(table, a, b); return p && p[3] !== null ? p[3] : -Infinity; };
  const most = (table, a, b) => { const p = pair(table, a, b); return p && p[4] !== null ? p[4] : Infinity; };

  // How a row compares with another: better, worse, equal within the margin, or open.
  function how(table, a, b, margin) {
    const p = pair(table, a, b);
    if (!p) return "open";
    return p[5] || (p[6] !== null && p[7] !== null && p[6] > -margin && p[7] < margin ? "equal" : "open");
  }

  // The row with the least cost; of costs that are alike, the one with the best score.
  function cheapest(rows, cost, direction = "max") {
    const measured = rows.filter((row) => row.costs[cost] !== null);
    return leader(measured.filter((row) => row.costs[cost] <= minimum(measured, cost) * (1 + ALIKE)), direction);
  }

  const ALIKE = 0.01, WIDE = 5;  // report/data/answer.py, report/web/wording.py
  const minimum = (rows, cost) => Math.min(...rows.map((row) => row.costs[cost]).filter((value) => value !== null));

  function leader(rows, direction) {
    const sign = direction === "min" ? -1 : 1;
    const scored = rows.filter((row) => row.mean !== null);
    return scored.reduce((best, row) => (best === null || sign * row.mean > sign * best.mean ? row : best), null);
  }

  // The smallest margin at which some row is within it, and the rows that then are.
  function leastMargin(table, decided) {
    const need = (label) => Math.max(...decided.candidates.filter((o) => o !== label).map((o) => -least(table, label, o)), -Infinity);
    const needs = decided.known.map((label) => [label, decided.candidates.some((o) => o !== label) ? need(label) : 0]);
    const smallest = Math.min(...needs.map(([, value]) => value));
    return Number.isFinite(smallest) ? [smallest, needs.filter(([, value]) => value === smallest).map(([label]) => label)] : null;
  }

  // How far the best score is from that of a constant answer: any method is within a larger margin.
  function usableMargin(table) {
    const best = leader(table.rows, table.direction);
    return best && table.constant !== null ? Math.abs(best.mean - table.constant) : Infinity;
  }

  // ---- the sentences ----

  function verdict(table, text, margin, cost, fits = () => true) {
    const decided = decide(table, margin, fits);
    const rows = table.rows.filter(fits), best = leader(rows, table.direction);
    if (!table.answerable && rows.length === table.rows.length) return { decided, chosen: null, sentences: table.sentences };
    if (!rows.length) return { decided, chosen: null, sentences: [text.nothing] };
    if (rows.length === 1 && table.rows.length > 1) return { decided, chosen: null, sentences: [fill(text.alone, { label: rows[0].label }), ...second(table, text, rows[0], true, rows)] };
    if (!best) return { decided, chosen: null, sentences: [text.unscored] };
    if (!table.answerable) return { decided, chosen: null, sentences: [fill(text.why, { why: table.why }), ...second(table, text, best, false, rows)] };
    if (decided.known.length < 2) return { decided, chosen: null, sentences: [text.few, ...second(table, text, best, false, rows)] };
    const inside = table.rows.filter((row) => decided.within.includes(row.label));
    const chosen = cheapest(inside, cost, table.direction);
    const fields = {
      chosen: chosen && chosen.label, cost: text.cost_names[cost], alike: alike(inside, chosen, cost, text), number: inside.length,
      margin: amount(table, margin), within: listed(decided.within),
    };
    const kind = !inside.length ? "none" : !chosen ? "uncosted" : inside.length === 1 ? "only" : "chosen";
    const shown = chosen || best;
    return { decided, chosen: chosen && chosen.label,
      sentences: [fill(text[kind], fields), ...second(table, text, shown, !!chosen, rows), ...third(table, text, decided, margin)] };
  }

  const alike = (rows, chosen, cost, text) => (chosen && chosen.costs[cost] > minimum(rows, cost) ? text.alike : "");

  function second(table, text, row, isChosen, rows) {
    if (!row) return [];
    const all = rows.length === table.rows.length, fields = { label: row.label, score: row.score, costs: row.text };
    if (isChosen) {
      const after = row.label === table.reference ? leader(rows.filter((r) => r !== row), table.direction) : null;
      const parts = [row.text ? fill(text.costs, fields) : "",
        after && after.text ? fill(text.next, { fitting: all ? "" : " that fit", label: after.label, score: after.score, costs: after.text }) : ""];
      return parts.some(Boolean) ? [parts.filter(Boolean).join(" ")] : [];
    }
    return [fill(text[`leader${all ? "" : "_fits"}${row.text ? "" : "_alone"}`], fields)];
  }

  function third(table, text, decided, margin) {
    const groups = [[decided.within, "within the margin"], [decided.behind, "surely behind"], [decided.open, "not decided"]];
    const counts = groups.filter(([labels]) => labels.length).map(([labels, name]) => `${labels.length} ${name}`).join(", ");
    const parts = [fill(text.sample, { seeds: table.seeds, examples: table.examples, counts })];
    if (decided.open.length) parts.push(needed(table, text, decided, margin));
    const flat = withoutSpread(table, decided);
    if (flat.length) parts.push(fill(text.no_spread, { labels: listed(flat) }));
    const smallest = decided.within.length ? null : leastMargin(table, decided);
    if (smallest && smallest[0] < Math.min(usableMargin(table), WIDE * margin)) parts.push(fill(text.bears, { least: difference(table, roundedUp(smallest[0])), labels: listed(smallest[1]) }));
    return [parts.filter(Boolean).join(" ")];
  }

  // Open rows whose difference to a candidate is the same in every seed, so that it has no interval: report/data/pairs.py.
  function withoutSpread(table, decided) {
    return decided.open.filter((label) => decided.candidates.some((other) => other !== label && !hasInterval(table, label, other)));
  }

  const hasInterval = (table, a, b) => { const p = pair(table, a, b); return !p || p[1] !== null; };

  // How many seeds, or how many test examples, would show the margin for the open rows; null where nothing is known.
  function lacking(table, decided, margin) {
    const open = table.rows.filter((row) => decided.open.includes(row.label) && row.need);
    if (!open.length) return null;
    const mean = (i) => open.reduce((sum, row) => sum + row.need[i], 0) / open.length;
    const [seed, shared, examples, lent] = [mean(0), mean(1), Math.min(...open.map((row) => row.need[2])), Math.max(0, mean(3))];
    const seeds = Power.seedsFor(margin, seed, shared, lent);
    if (seeds !== null) return { seeds };
    const takes = Power.examplesFor(margin, examples, shared);
    return examples < takes && takes < Infinity ? { examples: Math.floor(takes) } : {};
  }

  function needed(table, text, decided, margin) {
    const lacks = lacking(table, decided, margin), fields = { margin: amount(table, margin) };
    if (lacks === null) return "";
    if (lacks.seeds) return fill(text[lacks.seeds > present(table, decided) ? "seeds" : "enough"], { seeds: twoDigits(lacks.seeds), ...fields });
    if (lacks.examples) return fill(text.more, { examples: count(twoDigits(lacks.examples)), ...fields });
    return fill(text.beyond, fields);
  }

  const present = (table, decided) => Math.min(...table.rows.filter((row) => decided.open.includes(row.label)).map((row) => row.seeds));

  function lacks(text, told, margin) {
    const found = lacking(told.table, told, margin), task = told.table.title;
    if (found === null) return "";
    if (found.seeds) return fill(text[found.seeds > present(told.table, told) ? "lacks_seeds" : "lacks_more"], { seeds: twoDigits(found.seeds), task });
    return found.examples ? fill(text.lacks_examples, { examples: count(twoDigits(found.examples)), task }) : fill(text.lacks_all, { task });
  }

  function overTasks(average, tables, text, margins, cost, fits) {
    if (!average.rows.some(fits)) return { chosen: null, sentences: [text.nothing] };
    const told = tables.map((table, i) => ({ table, ...decide(table, margins[i], fits) }));
    const answered = told.filter(({ table, known }) => table.answerable && known.length > 1);
    const everywhere = answered.length !== tables.length || !answered.length ? []
      : answered[0].within.filter((label) => answered.every(({ within }) => within.includes(label)));
    const meanCost = (label) => {
      const values = tables.map((table) => table.rows.find((row) => row.label === label)).filter(Boolean).map((row) => row.costs[cost]);
      return values.length === tables.length && values.every((v) => v !== null) ? values.reduce((a, b) => a + b, 0) / values.length : null;
    };
    const row = (label) => average.rows.find((r) => r.label === label);
    const costed = everywhere.map((label) => ({ label, mean: row(label).mean, costs: { [cost]: meanCost(label) } }));
    const chosen = cheapest(costed, cost);
    const fields = { tasks: tables.length, all: tables.length === 2 ? "both" : `all ${tables.length}`, cost: text.cost_names[cost], alike: alike(costed, chosen, cost, text), within: listed(everywhere) };
    const sentences = [];
    if (chosen) {
      sentences.push(fill(text[everywhere.length === 1 ? "everywhere_only" : "everywhere"], { chosen: chosen.label, ...fields }));
      const costs = row(chosen.label).text;
      if (costs && chosen.label !== average.reference) sentences.push(fill(text.costs, { label: chosen.label, costs }));
    } else if (everywhere.length) {
      sentences.push(fill(text.everywhere_uncosted, fields));
    } else {
      sentences.push(fill(text.nowhere, fields));
    }
    if (!chosen || chosen.label === average.reference) {
      const others = average.rows.filter((r) => r.mean !== null && r.label !== average.reference && fits(r));
      const best = others.reduce((top, r) => (top === null || r.mean > top.mean ? r : top), null);
      const all = average.rows.every(fits), withReference = average.rows.some((r) => r.label === average.reference && fits(r));
      const about = { among: all ? "" : "of what fits, ", reference: average.reference };
      if (best) sentences.push(fill(withReference ? text.average : text.average_fits, { ...about, label: best.label, score: best.score, costs: best.text }));
    }
    const found = answered.filter(({ within }) => within.length);
    const name = ({ table, within }) => {
      const best = cheapest(table.rows.filter((r) => within.includes(r.label)), cost, table.direction);
      return `${table.title}: ${best ? best.label : listed(within)}`;
    };
    const unlearned = tables.filter((table) => table.learned === false).map((table) => table.title);
    const needs = answered.filter(({ within }) => !within.length).map((t) => lacks(text, t, margins[tables.indexOf(t.table)])).filter(Boolean);
    sentences.push(fill(text.tasks, {
      answered: found.length, have: found.length === 1 ? "has" : "have", tasks: tables.length, seeds: listed([...new Set(tables.map((table) => table.seeds))]),
      named: found.length ? ` (${found.map(name).join("; ")})` : "",
      unlearned: unlearned.length ? `, ${listed(unlearned)} ${unlearned.length === 1 ? "is" : "are"} not learned` : "",
    }) + (needs.length ? fill(text.lacks, { needs: listed(needs) }) : ""));
    return { chosen: chosen && chosen.label, sentences };
  }

  // ---- words ----

  const fill = (template, fields) => template.replace(/\{(\w+)\}/g, (whole, key) => (key in fields ? fields[key] : whole));
  const listed = (names) => (names.length < 2 ? names.join("") : `${names.slice(0, -1).join(", ")} and ${names[names.length - 1]}`);
  const count = (n) => Math.round(n).toString().replace(/\B(?=(\d{3})+$)/g, ",");
  const amount = (table, margin) => `${difference(table, margin)} of ${table.metric}`;
  const difference = (table, margin) => threeDigits(margin * table.scale) + (table.unit ? ` ${table.unit}` : "");

  // A number as Python's format ".3g" writes it.
  function threeDigits(x) {
    if (x === 0 || !Number.isFinite(x)) return String(x).replace("Infinity", "inf");
    const [digits, power] = x.toExponential(2).split("e");
    const e = Number(power);
    if (e < -4 || e >= 3) return `${Number(digits)}e${e < 0 ? "-" : "+"}${String(Math.abs(e)).padStart(2, "0")}`;
    return String(Number(x.toPrecision(3)));
  }

  function roundedUp(margin) {
    if (margin <= 0) return 0;
    const unit = 10 ** (Math.floor(Math.log10(margin)) - 1);
    return (Math.floor(margin / unit) + 1) * unit;
  }

  function twoDigits(n) {
    if (n < 10) return Math.ceil(n);
    const unit = 10 ** (Math.floor(Math.log10(n)) - 1);
    return Math.ceil(n / unit) * unit;
  }

  return { decide, how, hasInterval, verdict, overTasks, cheapest, leader, leastMargin, amount, difference, listed, count, fill };
})();

/* How many seeds or test examples show a difference: report/stats/power.py. */
const Power = (() => {
  const MOST = 1000, TAIL = 0.975, NORMAL = 1.959963984540054, POWER80 = 0.8416212335729143;

  function seedsFor(size, seed, shared, lent) {
    for (let n = 2; n <= MOST; n++) {
      if (size < (NORMAL + POWER80) * Math.sqrt(shared)) return null;  // no number of seeds takes that part away
      const t = quantile(TAIL, n - 1 + lent);
      const half = Math.sqrt(t * t * seed / n + NORMAL * NORMAL * shared);
      if (size >= half + POWER80 * Math.sqrt(seed / n + shared)) return n;
    }
    return null;
  }

  function examplesFor(size, examples, shared) {
    return size <= 0 ? Infinity : examples * shared * ((NORMAL + POWER80) / size) ** 2;
  }

  // The quantile of Student's t by bisection on its distribution function.
  const seen = new Map();
  function quantile(p, df) {
    const key = `${p} ${df}`;
    if (seen.has(key)) return seen.get(key);
    let low = 0, high = 2;
    while (cumulated(high, df) < p) high *= 2;
    for (let i = 0; i < 80; i++) {
      const middle = (low + high) / 2;
      if (cumulated(middle, df) < p) low = middle; else high = middle;
    }
    seen.set(key, (low + high) / 2);
    return seen.get(key);
  }

  const cumulated = (t, df) => 1 - beta(df / (df + t * t), df / 2, 0.5) / 2;  // for t >= 0

  // The regularised incomplete beta function by its continued fraction (Numerical Recipes, section 6.4).
  function beta(x, a, b) {
    if (x <= 0 || x >= 1) return x <= 0 ? 0 : 1;
    const front = Math.exp(lnGamma(a + b) - lnGamma(a) - lnGamma(b) + a * Math.log(x) + b * Math.log1p(-x));
    return x < (a + 1) / (a + b + 2) ? front * fraction(x, a, b) / a : 1 - front * fraction(1 - x, b, a) / b;
  }

  function fraction(x, a, b) {
    const tiny = 1e-300;
    let c = 1, d = 1 - (a + b) * x / (a + 1);
    d = 1 / (Math.abs(d) < tiny ? tiny : d);
    let h = d;
    for (let m = 1; m < 500; m++) {
      for (const term of [m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)), -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))]) {
        d = 1 + term * d; d = 1 / (Math.abs(d) < tiny ? tiny : d);
        c = 1 + term / c; c = Math.abs(c) < tiny ? tiny : c;
        h *= d * c;
      }
      if (Math.abs(d * c - 1) < 1e-15) break;
    }
    return h;
  }

  function lnGamma(x) {  // Stirling's series after a shift to where it is exact
    let shift = 0;
    while (x < 12) shift -= Math.log(x++);
    const y = 1 / (x * x);
    return shift + (x - 0.5) * Math.log(x) - x + 0.9189385332046727
      + (1 / 12 - y * (1 / 360 - y * (1 / 1260 - y * (1 / 1680 - y / 1188)))) / x;
  }

  return { seedsFor, examplesFor, quantile };
})();
