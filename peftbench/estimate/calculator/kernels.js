// The kernels of a recorded step with the sizes of a model, and their seconds on a card. Mirrors traffic.py and step_seconds.py.
"use strict";

const DTYPES = ["", "bfloat16", "float32"];
const UPDATE = 3; // phase of an optimiser's one kernel

// Whether a kernel copies a transposed matrix of the rank, which has one row at rank 1 and is not copied.
function isTransposed(terms) {
  const [[bytes, ...names], ...more] = terms;
  return !more.length && (bytes === 4 || bytes === 8) && names.includes("r") && !names.includes("b") && !names.includes("s");
}

// The kernels of a depth: [phase, dtype, operations of one, bytes of one, number]. `share` is the way from the first
// recorded depth to the second; `work` is another optimiser's.
function kernelsAt(step, share, sizes, terms, values, asked, work) {
  const found = [], odd = new Map(), along = (a, b) => a + share * (b - a);
  for (const [phase, dtype, f, m, one, two] of step.kernels) {
    if (phase > UPDATE) continue; // what goes between devices is no kernel
    const updates = phase === UPDATE || (phase === 2 && asked.program === "plain");
    if (updates && asked.optimizer !== "adamw") continue;
    if (asked.size === 1 && asked.program === "peftbench" && phase === 1 && isTransposed(terms[m])) continue;
    const number = along(one, two);
    if (!updates && one && two && number >= 0) {
      found.push(...ofPieces.kernelsOfPieces([phase, dtype, sizes[f], sizes[m], number], terms[m], values));
      continue;
    }
    // One kernel for all parameters: its bytes grow with the depth, not its number.
    const key = `${phase} ${dtype}`;
    if (!odd.has(key)) odd.set(key, [[], []]);
    for (let n = 0; n < one; n++) odd.get(key)[0].push([sizes[f], sizes[m]]);
    for (let n = 0; n < two; n++) odd.get(key)[1].push([sizes[f], sizes[m]]);
  }
  for (const [key, lists] of odd) {
    const [phase, dtype] = key.split(" ").map(Number), shown = phase === UPDATE ? 2 : phase;
    const [one, two] = lists.map((list) => list.sort((a, b) => a[1] - b[1]));
    if (one.length === two.length) {
      one.forEach((kernel, n) => found.push([shown, dtype, along(kernel[0], two[n][0]), along(kernel[1], two[n][1]), 1]));
      continue;
    }
    const sum = (list, n) => list.reduce((total, kernel) => total + kernel[n], 0);
    const number = along(one.length, two.length);
    if (number > 0) found.push([shown, dtype, along(sum(one, 0), sum(two, 0)) / number, along(sum(one, 1), sum(two, 1)) / number, number]);
  }
  if (work && work.kernels) found.push([2, 0, 0, work.bytes / work.kernels, work.kernels]);
  return found;
}

// Products, and the others by phase and binary digits of their bytes: [number, bytes].
function trafficOf(kernels) {
  const products = [], moves = new Map();
  for (const [phase, dtype, operations, bytes, number] of kernels) {
    if (dtype) { products.push([DTYPES[dtype], operations, bytes, number]); continue; }
    const key = `${phase} ${bytes < 1 ? 0 : Math.floor(Math.log2(bytes)) + 1}`, some = moves.get(key) || [0, 0];
    moves.set(key, [some[0] + number, some[1] + number * bytes]);
  }
  return { products, moves };
}

// The traffic of all layers as `estimate` tells it from that of three small depths (traffic.py). Sizes that change with
// the depth have other digits there; those of a phase are matched in their order, or taken together.
function toldTraffic(full, depths, more) {
  const moves = new Map(), odd = new Map(), none = [0, 0];
  for (const key of new Set(depths.flatMap((depth) => [...depth.moves.keys()]))) {
    const told = extrapolated(depths.map((depth) => depth.moves.get(key) || none), more);
    if (told) moves.set(key, told);
    else odd.set(key.split(" ")[0], [...(odd.get(key.split(" ")[0]) || []), key]);
  }
  for (const [phase, keys] of odd) {
    const inOrder = keys.sort((a, b) => a.split(" ")[1] - b.split(" ")[1]);
    const alike = depths.map((depth) => inOrder.filter((key) => depth.moves.has(key)).map((key) => depth.moves.get(key)));
    const sum = (some) => some.reduce(([n, bytes], [m, more]) => [n + m, bytes + more], none);
    let told = alike[0].map((one, n) => alike.every((some) => some[n]) && extrapolated(alike.map((some) => some[n]), more));
    if (new Set(alike.map((some) => some.length)).size > 1 || !told.every(Boolean)) told = [extrapolated(alike.map(sum), more)];
    if (!told.every(Boolean)) return full;
    told.forEach((one, n) => moves.set(`${phase} odd ${n}`, one));
  }
  return { products: full.products, moves };
}

// Two numbers at full depth; null where they do not grow evenly.
function extrapolated([one, two, three], more) {
  const told = one.map((a, n) => (Math.abs(three[n] - 2 * two[n] + a) < 1 ? a + more * (two[n] - a) : -1));
  return told.every((value) => value >= 0) ? told : null;
}

// Seconds of a step on a card (step_seconds.py).
function stepSeconds(traffic, card, fit) {
  const mean = (byCard) => {
    const all = Object.values(byCard);
    return byCard[card.name] || Math.exp(all.reduce((sum, value) => sum + Math.log(value), 0) / all.length);
  };
  const rateOf = (dtype) => (dtype === "bfloat16" && card.bfloat16 ? card.bfloat16 : card.float32);
  const share = mean(fit.products);
  let products = 0, others = 0, launches = 0;
  for (const [dtype, operations, bytes, number] of traffic.products) {
    launches += number;
    products += number * Math.max(operations / (share * rateOf(dtype)), bytes / (fit.memory * card.bandwidth));
  }
  for (const [number, bytes] of traffic.moves.values()) {
    launches += number;
    others += bytes / ((bytes <= number * card.cache ? fit.cached : fit.memory) * card.bandwidth);
  }
  const device = products + others, host = launches * mean(fit.launch);
  const bound = host > device ? "launches" : products > others ? "products" : "memory";
  return { seconds: Math.max(device, host), device, host, products, others, bound };
}

const ofPieces = typeof module === "undefined" ? { kernelsOfPieces } : require("./pieces.js");
if (typeof module !== "undefined") module.exports = { kernelsAt, trafficOf, toldTraffic, stepSeconds };
