// The page: reads the form, computes, shows. The address's hash holds the choice.
"use strict";

const DEFAULTS = {
  model: "llama-3.1-8b", method: "lora", roles: "q k v o gate up down", size: null, batch: 1, seq: 2048, dtype: "bfloat16",
  optimizer: "adamw", program: "hf-trainer", checkpointing: true, gpu: "rtx-4090", gpus: 1, shards: 1, examples: 10000, epochs: 3, price: 1,
};
const NUMBERS = ["size", "batch", "seq", "gpus", "shards", "examples", "epochs", "price"];
const PARTS = [
  ["weights", "Frozen and trained weights of the model", "Model"],
  ["adapter", "What the method adds", "Adapter"],
  ["gradients", "Gradients", "Gradients"],
  ["optimizer", "The optimiser's moments", "Optimiser"],
  ["activations", "Activations kept for the backward pass", "Activations"],
  ["temporaries", "Temporaries at the peak", "Temporaries"],
  ["unused", "Reserved by CUDA's allocator beside them", "Allocator"],
  ["context", "The CUDA process", "Process"],
];
const FURTHER = ["roles", "program", "dtype", "optimizer", "shards"]; // controls that depend on what is recorded
const SIZES = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024];
const data = JSON.parse(document.getElementById("data").textContent);
data.families = {};
const holders = Object.fromEntries([...document.querySelectorAll("[data-family]")].map((one) => [one.dataset.family, one]));
const form = document.getElementById("choice"), control = (name) => form.elements[name];
const byId = (id) => document.getElementById(id);
let size = 0;
const chosen = {}; // sizes that the reader set, by what they mean

async function family(name) {
  const holder = holders[name];
  if (!holder || data.families[name]) return;
  const bytes = Uint8Array.from(atob(holder.textContent), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  data.families[name] = replay.familyOf(JSON.parse(await new Response(stream).text()), name.endsWith("-tied"));
}

const methodOf = (name) => data.methods.find((one) => one.name === name);

// What a method's size means. A size that the reader set goes over to methods that mean the same by it; any other method
// starts from its own default.
const RANK = ["lora", "qlora", "dora", "qdora", "pissa", "adalora"], TOKENS = ["prefix", "prompt"];
const meaningOf = ({ name, like }) => (RANK.includes(like) ? "rank of the update" : TOKENS.includes(like) ? "tokens" : name);
const startingSize = (method) => (method.knob ? chosen[meaningOf(method)] ?? method.size : 0);
const OWN = "own", KEYS = ["model_type", "hidden_size", "intermediate_size", "vocab_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "tie_word_embeddings", "max_position_embeddings", "sliding_window", "use_sliding_window", "attention_bias", "mlp_bias"];

// The model of a name; "own" is what the pasted config.json says, which throws an error where it cannot be used.
function modelOf(name) {
  if (name !== OWN) return data.models.find((one) => one.name === name);
  return modelOfConfig(ownConfig(), holders);
}

function ownConfig() {
  const text = byId("config").value.trim();
  if (!text) throw new Error("paste the model's config.json");
  let config;
  try { config = JSON.parse(text); } catch (error) { throw new Error(`that is no JSON: ${error.message}`); }
  config = config.text_config || config;
  return Object.fromEntries(KEYS.filter((key) => config[key] !== undefined && config[key] !== null).map((key) => [key, config[key]]));
}

function read() {
  const choice = {};
  for (const name of Object.keys(DEFAULTS)) {
    if (name === "size") choice.size = size;
    else if (name === "checkpointing") choice[name] = control(name).checked;
    else choice[name] = NUMBERS.includes(name) ? Number(control(name).value) : control(name).value;
  }
  if (!methodOf(choice.method).roles) choice.roles = "";
  if (choice.model === OWN) try { choice.config = ownConfig(); } catch { choice.config = null; }
  return choice;
}

function write(choice) {
  for (const [name, value] of Object.entries(choice)) {
    if (name === "size") continue;
    if (name === "checkpointing") control(name).checked = value;
    else if (name !== "roles" || value) control(name).value = value;
  }
  const method = methodOf(choice.method);
  for (const meaning of Object.keys(chosen)) delete chosen[meaning];
  if (choice.size && method.knob) chosen[meaningOf(method)] = choice.size;
  takeSize(method);
}

function takeSize(method) {
  size = startingSize(method);
  const at = SIZES.findLastIndex((one) => one <= size);
  byId("size").value = at < 0 ? 0 : at;
}

function fromHash() {
  const given = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
  const choice = { ...DEFAULTS };
  if (given.config) byId("config").value = given.config;
  for (const [name, value] of Object.entries(given)) {
    if (!(name in DEFAULTS)) continue;
    if (name === "checkpointing") choice[name] = value === "true" || value === "1";
    else if (control(name).options && ![...control(name).options].some((one) => one.value === value)) continue;
    else if (!NUMBERS.includes(name)) choice[name] = value;
    else if (name === "size" && !(Number.isInteger(Number(value)) && Number(value) > 0)) continue;
    else if (value !== "" && Number.isFinite(Number(value))) choice[name] = Number(value);
  }
  if (!("gpus" in given)) choice.gpus = choice.shards; // a link that names shards alone means one set of them
  return choice;
}

function hashOf(choice) {
  const shown = Object.entries(choice).filter(([name, value]) => value !== "" && value !== null && (name !== "size" || value));
  return "#" + new URLSearchParams(shown.map(([name, value]) => [name, name === "config" ? JSON.stringify(value) : value])).toString();
}

const GIB = 2 ** 30;
const gib = (bytes) => `${(bytes / GIB).toFixed(bytes < 10 * GIB ? 2 : 1)} GiB`;
const round = (value, digits = 3) => Number(value.toPrecision(digits)).toLocaleString("en-US", { maximumSignificantDigits: digits });
const whole = (value) => Math.round(value).toLocaleString("en-US");

function duration(seconds) {
  if (seconds < 1) return `${round(1000 * seconds)} ms`;
  if (seconds < 120) return `${round(seconds)} s`;
  if (seconds < 7200) return `${round(seconds / 60)} min`;
  return seconds < 48 * 3600 ? `${round(seconds / 3600)} hours` : `${round(seconds / 86400)} days`;
}

function bytesText(bytes) {
  return bytes < 2 ** 20 ? `${round(bytes / 1024)} KiB` : bytes < GIB ? `${round(bytes / 2 ** 20)} MiB` : gib(bytes);
}

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function showBar(answer, choice) {
  const held = { ...answer.parts, context: answer.context, unused: Math.max(0, answer.reserved - answer.peak) };
  held.weights += held.head || 0;
  const end = Math.max(answer.needed, answer.room) * 1.04, bar = byId("bar");
  const rows = PARTS.filter(([name]) => held[name] > 0);
  bar.replaceChildren();
  const track = element("div", { class: "track" });
  rows.forEach(([name, , short]) => {
    const share = (100 * held[name]) / end, part = element("span", { class: `part ${name}`, style: `width:${share}%`, title: `${short}: ${gib(held[name])}` });
    if (share > 11) part.append(element("b", {}, short));
    track.append(part);
  });
  const at = (100 * answer.room) / end;
  track.append(element("span", { class: "room", style: `left:${at}%` }));
  bar.append(track, element("div", { class: `room-label${at > 60 ? " left" : ""}`, style: at > 60 ? `right:${100 - at}%` : `left:${at}%` }, `${choice.gpu}: ${gib(answer.room)}`));
  bar.setAttribute("aria-label", `${gib(answer.needed)} of ${gib(answer.room)}: ` + rows.map(([name, , short]) => `${short} ${gib(held[name])}`).join(", "));
  byId("parts").tBodies[0].replaceChildren(
    ...rows.map(([name, text]) =>
      element("tr", {}, element("td", {}, element("span", { class: `key ${name}`, "aria-hidden": "true" }), text),
        element("td", { class: "number" }, bytesText(held[name])), element("td", { class: "number" }, `${round((100 * held[name]) / answer.needed, 2)}%`))),
    element("tr", { class: "sum" }, element("td", {}, "What the card must hold"), element("td", { class: "number" }, gib(answer.needed)), element("td", { class: "number" }, "")),
  );
}

function showFacts(answer, choice) {
  const facts = !answer.base ? [] : [["Trains", `${whole(answer.trainable)} parameters, ${round(answer.percent)}% of ${whole(answer.base)}`], [choice.method === "full" ? "The model's file" : "Adapter's file", bytesText(answer.file)]];
  if (!answer.refused) {
    const of = choice.batch * choice.seq * choice.gpus;
    facts.push(["A step", `${duration(answer.seconds)}, ${whole(of / answer.seconds)} tokens a second${answer.bound ? `; limited by ${data.limits[answer.bound]}` : ""}`]);
    facts.push(["All of it", answer.fits ? `${duration(answer.hours * 3600)} for ${whole(answer.steps)} steps` : "does not fit"]);
    if (answer.fits) facts.push(["Money", `${round(answer.money)} ${data.currency}, at ${choice.price} ${data.currency} for an hour of a card`], ["Energy", `${round(answer.kwh)} kWh at most`]);
    if (answer.transfers > 0) facts.push(["Over the link", `${duration(answer.transfers)} of a step: ${choice.shards > 1 ? "gathered blocks and summed gradients" : "summed gradients"}`]);
    facts.push(["Peak of tensors", `${gib(answer.peak)}, in the ${answer.phase}${answer.phase === "optimizer" ? "'s update" : " pass"}`]);
  }
  byId("facts").replaceChildren(...facts.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]));
}

function command(choice) {
  const method = methodOf(choice.method), words = ["peftbench estimate", choice.model === OWN ? "FOLDER-WITH-CONFIG" : choice.model, choice.method];
  if (method.knob) words.push(`${method.knob}=${choice.size}`);
  if (method.roles) words.push(`roles='${choice.roles}'`);
  words.push(`--batch ${choice.batch} --seq ${choice.seq} --program ${choice.program} --dtype ${choice.dtype}`);
  if (choice.optimizer !== "adamw") words.push(choice.program === "peftbench" ? `--optimizer ${choice.optimizer}` : `--part optimizer=${choice.optimizer}`);
  if (choice.checkpointing) words.push("--checkpointing");
  words.push(`--gpu ${choice.gpu}`);
  if (choice.shards > 1) words.push(`--shards ${choice.shards}`);
  if (choice.gpus > 1) words.push(`--gpus ${choice.gpus}`);
  words.push(`--examples ${choice.examples} --epochs ${choice.epochs} --price ${choice.price}`);
  return words.join(" ");
}

// Whether a choice with one control changed has a recorded step, whatever its numbers are.
function isKnown(choice, model, changed) {
  const made = { ...choice, seq: 64, ...changed }, method = methodOf(made.method);
  made.gpus = made.shards = Number(made.shards);
  if (method.roles && !made.roles) made.roles = control("roles").value;
  return refusal(data, model, method, { ...made, size: method.knob ? 1 : 0 }) === null;
}

// Greys what has no recorded step with the rest of the choice, and marks the methods that have none at all.
async function markOptions(choice, model) {
  for (const option of control("method").options) {
    const method = methodOf(option.value), name = familyName(model, method);
    await family(name);
    const known = data.families[name] && Object.keys(data.families[name].steps).some((key) => key.split("|")[4] === method.like);
    option.textContent = option.value + (known ? "" : " (parameters only)");
  }
  await family(familyName(model, methodOf(choice.method), { shards: 2 }));
  let greyed = false;
  for (const name of FURTHER) for (const option of control(name).options) {
    option.disabled = !option.selected && !isKnown(choice, model, { [name]: option.value });
    greyed = greyed || (option.disabled && !control(name).closest("[hidden]"));
  }
  byId("greyed").hidden = !greyed;
}

// After another model or method: takes the first layers, program, precision or optimiser that has a recorded step.
async function settle() {
  const choice = read();
  let model;
  try { model = modelOf(choice.model); } catch { return; }
  for (const shards of [1, choice.shards]) await family(familyName(model, methodOf(choice.method), { shards }));
  if (isKnown(choice, model, {})) return;
  for (const name of FURTHER) {
    const values = [...control(name).options].map((one) => one.value), known = (value) => isKnown(choice, model, { [name]: value });
    const found = name === "shards" ? values.find(known) : values.findLast(known);
    if (found !== undefined) { control(name).value = found; return; }
  }
}

function showVerdict(answer, choice) {
  const verdict = byId("verdict");
  verdict.className = "verdict " + (answer.refused ? "unknown" : answer.fits ? "fits" : "too-large");
  if (answer.refused) verdict.replaceChildren(element("strong", {}, "No answer here. "), answer.refused);
  else {
    const spare = Math.abs(answer.room - answer.needed);
    verdict.replaceChildren(
      element("strong", {}, answer.fits ? "✓ Fits. " : "✗ Does not fit. "),
      `${gib(answer.needed)} of the ${gib(answer.room)} of ${choice.gpus > 1 ? "each " : "the "}${choice.gpu}${choice.shards > 1 ? `, with 1/${choice.shards} of the model` : ""}; ${gib(spare)} ${answer.fits ? "to spare" : "too much"}. `,
      element("span", { class: "second" }, `${duration(answer.seconds)} a step.`),
    );
  }
  byId("bar").hidden = byId("parts").hidden = Boolean(answer.refused);
}

async function update(keepHash = false) {
  const choice = read(), method = methodOf(choice.method), nothing = { trainable: 0, percent: 0, base: 0, file: 0 };
  byId("size-label").hidden = !method.knob;
  byId("size-name").textContent = method.knob || "";
  byId("size-value").textContent = size;
  byId("size").setAttribute("aria-valuetext", `${method.knob} ${size}`);
  byId("roles-label").hidden = !method.roles;
  byId("config-label").hidden = choice.model !== OWN;
  byId("formula").textContent = method.formula;
  byId("sharing").textContent = sharingText(choice);
  let answer, model = null;
  try {
    model = modelOf(choice.model);
    await family(familyName(model, method, choice));
    const whole = (one) => one.step !== "any";
    const impossible = (one) => one.value === "" || one.validity.rangeUnderflow || (whole(one) && !Number.isInteger(Number(one.value)));
    const odd = [...form.elements].find((one) => one.type === "number" && impossible(one));
    answer = odd ? { refused: `${odd.name}: give a ${whole(odd) ? "whole " : ""}number from ${odd.min}.`, ...nothing } : compute(data, choice);
  } catch (error) {
    answer = { refused: `${error.message}.`, ...nothing };
  }
  showVerdict(answer, choice);
  if (!answer.refused) showBar(answer, choice);
  showFacts(answer, choice);
  if (model) showPublished(choice, model);
  if (model) await markOptions(choice, model);
  byId("command").value = command(choice);
  byId("command").style.height = "auto";
  byId("command").style.height = `${byId("command").scrollHeight + 4}px`;
  if (!keepHash) history.replaceState(null, "", hashOf({ ...choice, size: (method.knob && chosen[meaningOf(method)]) || null }));
  document.body.dataset.ready = "true";
}

// What the cards share.
function sharingText({ gpus, shards, method }) {
  if (shards === 1) return "Each card holds the whole model and trains on texts of its own.";
  const sets = gpus > shards && gpus % shards === 0 ? ` ${gpus / shards} sets of ${shards} cards sum their gradients.` : "";
  const held = method === "full" ? "weights, gradients and moments" : "weights, and all of what the method adds";
  return `Each card holds 1/${shards} of the model's ${held}. It gathers a block at a time (FSDP), which counts as activations and temporaries, and trains on texts of its own.${sets}`;
}

// Cards for whole sets of shards.
function enoughCards() {
  const shards = Number(control("shards").value), gpus = Number(control("gpus").value);
  control("gpus").value = shards * Math.max(1, Math.ceil(gpus / shards));
}

async function copied(text, what) {
  try { await navigator.clipboard.writeText(text); } catch {
    byId("command").select();
    document.execCommand("copy");
  }
  byId("copied").textContent = `${what} copied`;
}

form.addEventListener("input", async (event) => {
  const method = methodOf(control("method").value);
  if (event.target.id === "size") chosen[meaningOf(method)] = size = SIZES[Number(event.target.value)];
  if (event.target.name === "method") takeSize(method);
  if (["method", "model"].includes(event.target.name)) await settle();
  if (event.target.name === "shards") enoughCards();
  update();
});
form.addEventListener("submit", (event) => event.preventDefault());
byId("copy").addEventListener("click", () => copied(byId("command").value, "Command"));
byId("link").addEventListener("click", () => copied(location.href, "Link"));
window.addEventListener("hashchange", () => { write(fromHash()); update(true); });
write(fromHash());
update(true).then(showPresets);
