// Computes the calculator's numbers without a page: node scripts/calculator_answers.js PAYLOAD < choices > answers
"use strict";

const fs = require("fs");
const numbers = require("../peftbench/estimate/calculator/numbers.js");

const data = JSON.parse(fs.readFileSync(process.argv[2], "utf8"));
for (const [name, read] of Object.entries(data.families)) data.families[name] = numbers.familyOf(read, name.endsWith("-tied"));
const choices = JSON.parse(fs.readFileSync(0, "utf8"));
const answers = choices.map((choice) => {
  const { kernels, values, ...answer } = numbers.compute(data, choice);
  return answer;
});
process.stdout.write(JSON.stringify(answers));
