// The calculator's numbers without a page: {"data": payload, "choices": [...]} on standard input, answers on the output.
"use strict";

const numbers = require("./numbers.js");

const { data, choices } = JSON.parse(require("fs").readFileSync(0, "utf8"));
for (const [name, read] of Object.entries(data.families)) data.families[name] = numbers.familyOf(read, name.endsWith("-tied"));
const answers = choices.map((choice) => {
  const { traffic, ...answer } = numbers.compute(data, choice);
  return answer;
});
process.stdout.write(JSON.stringify(answers));
