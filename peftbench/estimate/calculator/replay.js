// Replays recorded training steps with the sizes of a model: peak, parts, reserved bytes.
// Mirrors extrapolation.py, gpu_memory.py and caching_allocator.py.
"use strict";

const BLOCK = 512, LARGE = 10 * 2 ** 20, SEGMENT = 2 * 2 ** 20, UNSPLIT = 2 ** 20;
const WORKSPACES = 2 * (2 * 4096 * 1024 + 8 * 16 * 1024);
const KINDS = ["weights", "adapter", "head", "gradients", "optimizer", "activations", "temporaries"];
const ROUNDS = [2, 4]; // recorded rounds of layers, where a step does not say others
const DEEP = 8; // rounds from which a deeper recording stands for all layers

// "4*b*s*h+2*h*i" -> [[4, "b", "s", "h"], [2, "h", "i"]]
function parsedSizes(texts) {
  return texts.map((text) =>
    text.split("+").map((product) => {
      const [number, ...names] = product.split("*");
      return [Number(number), ...names];
    }),
  );
}

function sizeOf(terms, values) {
  let sum = 0;
  for (const term of terms) {
    let product = term[0];
    for (let n = 1; n < term.length; n++) product *= values[term[n]];
    sum += product;
  }
  return Math.ceil(sum - 1e-6);
}

// The numbers that the dimensions of a recording have here.
function valuesOf(sizes, batch, seq, size, shards) {
  return {
    ...sizes, ...sharded.valuesOfShards(shards), b: batch, s: seq, r: size, t: seq + size, p: seq + 1, u: seq + size + 1, m: seq - 1, n: seq + size - 1,
    g: sizes.G + 2, ...piecewise.piecesOf(sizes),
  };
}

function blockBytes(size) {
  const rounded = Math.ceil(size / BLOCK) * BLOCK;
  if (rounded < LARGE) return rounded;
  const segment = Math.ceil(rounded / SEGMENT) * SEGMENT;
  return segment - rounded <= UNSPLIT ? segment : rounded;
}

// The storages of one depth, with the optimiser and the head that are asked for.
function livesOf(step, recorded, sizes, asked, terms, values) {
  const [size, kind, births, lengths] = recorded;
  const lives = [];
  let born = 0;
  for (let n = 0; n < size.length; n++) {
    born += births[n];
    lives.push({ bytes: sizes[size[n]], size: size[n], kind: kind[n], born, died: lengths[n] < 0 ? null : born + lengths[n] });
  }
  if (asked.tied && asked.headSizes.size) {
    const head = lives.findLastIndex((life) => life.born === 0 && life.kind === 0 && asked.headSizes.has(life.size));
    if (head >= 0) lives.splice(head, 1);
  }
  piecewise.withPieces(lives, terms, values);
  return asked.optimizer === "adamw" ? lives : withOptimizer(lives, step.phases[2], asked);
}

// bitsandbytes' AdamW in place of torch's (optimizer_state.py): other moments, no temporaries of its own.
// Adds what its kernels are and move to `asked.work`: one a tensor, which reads the gradient once.
function withOptimizer(lives, start, asked) {
  const made = [], item = asked.momentBytes, bits = asked.optimizer.endsWith("8bit") ? 8 : 32;
  const paged = asked.optimizer.startsWith("paged_"), work = { kernels: 0, bytes: 0 };
  let tables = false, first = true;
  for (const life of lives) {
    if (life.kind !== 4 || life.born > 0) {
      if (!(asked.program === "plain" && life.born >= start)) made.push(life);
      continue;
    }
    if (life.bytes <= 8) continue; // the count of steps
    const count = life.bytes / item, small = bits === 32 || count < 4096, out = paged && count >= 100000;
    const own = (bytes, moves = true) => {
      made.push({ ...life, bytes });
      work.bytes += moves ? 2 * bytes : 0;
    };
    if (first && !(small && out)) {
      work.kernels += 1;
      work.bytes += 3 * life.bytes;
    }
    first = !first; // two moments for each tensor
    if (!out) own(small ? 4 * count : count);
    if (small) continue;
    own(4 * Math.ceil(count / 256));
    if (!tables) for (let n = 0; n < 2; n++) own(1024, false);
    tables = true;
  }
  asked.work.push(work);
  return made;
}

function levelsOf(lives, events, onGpu) {
  const changes = new Float64Array(events);
  for (const life of lives) {
    life.live = onGpu ? blockBytes(life.bytes) : life.bytes;
    changes[life.born] += life.live;
    if (life.died !== null && life.died < events) changes[life.died] -= life.live;
  }
  let level = onGpu ? WORKSPACES : 0;
  return changes.map((change) => (level += change));
}

// Pairs of events that occur at every depth, and the largest of each part.
function momentsOf(parts, levels) {
  const pairs = [];
  for (const [a, b, c, d, front, back] of parts) {
    for (let n = 0; n < Math.min(front, b - a); n++) pairs.push([a + n, c + n]);
    for (let n = 1; n <= Math.min(back, b - a); n++) pairs.push([b - n, d - n]);
    if (b > a && d > c) pairs.push([largest(levels[0], a, b), largest(levels[1], c, d)]);
  }
  return pairs;
}

// Whether `estimate` simulates all layers: a part of the step takes the layers several times, and may hold the peak.
function isWhole(parts, levels, first, more, peak) {
  const bound = (own, start, stop) => {
    let sum = own[Math.max(start - 1, 0)];
    for (let n = Math.max(start, 1); n < stop; n++) sum += Math.max(0, own[n] - own[n - 1]);
    return sum;
  };
  return parts.some(([a, b, c, d, front, back]) => {
    const size = b - a, round = (d - c - size) / 2;
    const covered = Math.min(front, size - back + first * round) + Math.min(back, size - front + first * round);
    if (!size || (round ? covered >= size + round : front >= size)) return false;
    const [one, two] = [bound(levels[0], a, b), bound(levels[1], c, d)];
    return one + (more * (two - one)) / 2 >= peak;
  });
}

function largest(levels, start, stop) {
  let best = start;
  for (let n = start; n < stop; n++) if (levels[n] > levels[best]) best = n;
  return best;
}

function partsAt(lives, moment, onGpu) {
  const parts = new Array(KINDS.length).fill(0);
  for (const life of lives)
    if (life.born <= moment && (life.died === null || life.died > moment)) parts[life.kind] += life.live;
  if (onGpu) parts[6] += WORKSPACES;
  return parts;
}

// torch's caching allocator over the storages of a step (caching_allocator.py); returns the bytes of its segments.
function reservedBytes(lives, fixed) {
  const SMALL = 2 ** 20, free = { true: [], false: [] };
  let reserved = 0;
  const before = (one, size, address) => one.size < size || (one.size === size && one.address < address);
  const placeOf = (list, size, address) => {
    let low = 0, high = list.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (before(list[middle], size, address)) low = middle + 1; else high = middle;
    }
    return low;
  };
  const giveBack = (block) => { block.free = true; free[block.small].splice(placeOf(free[block.small], block.size, block.address), 0, block); };
  const take = (block) => { free[block.small].splice(placeOf(free[block.small], block.size, block.address), 1); };
  const allocate = (asked) => {
    const size = Math.max(BLOCK, Math.ceil(asked / BLOCK) * BLOCK), small = size <= SMALL;
    const list = free[small], at = placeOf(list, size, -1);
    let block;
    if (at < list.length) block = list.splice(at, 1)[0];
    else {
      const whole = small ? 2 * SMALL : size < LARGE ? 20 * SMALL : Math.ceil(size / SEGMENT) * SEGMENT;
      block = { size: whole, address: reserved, small, free: false, before: null, after: null };
      reserved += whole;
    }
    const rest = block.size - size;
    if (small ? rest >= BLOCK : rest > SMALL) {
      const left = { size: rest, small, free: true, before: block, after: block.after, address: block.address + size };
      if (block.after) block.after.before = left;
      block.size = size;
      block.after = left;
      giveBack(left);
    }
    block.free = false;
    return block;
  };
  const joined = (one, other) => {
    one.size += other.size;
    one.after = other.after;
    if (other.after) other.after.before = one;
    return one;
  };
  const release = (block) => {
    for (const other of [block.before, block.after]) if (other && other.free) take(other);
    if (block.before && block.before.free) block = joined(block.before, block);
    if (block.after && block.after.free) block = joined(block, block.after);
    giveBack(block);
  };
  const events = [];
  lives.forEach((life, number) => {
    if (!life.bytes) return;
    events.push([life.born, 1, number]);
    if (life.died !== null) events.push([life.died, 0, number]);
  });
  events.sort((a, b) => a[0] - b[0] || a[1] - b[1] || a[2] - b[2]);
  const blocks = [];
  if (fixed) allocate(fixed);
  for (const [, begins, number] of events) {
    if (begins) blocks[number] = allocate(lives[number].bytes);
    else if (blocks[number]) { release(blocks[number]); blocks[number] = null; }
  }
  return reserved;
}

// What `peftbench estimate` says of a step.
//   family: {sizes: parsed, steps}; model: {layers, sizes, tied}; asked: {key, batch, seq, size, optimizer, program, ...}
function estimate(family, model, asked) {
  const step = family.steps[asked.key], onGpu = asked.program !== "peftbench";
  const shards = asked.shards || 1, values = valuesOf(model.sizes, asked.batch, asked.seq, asked.size, shards);
  const sizes = family.terms.map((terms) => sizeOf(terms, values));
  const [first, second] = step.rounds || ROUNDS, more = model.layers / model.period - first;
  const headSizes = new Set(family.terms.flatMap((terms, n) => (isHead(terms) ? [n] : [])));
  const how = { ...asked, tied: model.tied && !family.tied, headSizes, work: [] };
  const livesAt = (recorded, asks) => livesOf(step, recorded, sizes, asks, family.terms, values);
  const lives = step.lives.map((recorded) => livesAt(recorded, how));
  const levels = [0, 1].map((depth) => levelsOf(lives[depth], step.events[depth], onGpu));
  const levelAt = ([a, b], further = more) => levels[0][a] + (further * (levels[1][b] - levels[0][a])) / (second - first);
  let best = null;
  for (const pair of momentsOf(step.parts, levels)) if (best === null || levelAt(pair) > levelAt(best)) best = pair;
  const [one, two] = [0, 1].map((depth) => partsAt(lives[depth], best[depth], onGpu));
  const parts = Object.fromEntries(KINDS.map((kind, n) => [kind, one[n] + (more * (two[n] - one[n])) / 2]));
  const peak = levelAt(best);
  const whole = isWhole(step.parts, levels, first, more, peak) || 9 * model.period >= model.layers;
  const heldBy = (some) => reservedBytes(some.flatMap((life) => [life, ...(life.pieces || [])]), WORKSPACES);
  let reserved = 0;
  if (onGpu) {
    const deep = whole && step.deep, [from, to] = deep ? deep.rounds : [first, second];
    const [a, b] = (deep ? deep.lives.map((recorded) => livesAt(recorded, { ...how, work: [] })) : lives).map(heldBy);
    const slope = (b - a) / (to - from), left = model.layers / model.period - to;
    const atLeast = from < DEEP ? slope : (peak - levelAt(best, 0)) / more; // segments grow with the peak in the long run
    reserved = Math.max(peak, b + Math.round(left * Math.max(slope, atLeast)));
  }
  const phase = ["forward", "backward", "optimizer"][step.phases.filter((start) => start <= Math.max(best[0], 1)).length - 1];
  const sums = shards > 1 ? sharded.sumsOf(lives, more, onGpu ? 2 : 1) : { kernels: [], sent: 0 };
  const kernels = [...counted.kernelsOf(step, sizes, family.terms, values, more, how), ...sums.kernels];
  // Where `estimate` takes the allocator's bytes from other depths than those recorded.
  const rough = onGpu && (asked.like === "full" ? whole : shards > 1);
  return { peak, parts, phase, reserved, whole, rough, kernels, sent: sharded.sentBytes(step, sizes, more, sums), values };
}

function isHead(terms) {
  return terms.length === 1 && terms[0].slice(1).sort().join("") === "Vh";
}

function familyOf(read, tied) {
  return { steps: recorded.withLives(read).steps, terms: parsedSizes(read.sizes), tied };
}

const recorded = typeof module === "undefined" ? { withLives } : require("./events.js");
const sharded = typeof module === "undefined" ? { valuesOfShards, sentBytes, sumsOf } : require("./shards.js");
const counted = typeof module === "undefined" ? { kernelsOf } : require("./kernels.js");
const piecewise = typeof module === "undefined" ? { piecesOf, withPieces } : require("./pieces.js");
if (typeof module !== "undefined") module.exports = { estimate, familyOf };
