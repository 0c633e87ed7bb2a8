"""Compare the calculator's numbers with `peftbench estimate` on random settings, and write the errors for the page.

Answers of `estimate` are kept in build/calculator_check, so that the check can be broken off and go on. Those that
the file has are not asked for again, unless `--again` names a word of the setting, such as a card or a method whose
estimate has changed; after a change of the whole simulation, remove the file. The page's numbers are computed anew.

    python scripts/calculator_check.py --settings 300 --write
    python scripts/calculator_check.py --settings 40 --only shards fp32 --write
    python scripts/calculator_check.py --settings 0 --again rtx-3090 h200 --write
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from peftbench.backbones.sites import Sites
from peftbench.errors import UserError
from peftbench.estimate import step_estimate
from peftbench.estimate.calculator import page, payload, settings
from peftbench.estimate.card import cards, fits
from peftbench.estimate.count import ModelQuery, ParameterCount, network

ROOT = Path(__file__).parent.parent
BUILD = ROOT / "build" / "calculator_check"
FILE = ROOT / "peftbench" / "estimate" / "calculator" / "recorded" / "checked.json"
SEED = 20240517
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
LENGTHS = (128, 256, 512, 768, 1024, 2048, 4096)
BATCHES = (1, 1, 2, 3, 4, 8, 16)
QUANTITIES = ("trainable", "peak", "needed", "seconds")
SHARDS = (2, 4, 8, 16)
ALL_LAYERS = 32  # at most, of an adapter in shards: `estimate` may simulate all of them, which takes minutes


def choices(data: Mapping[str, Any], count: int, seed: int = SEED, only: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Return random choices of the page; the same for the same seed and recordings.

    Each family, program and dtype is drawn from alone, whole or in shards, and equally often, so that another recorded
    family leaves the first choices of the others as they are.

    Args:
        data: What the page knows.
        count: Number of choices.
        seed: Of the draws.
        only: Parts of the groups' names, such as "llama hf-trainer"; empty for all.
    """
    groups = sorted(
        {(name.removesuffix("-tied"), *key.split("|")[:2], *key.split("|")[6:]) for name, key in _recorded(data)}
    )
    groups = [group for group in groups if not only or any(part in " ".join(group) for part in only)]
    draws = [random.Random(f"{seed} {' '.join(group)}") for group in groups]
    return [_one(data, draws[n % len(groups)], *groups[n % len(groups)]) for n in range(count)]


def _recorded(data: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, read in data["families"].items():
        for key in read["steps"]:
            yield name, key


def _one(
    data: Mapping[str, Any], draw: random.Random, family: str, program: str, precision: str, shards: str = ""
) -> dict[str, Any]:
    """Return a random choice of a family, a program and a precision that the page has an answer for."""
    models = [model for model in data["models"] if model["family"] == family]
    while True:
        model, method = draw.choice(models), draw.choice(data["methods"])
        choice = {
            "model": model["name"],
            "method": method["name"],
            "roles": draw.choice(settings.ROLES) if method["roles"] else "",
            "size": draw.choice(SIZES) if method["knob"] else 0,
            "batch": draw.choice(BATCHES),
            "seq": draw.choice(LENGTHS),
            "dtype": {"bf16": "bfloat16", "fp32": "float32"}[precision],
            "optimizer": draw.choice(("adamw", "adamw", "adamw8bit", "paged_adamw", "paged_adamw8bit")),
            "checkpointing": draw.random() < 0.5,
            "program": program,
            "gpu": draw.choice(sorted(data["cards"])),
            "gpus": 1,
            "examples": 10_000,
            "epochs": 1,
            "price": 1,
        }
        if shards:
            number = draw.choice(SHARDS)
            choice |= {"shards": number, "gpus": number * draw.choice((1, 1, 2))}
            if method["like"] != "full" and model["layers"] > ALL_LAYERS:
                continue
        tied = model["tied"] and (method["like"] in ("full", "galore") or bool(shards))
        steps = data["families"].get(model["family"] + "-tied" * tied, {"steps": {}})["steps"]
        if key_of(choice, method) in steps and not refused(choice, model, method):
            return choice


def key_of(choice: Mapping[str, Any], method: Mapping[str, Any]) -> str:
    """Return the name of the recording of a choice."""
    how = (choice["program"], choice["dtype"], choice["checkpointing"], choice["batch"] > 1)
    return settings.Step(*how, method["like"], choice["roles"], choice.get("shards", 1) > 1).key


def refused(choice: Mapping[str, Any], model: Mapping[str, Any], method: Mapping[str, Any]) -> bool:
    """Whether the page refuses a choice, as `refusal` in numbers.js does."""
    longest = choice["seq"] + (choice["size"] if method["like"] in ("prompt", "prefix") else 0)
    return (
        (model["positions"] is not None and longest > model["positions"])
        or (model["window"] is not None and choice["seq"] >= model["window"])
        or (method["like"] == "bitfit" and not model["biases"])
        or (choice["optimizer"] != "adamw" and method["like"] in ("adalora", "galore"))
        or (choice["program"] == "peftbench" and choice["optimizer"].startswith("paged"))
    )


def estimated(choice: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `peftbench estimate` says."""
    how = (choice["program"], choice["dtype"], choice["checkpointing"], choice["batch"], choice["seq"])
    hyper = settings.hyper_of(choice["method"], choice["roles"], choice["size"])
    query, setting = ModelQuery(choice["model"]), settings.setting_of(*how, choice["optimizer"])
    setting = replace(setting, shards=choice.get("shards", 1))
    told = step_estimate.estimate(query, choice["method"], hyper, setting, counted=counted(choice, hyper))
    question = fits.Question(cards.card(choice["gpu"]), choice["gpus"])
    step = fits.seconds(told, question)
    return {
        "trainable": told.trainable,
        "peak": told.peak_bytes,
        "needed": fits.needed_bytes(told),
        "seconds": None if step is None else step.seconds,
        "layers": told.layers_simulated,
    }


def counted(choice: Mapping[str, Any], hyper: Mapping[str, Any]) -> ParameterCount:
    """Return the parameters by the method's formula: attaching it to all layers takes longer than the simulation."""
    model, method = choice["model"], settings.made(choice["method"], choice["roles"], choice["size"] or None)
    trainable = method.parameters(sites_of(model))
    return ParameterCount(model, "generation", "", choice["method"], hyper, trainable, 0, 0, 0, 0, None, False)


@cache
def sites_of(model: str) -> Sites:
    """Return the sites of a model."""
    return network(ModelQuery(model)).sites


def _checked() -> list[dict[str, Any]]:
    """Return the settings that the file has."""
    read: list[dict[str, Any]] = json.loads(FILE.read_text(encoding="utf-8"))["settings"] if FILE.exists() else []
    return read


def _name(choice: Mapping[str, Any]) -> str:
    return json.dumps(choice, sort_keys=True)


def main() -> None:
    """Compare, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", type=int, default=300, help="settings to draw")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--only", nargs="*", default=[], help="parts of groups' names, such as 'llama hf-trainer'")
    parser.add_argument("--again", nargs="*", default=[], help="words of the file's settings to estimate again")
    parser.add_argument("--minutes", type=float, default=1e9)
    parser.add_argument("--write", action="store_true", help=f"write {FILE.name}")
    parser.add_argument("--worst", type=int, default=12, help="settings to print")
    args = parser.parse_args()
    data = payload.unpacked()
    settled = {_name(row["choice"]): row for row in _checked()}
    again = [row["choice"] for row in settled.values() if {*args.again} & {*map(str, row["choice"].values())}]
    drawn = choices(data, args.settings, args.seed, args.only)
    asked = [*again, *(choice for choice in drawn if _name(choice) not in settled)]
    settled |= _estimates(asked, time.monotonic() + 60 * args.minutes)
    rows = _compared([*settled.values()])
    _print(rows, args.worst, {method["name"]: method for method in data["methods"]})
    if args.write:
        FILE.write_text(json.dumps({"seed": args.seed, "settings": rows}, indent=0) + "\n", encoding="utf-8")


def _estimates(asked: Sequence[Mapping[str, Any]], end: float) -> dict[str, Any]:
    """Return by name what `estimate` says of choices, as many as there is time for."""
    BUILD.mkdir(parents=True, exist_ok=True)
    file = BUILD / "estimates.json"
    known = json.loads(file.read_text()) if file.exists() else {}
    for choice in asked:
        if _name(choice) in known or time.monotonic() > end:
            continue
        try:
            known[_name(choice)] = estimated(choice)
        except UserError as error:
            known[_name(choice)] = {"refused": str(error)}
        file.write_text(json.dumps(known))
    told = ((choice, known.get(_name(choice))) for choice in asked)
    return {_name(choice): {"choice": choice, "estimate": one} for choice, one in told if one is not None}


def _compared(settled: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return each setting with what `estimate` says and the page's errors."""
    rows = []
    for row, own in zip(settled, page.answers([row["choice"] for row in settled]), strict=True):
        choice, told = row["choice"], row["estimate"]
        if "refused" in told or "refused" in own:
            print("refused:", choice, told.get("refused"), own.get("refused"))
            continue
        errors = {q: round(own[q] / told[q] - 1, 6) for q in QUANTITIES if told[q]}
        rows.append({"choice": choice, "estimate": told, "errors": errors})
    return rows


def _print(rows: Sequence[Mapping[str, Any]], worst: int, methods: Mapping[str, Any]) -> None:
    for q in QUANTITIES:
        sizes = [abs(row["errors"][q]) for row in rows if q in row["errors"]]
        print(f"{q}: {len(sizes)} settings, median {statistics.median(sizes):.4%}, largest {max(sizes):.3%}")
        for row in sorted(rows, key=lambda row: -abs(row["errors"].get(q, 0)))[:worst]:
            if abs(row["errors"].get(q, 0)) > 1e-3:
                c = row["choice"]
                what = [c[k] for k in ("model", "method", "size", "batch", "seq", "optimizer", "gpu")]
                print(f"  {row['errors'][q]:+.3%}", *what, key_of(c, methods[c["method"]]))


if __name__ == "__main__":
    main()
