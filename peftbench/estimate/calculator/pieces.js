// 4-bit weights are computed by pieces of 2^24 numbers (nf4_quantization.py). A recording has one piece of each weight,
// in a dense weight that exists before it; here the weight gets the pieces that its real size has.
"use strict";

const PIECE = 2 ** 24;
const INDEX_BYTES = 2, NUMBER_BYTES = 4; // bytes for each number of a piece: half an int32, and a float32
const CODE_BYTES = 0.5; // bytes of a number's code, which the indices come from
const BLOCK_OF_BLOCKS = 64 * 256; // numbers of a weight that share a scale; the last, if it is short, has a kernel of its own

// How many numbers the weights have whose pieces are the dimensions x, y and z.
function weightsOf({ h, i, K, G, D }) {
  return { x: h * K * G * D, y: h * K * D, z: h * i };
}

// The size of one piece of each.
function piecesOf(sizes) {
  return Object.fromEntries(Object.entries(weightsOf(sizes)).map(([name, count]) => [name, Math.min(PIECE, count)]));
}

// The dimension whose piece a size is, if it is `bytes` for each number of it; undefined for other sizes.
function pieceOf(terms, bytes) {
  return terms.length === 1 && terms[0].length === 2 && terms[0][0] === bytes && "xyz".includes(terms[0][1]) ? terms[0][1] : undefined;
}

// Gives the recorded weights their pieces. Six events are one piece: the dense weight, its indices and its numbers are
// born, the indices, the statistics and the numbers end.
function withPieces(lives, terms, values) {
  const counts = weightsOf(values), endsAt = new Map(lives.map((life) => [life.died, life]));
  for (let n = 1; n + 1 < lives.length; n++) {
    const name = pieceOf(terms[lives[n].size], INDEX_BYTES);
    if (!name || pieceOf(terms[lives[n + 1].size], NUMBER_BYTES) !== name) continue;
    const [dense, indices, numbers] = lives.slice(n - 1, n + 2), start = dense.born, statistics = endsAt.get(start + 4);
    if (indices.born !== start + 1 || numbers.died !== start + 5 || !statistics) throw new Error("a recorded piece of a 4-bit weight has other events");
    [numbers.died, statistics.died] = [start + 4, start + 5];
    if (counts[name] > PIECE) dense.pieces = furtherPieces(start + 4, counts[name] - PIECE);
    else onePiece(dense, indices, numbers, start);
  }
}

// A weight of one piece becomes dense after its numbers are known; in float32 they are the weight.
function onePiece(dense, indices, numbers, start) {
  [indices.born, numbers.born, indices.died, dense.born] = [start, start + 1, start + 2, start + 3];
  if (dense.bytes !== numbers.bytes) return;
  dense.born = start + 1;
  numbers.bytes = 0;
}

// The storages of the pieces after the first, between two events: one more whole one, which any others equal, and the rest.
function furtherPieces(after, count) {
  const sizes = [PIECE, count % PIECE].filter((size) => size && size <= count), number = sizes.length, made = [];
  for (const [n, size] of sizes.entries()) {
    const at = (part) => after + (4 * n + part) / (4 * number + 1);
    made.push({ bytes: INDEX_BYTES * size, born: at(1), died: at(3) }, { bytes: NUMBER_BYTES * size, born: at(2), died: at(4) });
  }
  return made;
}

// A kernel's operations and bytes, and its number: once for each whole piece of a weight, and once for the rest.
function kernelsOfPieces([phase, dtype, operations, bytes, number], terms, values) {
  const counts = weightsOf(values), name = terms.flat().find((one) => one in counts);
  if (!name) return [[phase, dtype, operations, bytes, number]];
  const whole = Math.floor(counts[name] / values[name]), rest = counts[name] / values[name] - whole;
  const made = [[phase, dtype, operations, bytes, number * whole]];
  if (rest) made.push([phase, dtype, operations * rest, bytes * rest, number]);
  const short = (counts[name] % BLOCK_OF_BLOCKS) / 64;
  if (short && pieceOf(terms, CODE_BYTES + INDEX_BYTES)) made.push([phase, 0, 0, 8 * short + 4, number]);
  return made;
}

if (typeof module !== "undefined") module.exports = { piecesOf, withPieces, kernelsOfPieces };
