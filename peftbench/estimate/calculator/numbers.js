// Numbers of a choice: parameters, file, memory, seconds, hours, energy, money. No page here: the checks run it alone.
"use strict";

const CONTEXT = 512 * 2 ** 20; // bytes that a process holds on a card outside tensors (fits.py)
const GRADIENT = 4; // bytes

// In and out of the linear layers with a role (backbones/sites.py).
function shapesOf(sizes) {
  const { h, i, K, G, D } = sizes;
  const q = K * G * D, kv = K * D;
  return { q: [h, q], k: [h, kv], v: [h, kv], o: [q, h], gate: [h, i], up: [h, i], down: [i, h] };
}

// What a kind of network has beside its sizes: the family that it belongs to, norms of a layer as wide as the hidden
// size, norms as wide as a head, whether queries, keys and values have biases, and defaults of its configuration.
const NETWORKS = {
  llama: { family: "llama", norms: 2 }, mistral: { family: "llama", norms: 2, window: 4096 },
  qwen2: { family: "qwen2", norms: 2, biases: true, full: true }, qwen3: { family: "qwen3", norms: 2, heads: 2, width: 128, full: true },
  gemma2: { family: "gemma2", norms: 4, width: 256, tied: true, window: 4096, period: 2 }, phi3: { family: "phi3", norms: 2 },
  smollm3: { family: "smollm3", norms: 2, tied: true, full: true, period: 4 },
};

// A model from a config.json of a family that the page has recorded; throws an error with the reason if it has not.
function modelOfConfig(config, families) {
  const kind = NETWORKS[config.model_type];
  const number = (name) => {
    if (!(Number.isInteger(config[name]) && config[name] > 0)) throw new Error(`config.json has no ${name}`);
    return config[name];
  };
  const heads = number("num_attention_heads"), keys = config.num_key_value_heads || heads, layers = number("num_hidden_layers");
  const family = kind && (keys < heads ? kind.family : `${kind.family}-mha`);
  if (!kind || !families[family]) throw new Error(`the page has no recording of a ${config.model_type} network${kind ? ` with ${keys} key heads for ${heads} query heads` : ""}; it has ${Object.keys(families).filter((name) => !name.endsWith("-tied")).join(", ")}`);
  if (heads % keys) throw new Error(`${heads} heads cannot share ${keys} key heads`);
  if (config.attention_bias || config.mlp_bias) throw new Error("the page has no recording of such a network with biases");
  const period = kind.period || 1, window = config.sliding_window ?? kind.window ?? null;
  if (layers % period) throw new Error(`${layers} layers are no whole number of rounds of ${period}, which the page repeats`);
  const sizes = { h: number("hidden_size"), i: number("intermediate_size"), V: number("vocab_size"), K: keys, G: heads / keys, D: config.head_dim || kind.width || config.hidden_size / heads };
  const { h, i, V, D } = sizes, q = heads * D, kv = keys * D;
  const tied = config.tie_word_embeddings ?? kind.tied ?? false;
  const biases = kind.biases ? layers * (q + 2 * kv) : 0;
  const norms = (kind.norms * layers + 1) * h + (kind.heads || 0) * D * layers;
  const base = (tied ? 1 : 2) * V * h + layers * (2 * h * q + 2 * h * kv + 3 * h * i) + biases + norms;
  const sees = kind.full && !config.use_sliding_window ? null : window;
  return { name: "own", family, layers, period, window: sees, sizes, tied, positions: config.max_position_embeddings || null, base, biases, norms };
}

// Parameters that a method trains: each method's own formula (`parameters` in methods/).
function trainable(model, method, roles, size) {
  const { h, i, K, D } = model.sizes, shapes = shapesOf(model.sizes);
  const over = (one) => roles.split(" ").reduce((sum, role) => sum + one(...shapes[role]), 0) * model.layers;
  const first = Math.ceil(1.5 * size);
  switch (method.like) {
    case "lora": case "qlora": case "pissa": return over((a, b) => size * (a + b));
    case "dora": case "qdora": return over((a, b) => size * (a + b) + b);
    case "vera": return over((a, b) => b + size);
    case "adalora": return over((a, b) => first * (a + b + 1));
    case "adapter": return model.norms + 2 * model.layers * (2 * h * size + h + size);
    case "prefix": return 2 * size * K * D * model.layers;
    case "prompt": return size * h;
    case "ia3": return (2 * K * D + i) * model.layers;
    case "layernorm": return model.norms;
    case "bitfit": return model.biases;
    case "full": case "galore": return model.base;
  }
  throw new Error(`no formula for ${method.name}`);
}

// The adapter's file: float32 numbers and a header, whose bytes a layer were counted on one model.
function fileBytes(model, method, roles, trained) {
  return 8 * Math.ceil((4 * trained + (method.header[roles] || 0) * model.layers) / 8);
}

function keyOf(choice, method) {
  const precision = choice.dtype === "float32" ? "fp32" : "bf16";
  const kept = choice.checkpointing ? "ckpt" : "all", texts = choice.batch > 1 ? "many" : "one";
  const parts = [choice.program, precision, kept, texts, method.like, method.roles ? choice.roles : ""];
  return [...parts, ...(choice.shards > 1 ? ["shards"] : [])].join("|");
}

// Models that tie head and embedding train one matrix for both, or gather one matrix for both, which is another step.
function familyName(model, method, choice = {}) {
  const other = ["full", "galore"].includes(method.like) || choice.shards > 1;
  return model.family + (model.tied && other ? "-tied" : "");
}

// What a choice without a recording is told: which steps of the method there are.
function unrecorded(family, model, method, choice) {
  const among = Object.keys(family ? family.steps : {}).map((key) => key.split("|"));
  const keys = among.filter((key) => key[4] === method.like && (key[6] === "shards") === choice.shards > 1);
  const all = (part) => [...new Set(keys.map((key) => key[part]).filter(Boolean))].join(" or ");
  const known = keys.length ? `There is one with the program ${all(0)}, weights in ${all(1)}${method.roles ? ` and the layers ${all(5)}` : ""}.` : `There is none of ${method.name} on ${model.name}${choice.shards > 1 ? " in shards" : ""}.`;
  return `This page has no recording of this step. ${known} The command below simulates any.`;
}

// Why a choice has no answer here; null if it has one.
function refusal(data, model, method, choice) {
  const family = data.families[familyName(model, method, choice)], shards = choice.shards || 1;
  const prompt = ["prompt", "prefix"].includes(method.like) ? choice.size : 0;
  if (method.like === "bitfit" && !model.biases) return `${model.name} has no biases, which are all that bitfit trains.`;
  if (model.positions && choice.seq > model.positions) return `${model.name} takes at most ${model.positions} tokens.`;
  if (model.window && choice.seq >= model.window)
    return `From ${model.window} tokens on, ${model.name} has layers that do not see the whole text; the page knows its step below that.`;
  if (choice.gpus < 1 || choice.batch < 1) return "Give whole numbers from 1.";
  if (choice.gpus % shards) return `${choice.gpus} card${choice.gpus === 1 ? " is" : "s are"} no whole number of sets of ${shards} shards; give a multiple of the shards.`;
  if (choice.optimizer !== "adamw" && ["adalora", "galore"].includes(method.like))
    return `${method.name} keeps more than moments with its optimiser; this page knows it with AdamW only.`;
  if (choice.program === "peftbench" && !["adamw", "adamw8bit"].includes(choice.optimizer))
    return "peftbench's own step has no paged optimiser; choose adamw or adamw8bit.";
  if (!family || !family.steps[keyOf(choice, method)])
    return unrecorded(family, model, method, choice);
  return prompt && model.positions && choice.seq + prompt > model.positions ? "Text and prompt exceed the model's positions." : null;
}

// Bytes of a number of a moment: base weights that train keep their dtype in other programs than peftbench's.
function momentBytes(choice, method) {
  const thawed = ["full", "layernorm", "bitfit"].includes(method.like);
  return thawed && choice.program !== "peftbench" && choice.dtype === "bfloat16" ? 2 : 4;
}

function compute(data, choice) {
  const model = choice.model === "own" ? modelOfConfig(choice.config, data.families) : data.models.find((one) => one.name === choice.model);
  const method = data.methods.find((one) => one.name === choice.method);
  const trained = trainable(model, method, choice.roles, choice.size);
  const counts = { trainable: trained, percent: (100 * trained) / model.base, file: fileBytes(model, method, choice.roles, trained), base: model.base };
  const refused = refusal(data, model, method, choice);
  if (refused) return { ...counts, refused };
  const card = data.cards[choice.gpu];
  const asked = { ...choice, like: method.like, key: keyOf(choice, method), momentBytes: momentBytes(choice, method) };
  const step = replay.estimate(data.families[familyName(model, method, choice)], model, asked);
  const needed = Math.max(step.reserved, step.peak) + CONTEXT;
  const time = timing.stepSeconds(step.traffic, card, data.constants);
  const summed = choice.gpus > (choice.shards || 1) ? 2 * trained * GRADIENT : 0;
  const transfers = (summed + step.sent) / card.link, seconds = time.seconds + transfers;
  const steps = Math.ceil((choice.examples * choice.epochs) / (choice.batch * choice.gpus));
  const hours = (steps * seconds) / 3600;
  return {
    ...counts, ...step, needed, room: card.memory, fits: needed <= card.memory, context: CONTEXT,
    seconds, transfers, bound: transfers > Math.max(time.device, time.host) ? "transfers" : time.bound,
    steps, hours, kwh: (card.watts * choice.gpus * hours) / 1000, money: choice.price * choice.gpus * hours,
  };
}

const timing = typeof module === "undefined" ? { stepSeconds } : require("./kernels.js");
const replay = typeof module === "undefined" ? { estimate, familyOf } : require("./replay.js");
if (typeof module !== "undefined") module.exports = { compute, modelOfConfig, trainable, fileBytes, keyOf, familyName, refusal, familyOf: replay.familyOf };
