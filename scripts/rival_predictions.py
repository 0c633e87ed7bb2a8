"""What three other calculators predict for the published measurements: peftbench/estimate/published/rivals.json.

    pip install accelerate==1.15.0 ftuneai==0.4.1 vramcalc==0.1.2
    python scripts/rival_predictions.py [--out FILE]

None of them fetches anything: they get the configurations of architectures.json. A calculator gets a point's setting,
or the nearest that it can express: what was changed is listed as "nearest". Where it cannot express the point, or the
point measures something else, the reason is written instead.

    accelerate  estimate-memory: full fine-tuning with Adam only, of any batch and length
    ftune       full, LoRA and QLoRA with three choices of targets; weights, states, activations, and a fifth on top
    vramcalc    full, and LoRA on q, k, v and o, of Llama, Mistral, Qwen2 and Gemma; the allocator's peak
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from peftbench.backbones import architectures
from peftbench.estimate.memory_fit import parsed_size
from peftbench.estimate.published.published_check import RIVALS
from peftbench.estimate.published.published_points import PublishedPoint, points

PACKAGES = {"accelerate": "accelerate", "ftune": "ftuneai", "vramcalc": "vramcalc"}
LORA = ("lora", "rslora", "pissa", "lora_plus")  # they store and compute what LoRA does
TARGETS = {"q v": "attention", "q k v o": "attention_all", "q k v o gate up down": "all_linear"}
IN_FTUNE = {  # models that its own table has
    "llama-3.1-8b": "meta-llama/Llama-3.1-8B",
    "mistral-7b-v0.3": "mistralai/Mistral-7B-v0.3",
    "gemma-2-9b": "google/gemma-2-9b",
    "phi-3-mini": "microsoft/phi-3-mini-4k-instruct",
    "falcon-7b": "tiiuae/falcon-7b",
}
LONGEST = 1 << 17  # tokens: as far as a longest context is looked for


class CannotExpress(Exception):
    """Why a calculator has no prediction for a point."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RIVALS)
    args = parser.parse_args()
    told = {point.id: {tool: _told(ask, point) for tool, ask in TOOLS.items()} for point in points()}
    versions = {tool: version(package) for tool, package in PACKAGES.items()}
    args.out.write_text(_text(versions, told), encoding="utf-8")
    for tool in TOOLS:
        print(f"{tool} {versions[tool]}: {sum('value' in answers[tool] for answers in told.values())} points")


def _text(versions: Mapping[str, str], told: Mapping[str, Mapping[str, Any]]) -> str:
    """JSON with a line for each point."""
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(answers)}" for name, answers in told.items())
    return f'{{\n "versions": {json.dumps(versions)},\n "predictions": {{\n{lines}\n }}\n}}\n'


def _told(ask: Callable[[PublishedPoint, list[str]], int], point: PublishedPoint) -> dict[str, Any]:
    nearest = _not_expressed(point)
    try:
        if point.left_out:
            raise CannotExpress(point.left_out)
        if point.measure == "after_step":
            raise CannotExpress("it predicts a peak, not what is left after a step")
        if point.model not in architectures.known():
            raise CannotExpress("the architecture is not known here")
        return {"value": ask(point, nearest), "nearest": nearest}
    except CannotExpress as error:
        return {"reason": str(error)}


def _not_expressed(point: PublishedPoint) -> list[str]:
    """Return what no calculator here can be told of a step; it is computed as if it were not so."""
    parts = point.parts
    told = {
        "parts of the logits": parts.get("loss", "whole") != "whole",
        "the update in the backward pass": parts.get("gradients") == "in_backward",
        "offloaded activations": bool(parts.get("offload_activations")),
        "torch.compile": bool(parts.get("compile")),
        "paged states": str(parts.get("optimizer")).startswith("paged"),
    }
    return [f"without {what}" for what, true in told.items() if true]


def accelerate(point: PublishedPoint, nearest: list[str]) -> int:
    """Return the largest of weights, gradients, states and step, as `accelerate estimate-memory` prints it."""
    from accelerate.commands import estimate

    if point.method != "full":
        raise CannotExpress("it knows full fine-tuning only")
    if point.measure == "longest_context":
        raise CannotExpress("its prediction does not depend on the length")
    if point.parts.get("shards", 1) > 1:
        raise CannotExpress("it knows one device only")
    nearest += [f"{key} ignored" for key, value in (("batch", point.batch), ("seq", point.seq)) if value != 1]
    with tempfile.TemporaryDirectory() as folder:
        architectures.config(point.model).save_pretrained(folder)
        estimate.verify_on_hub = lambda *_: SimpleNamespace(library_name="transformers", config={})
        dtype = "float32" if point.parts.get("weights") == "float32" else "float16"
        asked = SimpleNamespace(model_name=folder, library_name=None, trust_remote_code=False, dtypes=[dtype])
        ((_, _, _, parts),) = estimate.gather_data(asked)
    return int(max(parts.values()))


def ftune(point: PublishedPoint, nearest: list[str]) -> int:
    """Return the total of ftune's breakdown; of a longest context, the most tokens whose total fits."""
    from ftuneai import Estimator

    kind = "lora" if point.method in LORA else point.method
    if kind not in ("full", "lora", "qlora"):
        raise CannotExpress("it knows full, lora and qlora only")
    attention, optimizer = point.parts.get("attention"), str(point.parts.get("optimizer", "adamw"))
    shards = int(point.parts.get("shards", 1))

    def total(seq: int) -> int:
        estimator = Estimator(
            model=_ftune_model(point),
            method=kind,
            quantization="4bit" if kind == "qlora" else "none",
            batch_size=point.batch,
            seq_length=seq,
            gradient_checkpointing=bool(point.parts.get("checkpointing", False)),
            optimizer="adam_8bit" if optimizer.endswith("8bit") else optimizer.removeprefix("paged_"),
            lora_rank=int(point.hyper.get("rank", 8)),
            lora_target="attention" if kind == "full" else _ftune_target(point, nearest),
            flash_attention=attention in ("flash", "efficient"),
            sharding="fsdp" if shards > 1 else "none",
            num_gpus=shards,
        )
        return round(estimator.estimate_memory().total_gb * 2**30)

    if point.seq is not None:
        return total(point.seq)
    limit, low, high = parsed_size(point.gpu), 0, LONGEST
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if total(middle) <= limit else (low, middle)
    if low == 0:
        raise CannotExpress("it says that no length fits")
    return low


def _ftune_target(point: PublishedPoint, nearest: list[str]) -> str:
    roles = str(point.hyper.get("roles", "q v" if point.method != "qlora" else "q k v o gate up down"))
    if roles in TARGETS:
        return TARGETS[roles]
    chosen = min(TARGETS, key=lambda known: abs(len(known.split()) - len(roles.split())))
    if f"targets {chosen}" not in nearest:
        nearest.append(f"targets {chosen}")
    return TARGETS[chosen]


def _ftune_model(point: PublishedPoint) -> str:
    """Return the name of the model in ftune's table, where it is written if it is not there."""
    from ftuneai import hub, loader

    table = loader.load_models()
    dtype = str(point.parts.get("weights", "bfloat16")) if point.method != "qlora" else "bfloat16"
    name = f"{point.model} in {dtype}"
    if name not in table:
        if point.model in IN_FTUNE:
            spec = table[IN_FTUNE[point.model]]
        else:
            facts = json.loads(architectures.config(point.model).to_json_string(use_diff=False))
            hub.fetch_model_config = lambda _: facts
            spec = hub.resolve_model_from_hub(point.model)
        table[name] = replace(spec, default_dtype=dtype, max_seq_length=max(spec.max_seq_length, LONGEST))
    return name


def vramcalc(point: PublishedPoint, nearest: list[str]) -> int:
    """Return the total of vramcalc's estimate, which is the allocator's peak."""
    from vramcalc import estimate
    from vramcalc.arch import UnsupportedModelError

    kind = "lora" if point.method in LORA else point.method
    if kind not in ("full", "lora"):
        raise CannotExpress("it knows full and lora only")
    if point.measure == "longest_context":
        raise CannotExpress("it knows full and lora only")
    if point.parts.get("shards", 1) > 1:
        raise CannotExpress("it knows one device only")
    optimizer, weights = point.parts.get("optimizer", "adamw"), point.parts.get("weights", "bfloat16")
    if optimizer not in ("adamw", "sgd"):
        raise CannotExpress(f"it has no {optimizer}")
    if kind == "lora" and point.hyper.get("roles", "q v") != "q k v o":
        nearest.append("targets q k v o")
    if kind == "lora" and point.parts.get("trained") == "bfloat16":
        nearest.append("adapters in float32")
    if point.parts.get("autocast") and weights == "bfloat16":
        nearest.append("no autocast")
    facts = json.loads(architectures.config(point.model).to_json_string(use_diff=False))
    try:
        told = estimate(
            {key: value for key, value in facts.items() if value is not None},
            mode="train",
            dtype="bf16",
            batch=point.batch,
            seq_len=point.seq,
            lora_rank=int(point.hyper.get("rank", 8)) if kind == "lora" else None,
            grad_checkpoint=bool(point.parts.get("checkpointing", False)),
            optimizer=optimizer,
            precision="amp" if weights == "float32" else "pure",
            attn_impl="eager" if point.parts.get("attention") in ("eager", "math") else "sdpa",
        )
    except UnsupportedModelError as error:
        raise CannotExpress("it knows Llama, Mistral, Qwen2 and Gemma only") from error
    return int(told.total)


TOOLS: dict[str, Callable[[PublishedPoint, list[str]], int]] = {
    "accelerate": accelerate,
    "ftune": ftune,
    "vramcalc": vramcalc,
}


if __name__ == "__main__":
    main()
