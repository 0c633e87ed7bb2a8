// Reads the storages of a family's steps from one stream of numbers (event_stream.py).
"use strict";

const BEFORE = 1, END = 2;

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

// The storages of each step: sizes, kinds, births (differences), events until the end (-1 for none).
function livesOfStream(pairs, stream) {
  const steps = [];
  let own = [[], [], [], []], living = [], event = 0, last = 0;
  for (const number of numbersOf(stream)) {
    if (number === END) {
      steps.push(own);
      [own, living, event, last] = [[[], [], [], []], [], 0, 0];
      continue;
    }
    if (number > END && number % 2 === 0) {
      const [size, kind] = pairs[(number - 4) / 2];
      living.push([own[0].length, event]);
      own[0].push(size);
      own[1].push(kind);
      own[2].push(event - last);
      own[3].push(-1);
      last = event;
    } else if (number > END) {
      const [[n, born]] = living.splice(living.length - 1 - (number - 3) / 2, 1);
      own[3][n] = event - born;
    }
    if (event > 0 || number === BEFORE) event += 1;
  }
  return steps;
}

// Gives each step of a family its storages: at two depths, and of deeper networks where there are some.
function withLives(read) {
  const lives = livesOfStream(read.pairs, read.stream);
  for (const step of Object.values(read.steps)) {
    step.lives = lives.splice(0, 2);
    if (step.deep) step.deep = { rounds: step.deep, lives: lives.splice(0, 2) };
  }
  return read;
}

if (typeof module !== "undefined") module.exports = { withLives };
