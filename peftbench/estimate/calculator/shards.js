// A model in shards (run/parallel/shards.py): what its cards send one another, and the sums of an adapter's gradients.
"use strict";

const SENT = 4; // phase of what goes between devices
const ADAPTER = 1, TEMPORARY = 6; // kinds of storages
const BUCKET = 25 * 2 ** 20; // bytes of gradients that are summed together (ranks.py)

// What the dimensions of a recording in shards are here: the shards, and one of them.
function valuesOfShards(shards) {
  return { N: shards, F: 1 / shards };
}

// Bytes that come over the link in a step: gathered blocks and scattered gradients, and the adapter's gradients.
function sentBytes(step, share, sizes, sums) {
  const recorded = step.kernels.filter(([phase]) => phase === SENT);
  return recorded.reduce((sum, [, , , m, one, two]) => sum + sizes[m] * (one + share * (two - one)), sums.sent);
}

// The sums of the gradients of what is whole on each card, with their kernels: gradients go together in one tensor up to
// the size of a bucket, and each is copied back. LoRA+ has two groups of parameters, all A and all B.
function sumsOf(lives, { shards, method, onGpu }) {
  const whole = shards > 1 ? lives.filter((life) => life.born === 0 && life.kind === ADAPTER).map((life) => life.bytes) : [];
  const all = method === "lora_plus" ? [0, 1].flatMap((group) => whole.filter((_, n) => n % 2 === group)) : whole;
  const buckets = [], phase = onGpu ? 2 : 1;
  for (const bytes of all) {
    const last = buckets[buckets.length - 1];
    if (last && last.bytes + bytes <= BUCKET) { last.bytes += bytes; last.number += 1; }
    else buckets.push({ bytes, number: 1 });
  }
  const kernels = [...buckets.map((one) => [phase, 0, 0, 2 * one.bytes, 1]), ...all.map((bytes) => [phase, 0, 0, 2 * bytes, 1])];
  return { buckets, kernels, sent: buckets.reduce((sum, one) => sum + one.bytes + 4 * one.number, 0) };
}

// Lets the sums take place before the update: of each bucket, which gradients there are, and these in one tensor.
function withSums(depth, lives, buckets) {
  const at = depth.phases[2], further = 4 * buckets.length;
  const later = (event) => (event !== null && event >= at ? event + further : event);
  for (const life of lives) [life.born, life.died] = [later(life.born), later(life.died)];
  buckets.forEach(({ bytes, number }, n) => {
    const born = at + 4 * n;
    lives.push({ bytes: 4 * number, kind: TEMPORARY, born, died: born + 2 });
    lives.push({ bytes: bytes + 4 * number, kind: TEMPORARY, born: born + 1, died: born + 3 });
  });
  depth.parts = depth.parts.map((start) => (start > at ? start + further : start));
  depth.events += further;
}

if (typeof module !== "undefined") module.exports = { valuesOfShards, sentBytes, sumsOf, withSums };
