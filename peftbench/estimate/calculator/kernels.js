// The kernels of a recorded step with the sizes of a model, and their seconds on a card. Mirrors traffic.py and step_seconds.py.
"use strict";

const DTYPES = ["", "bfloat16", "float32"];
const UPDATE = 3; // phase of an optimiser's one kernel

// Whether a kernel copies a transposed matrix of the rank, which has one row at rank 1 and is not copied.
function isTransposed(terms) {
  const [[bytes, ...names], ...more] = terms;
  return !more.length && (bytes === 4 || bytes === 8) && names.includes("r") && !names.includes("b") && !names.includes("s");
}

// The kernels at full depth: [phase, dtype, operations of one, bytes of one, number].
function kernelsOf(step, sizes, terms, values, more, asked) {
  const found = [], odd = new Map(), along = (a, b) => a + (more * (b - a)) / 2;
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
  if (asked.work.length) {
    const [number, bytes] = ["kernels", "bytes"].map((name) => along(asked.work[0][name], asked.work[1][name]));
    if (number > 0) found.push([2, 0, 0, bytes / number, number]);
  }
  return found;
}

// Seconds of a step on a card (step_seconds.py).
function stepSeconds(kernels, card, fit) {
  const mean = (byCard) => {
    const all = Object.values(byCard);
    return byCard[card.name] || Math.exp(all.reduce((sum, value) => sum + Math.log(value), 0) / all.length);
  };
  const rateOf = (dtype) => (dtype === "bfloat16" && card.bfloat16 ? card.bfloat16 : card.float32);
  const share = mean(fit.products), bins = new Map();
  let products = 0, others = 0, launches = 0;
  for (const [phase, dtype, operations, bytes, number] of kernels) {
    launches += number;
    if (dtype) {
      const moving = bytes / (fit.memory * card.bandwidth);
      products += number * Math.max(operations / (share * rateOf(DTYPES[dtype])), moving);
    } else {
      const key = `${phase} ${bytes > 0 ? Math.floor(Math.log2(bytes)) : -1}`;
      const bin = bins.get(key) || [0, 0];
      bins.set(key, [bin[0] + number * bytes, bin[1] + number]);
    }
  }
  for (const [bytes, number] of bins.values())
    others += bytes / ((bytes <= number * card.cache ? fit.cached : fit.memory) * card.bandwidth);
  const device = products + others, host = launches * mean(fit.launch);
  const bound = host > device ? "launches" : products > others ? "products" : "memory";
  return { seconds: Math.max(device, host), device, host, products, others, bound };
}

const ofPieces = typeof module === "undefined" ? { kernelsOfPieces } : require("./pieces.js");
if (typeof module !== "undefined") module.exports = { kernelsOf, stepSeconds };
