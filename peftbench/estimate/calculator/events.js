// Reads the events of a family's steps from one stream of numbers (event_stream.py).
"use strict";

const BEFORE = 1, END = 2; // an odd number from 3 ends a storage, an even one from 4 begins one

// The numbers of a stream, with what repeats written out.
function numbersOf(stream) {
  const numbers = [];
  for (let place = 0; place < stream.length; place++) {
    const number = stream[place];
    if (number >= 0) { numbers.push(number); continue; }
    const start = numbers.length - stream[++place];
    for (let n = 0; n < -number; n++) numbers.push(numbers[start + n]);
  }
  return numbers;
}

// Gives each step of a family its numbers at both depths.
function withNumbers(read) {
  const numbers = numbersOf(read.stream);
  let start = 0;
  for (const step of Object.values(read.steps))
    step.numbers = [0, 1].map(() => {
      const own = numbers.slice(start, numbers.indexOf(END, start));
      start += own.length + 1;
      return own;
    });
  return read;
}

if (typeof module !== "undefined") module.exports = { BEFORE, END, withNumbers };
