// Replays recorded training steps with the sizes of a model: peak, parts, reserved bytes.
// Mirrors step_estimate.py, gpu_memory.py and caching_allocator.py.
"use strict";

const BLOCK = 512, LARGE = 10 * 2 ** 20, SEGMENT = 2 * 2 ** 20, UNSPLIT = 2 ** 20;
const WORKSPACES = 2 * (2 * 4096 * 1024 + 8 * 16 * 1024);
const KINDS = ["weights", "adapter", "head", "gradients", "optimizer", "activations", "temporaries"];

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

// The storages of a step with so many rounds of layers, with the optimiser and the head that are asked for. Beside them
// the live bytes after each event, the first event of each part and phase, and the optimiser's work.
function stepAt(family, step, rounds, sizes, values, asked) {
  const depth = deeper.depthOf(step, family.pairs, rounds);
  let lives = depth.lives, work = null;
  for (const life of lives) life.bytes = Math.round(sizes[life.size] + depth.share * (sizes[life.other] - sizes[life.size]));
  if (asked.tied && asked.headSizes.size) {
    const head = lives.findLastIndex((life) => life.born === 0 && life.kind === 0 && asked.headSizes.has(life.size));
    if (head >= 0) lives.splice(head, 1);
  }
  piecewise.withPieces(lives, family.terms, values);
  if (asked.optimizer !== "adamw") ({ lives, work } = withOptimizer(lives, depth.phases[2], asked));
  const sums = sharded.sumsOf(lives, asked);
  sharded.withSums(depth, lives, sums.buckets);
  const levels = levelsOf(lives, depth.events, asked.onGpu);
  const held = () => reservedBytes(lives.some((life) => life.pieces) ? lives.flatMap((life) => [life, ...(life.pieces || [])]) : lives, WORKSPACES);
  return { ...depth, lives, levels, work, sums, held };
}

// bitsandbytes' AdamW in place of torch's (optimizer_state.py): other moments, no temporaries of its own.
// Its work is one kernel a tensor, which reads the gradient once.
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
  return { lives: made, work };
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

function placeOfLargest(levels) {
  return levels.reduce((best, level, n) => (level > levels[best] ? n : best), 0);
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
  const events = []; // at one moment, what ends comes before what begins
  lives.forEach((life, number) => {
    if (!life.bytes) return;
    events.push({ at: life.born + 1e-7, begins: true, number });
    if (life.died !== null) events.push({ at: life.died, begins: false, number });
  });
  events.sort((a, b) => a.at - b.at);
  const blocks = [];
  if (fixed) allocate(fixed);
  for (const { begins, number } of events) {
    if (begins) blocks[number] = allocate(lives[number].bytes);
    else if (blocks[number]) { release(blocks[number]); blocks[number] = null; }
  }
  return reserved;
}

// What `peftbench estimate` says of a step.
//   family: {terms, pairs, steps}; model: {layers, period, sizes, tied}; asked: {key, batch, seq, size, optimizer, program, ...}
function estimate(family, model, asked) {
  const step = family.steps[asked.key], rounds = model.layers / model.period, shards = asked.shards || 1;
  const values = valuesOf(model.sizes, asked.batch, asked.seq, asked.size, shards);
  const sizes = family.terms.map((terms) => sizeOf(terms, values));
  const headSizes = new Set(family.terms.flatMap((terms, n) => (isHead(terms) ? [n] : [])));
  const how = { ...asked, shards, tied: model.tied && !family.tied, headSizes, onGpu: asked.program !== "peftbench" };
  const depthAt = (some) => stepAt(family, step, some, sizes, values, how), full = depthAt(rounds);
  const moment = placeOfLargest(full.levels), peak = full.levels[moment], bytes = partsAt(full.lives, moment, how.onGpu);
  const parts = Object.fromEntries(KINDS.map((kind, n) => [kind, bytes[n]]));
  const phase = ["forward", "backward", "optimizer"][full.phases.filter((start) => start <= Math.max(moment, 1)).length - 1];
  const told = shallow.shallowDepths(depthAt, model, step.parts.map((part) => part[2]));
  const reserved = how.onGpu ? Math.max(peak, told ? toldBytes(told) : full.held()) : 0;
  const trafficAt = (depth) => counted.trafficOf([
    ...counted.kernelsAt(step, depth.share, sizes, family.terms, values, asked, depth.work), ...depth.sums.kernels,
  ]);
  const traffic = told ? counted.toldTraffic(trafficAt(full), told.depths.map(trafficAt), told.more) : trafficAt(full);
  return { peak, parts, phase, reserved, whole: !told, traffic, sent: sharded.sentBytes(step, full.share, sizes, full.sums) };
}

// The allocator's bytes of all layers, in a straight line from the first and the last of three depths.
function toldBytes({ depths, more }) {
  const [one, , three] = depths.map((depth, n) => (n === 1 ? 0 : depth.held()));
  return one + Math.round((more * (three - one)) / 2);
}

function isHead(terms) {
  return terms.length === 1 && terms[0].slice(1).sort().join("") === "Vh";
}

function familyOf(read, tied) {
  const { steps, pairs } = recorded.withNumbers(read);
  return { steps, pairs, terms: parsedSizes(read.sizes), tied };
}

const recorded = typeof module === "undefined" ? { withNumbers } : require("./events.js");
const deeper = typeof module === "undefined" ? { ROUNDS, depthOf } : require("./depths.js");
const shallow = typeof module === "undefined" ? { shallowDepths } : require("./extrapolation.js");
const sharded = typeof module === "undefined" ? { valuesOfShards, sentBytes, sumsOf, withSums } : require("./shards.js");
const counted = typeof module === "undefined" ? { kernelsAt, trafficOf, toldTraffic } : require("./kernels.js");
const piecewise = typeof module === "undefined" ? { piecesOf, withPieces } : require("./pieces.js");
if (typeof module !== "undefined") module.exports = { estimate, familyOf };
