// Whether `estimate` tells a step from three small depths, as it does where they are regular. Mirrors extrapolation.py.
"use strict";

const SHALLOW = [2, 3]; // rounds of the shallowest of the three; 3 where 2, 3 and 4 are not regular enough
const LEAST_LAYERS = 8;

// The three depths that `estimate` tells a step from, with the rounds beyond the first; null where it simulates all layers.
//   depthAt(rounds): {levels, parts}; unordered: whether a part's ends have no order, so that no depths are alike.
function shallowDepths(depthAt, { layers, period }, unordered) {
  for (const first of SHALLOW) {
    if (layers < LEAST_LAYERS || (3 * first + 3) * period >= layers) return null;
    const depths = [0, 1, 2].map((n) => depthAt(first + n)), more = layers / period - first;
    if (isTold(depths, more, first, unordered)) return { depths, more };
  }
  return null;
}

// Whether three depths tell the peak.
function isTold(depths, more, first, unordered) {
  const levels = depths.map((depth) => depth.levels), pairs = [], bounds = [];
  const spans = depths.map(({ parts, levels: own }) => parts.map((start, n) => [start, n + 1 < parts.length ? parts[n + 1] : own.length]));
  for (let n = 0; n < spans[0].length; n++) {
    const part = spans.map((own) => own[n]);
    const shared = unordered[n] ? [] : aligned(levels, part, first);
    for (const pair of shared) pairs.push(pair);
    if (shared.length || part.every(([start, stop]) => stop <= start)) continue;
    const [a, b, c] = part.map((span, depth) => bound(levels[depth], ...span));
    bounds.push(c - b === b - a ? a + more * (b - a) : Infinity);
  }
  const largest = (further) => pairs.reduce((most, [a, b]) => Math.max(most, levels[0][a] + further * (levels[1][b] - levels[0][a])), -Infinity);
  const best = largest(more);
  return levels.every((own, n) => largest(n) === own.reduce((a, b) => Math.max(a, b))) && bounds.every((one) => one < best);
}

// Events of a part that any depth has, as places in the first and the second depth's levels; none if they do not cover it.
function aligned(levels, part, first) {
  const [a, b, c] = part.map(([start, stop]) => stop - start), round = b - a, pairs = [];
  if (c - b !== round || round < 0) return pairs;
  const regular = (at) => {
    for (let n = 0; n < a; n++) {
      const [x, y, z] = levels.map((own, depth) => own[at(part[depth], n)]);
      if (z - y !== y - x) return n;
    }
    return a;
  };
  const front = regular(([start], n) => start + n), back = regular(([, stop], n) => stop - 1 - n);
  if (!round && front < a) return pairs;
  const fromStart = round ? Math.min(front, a - back + first * round) : a;
  const fromEnd = round ? Math.min(back, a - front + first * round) : 0;
  if (round && fromStart + fromEnd < a + round) return pairs;
  for (let n = 0; n < Math.min(fromStart, a); n++) pairs.push([part[0][0] + n, part[1][0] + n]);
  for (let n = Math.min(fromEnd, a); n > 0; n--) pairs.push([part[0][1] - n, part[1][1] - n]);
  return pairs;
}

// The bytes before a part and all that it allocates.
function bound(levels, start, stop) {
  let sum = levels[Math.max(start - 1, 0)];
  for (let n = Math.max(start, 1); n < stop; n++) sum += Math.max(0, levels[n] - levels[n - 1]);
  return sum;
}

if (typeof module !== "undefined") module.exports = { shallowDepths };
