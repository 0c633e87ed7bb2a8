// The figures that circulate for a model of 70 billion parameters, each with what it leaves out and what is simulated.
"use strict";

const ALL_LINEAR = "q k v o gate up down", SEVENTY = "llama-2-70b";
const FOUR_BIT = 0.5 + 1 / 64 + 4 / 64 / 256; // bytes of a number: its code, and its share of the statistics

// Gigabytes, as the figures have them, of what a claim leaves out.
function bytesOf70B() {
  const model = data.models.find((one) => one.name === SEVENTY), { h, V } = model.sizes, gb = (bytes) => `${round(bytes / 1e9)} GB`;
  const dense = 2 * V * h + model.norms;
  return { bare: gb(2 * model.base), four: gb(FOUR_BIT * (model.base - dense) + 2 * dense), full: gb(8 * model.base), wide: gb(16 * model.base) };
}

function presets() {
  const { bare, four, full, wide } = bytesOf70B(), base = { model: SEVENTY, roles: "q v", size: 16, batch: 1, seq: 512, gpu: "h200", checkpointing: true };
  return [
    ["“320 GB for full fine-tuning”", { ...base, method: "full", roles: "" },
      `leaves out the moments or the gradients: weights, gradients and AdamW's two moments are ${full} in bfloat16 and ${wide} in float32. Activations come on top.`],
    ["“18 GB for LoRA”", { ...base, method: "lora" }, `leaves out the model: the frozen weights alone are ${bare} in bfloat16.`],
    ["“10 GB for QLoRA”", { ...base, method: "qlora", gpu: "rtx-a6000" },
      `leaves out most of the model: the weights alone are ${four} with linear layers in 4 bits and the rest in bfloat16.`],
    ["“QLoRA on one card of 48 GB”", { ...base, method: "qlora", roles: ALL_LINEAR, size: 64, gpu: "rtx-a6000", optimizer: "paged_adamw" },
      "is the QLoRA paper's setting: paged AdamW, one text of 512 tokens. It leaves out that longer texts do not fit."],
  ];
}

async function showPresets() {
  for (const [claim, own, why] of presets()) {
    const choice = { ...DEFAULTS, ...own }, method = methodOf(choice.method), answered = element("span", { class: "preset-answer" });
    byId("presets").append(element("li", {}, element("a", { href: hashOf(choice) }, claim), ` ${why} `, answered));
    if (!method.knob) choice.size = 0;
    await family(familyName(modelOf(choice.model), method));
    const answer = compute(data, choice);
    if (!answer.refused)
      answered.textContent = `Simulated: ${gib(answer.needed)} (${round(answer.needed / 1e9)} GB) with Trainer and peft, ${choice.batch} × ${choice.seq} tokens, checkpointing${choice.size ? `, rank ${choice.size} on ${choice.roles}` : ""}.`;
  }
}
