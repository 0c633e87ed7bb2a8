// The storages of a recorded step with any number of rounds of layers: its loops are written out (loops.py).
"use strict";

const ROUNDS = [2, 4]; // recorded rounds of layers, where a step does not say others

// The numbers of a step's events; where the depths begin storages of other sizes, both numbers.
function numbersAt(step, rounds) {
  const [one, two] = step.numbers, [first, second] = step.rounds || ROUNDS, further = second - first;
  const numbers = [];
  const add = (x, y, end) => numbers.push(x === y ? x : x % 2 ? end : [x, y]); // an odd number ends a storage
  let [a, b] = [0, 0];
  const once = (stop) => {
    for (; a < stop; a++, b++) add(one[a], two[b], one[a] + ((rounds - first) * (two[b] - one[a])) / further);
  };
  for (const [start, other, size, length] of step.loops) {
    once(start);
    for (let n = 0; n < length + (rounds - first) * size; n++) {
      const place = n % size, y = two[other + place], x = place < length ? one[start + place] : y;
      const byRound = two[other + size + place] - y, byDepth = (y - x) / further;
      if (y % 2) numbers.push(y + Math.floor(n / size) * byRound + (rounds - second) * byDepth);
      else add(x, y);
    }
    [a, b] = [start + length, other + length + further * size];
  }
  once(one.length);
  return numbers;
}

// The storages of a step: {size, other, kind, born, died}, sizes by index; "other" is that at the second depth.
// Beside them the number of events, and the first event of each part and of the phases.
function depthOf(step, pairs, rounds) {
  const lives = [], living = [], [first, second] = step.rounds || ROUNDS;
  const along = (one, two) => one + ((rounds - first) * (two - one)) / (second - first);
  let event = 0;
  for (const number of numbersAt(step, rounds)) {
    const grows = typeof number !== "number";
    if (grows || (number > stream.END && number % 2 === 0)) {
      const [one, two] = grows ? number : [number, number], [size, kind] = pairs[(one - 4) / 2];
      const life = { size, other: grows ? pairs[(two - 4) / 2][0] : size, kind, born: event, died: null };
      lives.push(life);
      living.push(life);
    } else if (number > stream.END) living.splice(living.length - 1 - (number - 3) / 2, 1)[0].died = event;
    if (event > 0 || number === stream.BEFORE) event += 1;
  }
  const parts = step.parts.map(([one, two]) => along(one, two));
  const phases = step.phases.map((start) => parts[step.parts.findIndex(([one]) => one === start)] ?? start);
  return { lives, events: event, parts, phases, share: along(0, 1) };
}

const stream = typeof module === "undefined" ? { BEFORE, END } : require("./events.js");
if (typeof module !== "undefined") module.exports = { ROUNDS, depthOf };
