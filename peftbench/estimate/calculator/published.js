// The published measurements that are nearest to a choice, with what is predicted of them.
"use strict";

const SHOWN = 5;
const MEASURES = { allocated: "peak of tensors", active: "peak of blocks", after_step: "after a step", reserved: "reserved by the allocator" };

// How far a published step is from a choice: model, method, program first; then logarithms of sizes.
function distance(point, choice, model) {
  const log = (a, b) => Math.abs(Math.log2((a || 1) / (b || 1)));
  const other = data.models.find((one) => one.name === point.model), like = methodOf(point.method);
  return (point.model === choice.model ? 0 : 2 + (other ? log(other.base, model.base) : 4)) +
    (point.method === choice.method ? 0 : like && like.like === methodOf(choice.method).like ? 0.5 : 4) +
    (point.program === choice.program ? 0 : 1) + (point.checkpointing === choice.checkpointing ? 0 : 1) +
    0.5 * log(point.seq, choice.seq) + 0.5 * log(point.batch, choice.batch) + 0.2 * log(point.size, choice.size) + ((point.shards > 1) === (choice.shards > 1) ? 0.2 * log(point.shards, choice.shards) : 2);
}

function errorText(point) {
  if (point.predicted === null) return "";
  const error = (100 * (point.predicted / point.measured - 1)).toFixed(2).replace(/^-(?=0.00$)/, "");
  return `${Number(error) > 0 ? "+" : ""}${error.replace("-", "−")}%`;
}

function showPublished(choice, model) {
  const near = data.published.map((point) => [distance(point, choice, model), point]).sort((a, b) => a[0] - b[0]).slice(0, SHOWN);
  byId("published").tBodies[0].replaceChildren(
    ...near.map(([, p]) => {
      const shards = p.shards > 1 ? `, ${p.shards} shards` : "";
      return element("tr", {}, element("td", {}, `${p.id}: ${p.title}`, element("small", {}, `${p.source}; ${p.gpu}`)),
        element("td", {}, `${p.model}, ${p.method}${p.size ? ` ${p.size}` : ""}, ${p.batch} × ${p.seq}${p.checkpointing ? ", checkpointing" : ""}${shards}`, element("small", {}, MEASURES[p.measure] || p.measure)),
        element("td", { class: "number" }, gib(p.measured)), element("td", { class: "number" }, p.predicted === null ? "–" : gib(p.predicted)), element("td", { class: "number" }, errorText(p)));
    }),
  );
}
