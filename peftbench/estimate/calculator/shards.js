// A model in shards (run/parallel/shards.py): what its cards send one another, and the sums of an adapter's gradients.
"use strict";

const SENT = 4; // phase of what goes between devices
const BUCKET = 25 * 2 ** 20; // bytes of gradients that are summed together (ranks.py)

// What the dimensions of a recording in shards are here: the shards, and one of them.
function valuesOfShards(shards) {
  return { N: shards, F: 1 / shards };
}

// Bytes that come over the link in a step: gathered blocks and scattered gradients, and the adapter's gradients.
function sentBytes(step, sizes, more, sums) {
  const recorded = step.kernels.filter(([phase]) => phase === SENT);
  return recorded.reduce((sum, [, , , m, one, two]) => sum + sizes[m] * (one + (more * (two - one)) / 2), sums.sent);
}

// The sums of the gradients of what is whole on each card, at full depth, with their kernels: gradients go together in
// one tensor up to the size of a bucket, and each is copied back.
function sumsOf(lives, more, phase) {
  const [one, two] = lives.map((own) => own.filter((life) => life.born === 0 && life.kind === 1).map((life) => life.bytes));
  const further = two.slice(one.length), round = further.slice(0, further.length / 2), all = [...one];
  for (let n = 0; n < more; n++) all.push(...round);
  const buckets = [];
  for (const bytes of all) {
    const last = buckets[buckets.length - 1];
    if (last && last.bytes + bytes <= BUCKET) { last.bytes += bytes; last.number += 1; }
    else buckets.push({ bytes, number: 1 });
  }
  const kernels = [...buckets.map((one) => [phase, 0, 0, 2 * one.bytes, 1]), ...all.map((bytes) => [phase, 0, 0, 2 * bytes, 1])];
  return { kernels, sent: buckets.reduce((sum, one) => sum + one.bytes + 4 * one.number, 0) };
}

if (typeof module !== "undefined") module.exports = { valuesOfShards, sentBytes, sumsOf };
