"""The calculator's page: one HTML file that needs no network."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from peftbench import cache
from peftbench.errors import UserError
from peftbench.estimate.calculator import payload, settings
from peftbench.estimate.published import published_points, published_predict
from peftbench.estimate.published.published_points import PublishedPoint

HERE = Path(__file__).parent
CHECKED = HERE / "recorded" / "checked.json"
COMMON = HERE / "recorded" / "common.json"
COMPARED = ("allocated", "active", "after_step", "reserved")  # measures that a prediction should equal
SHARD_COUNTS = (1, 2, 4, 8, 16, 32, 64)  # from there on, shards may not divide the rows of a matrix
WITHIN = 0.01  # errors of the check that need no name
GROUPS = (
    ("Llama", ("llama-3", "llama-2", "llama-")),
    ("Mistral", ("mistral",)),
    ("Qwen", ("qwen",)),
    ("Gemma", ("gemma",)),
    ("Phi", ("phi",)),
    ("Others", ("",)),
)


def html(served: bool = False) -> str:
    """Return the page.

    Args:
        served: Whether a server computes exactly what the page asks (serve.py).
    """
    data = payload.payload()
    data["published"] = published()
    environment = Environment(loader=FileSystemLoader(HERE), undefined=StrictUndefined, autoescape=False)
    return environment.get_template("page.html.j2").render(
        style=_source("style.css"),
        events=_source("events.js"),
        pieces=_source("pieces.js"),
        kernels=_source("kernels.js"),
        shards=_source("shards.js"),
        depths=_source("depths.js"),
        extrapolation=_source("extrapolation.js"),
        replay=_source("replay.js"),
        numbers=_source("numbers.js"),
        published=_source("published.js"),
        presets=_source("presets.js"),
        script=_source("calculator.js"),
        exact=_source("exact.js"),
        served=served,
        payload=json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"),
        families=payload.families(),
        groups=_groups([model["name"] for model in data["models"]]),
        methods=data["methods"],
        cards=data["cards"],
        currency=data["currency"],
        dtypes=_recorded(settings.DTYPES, {"bfloat16": "bf16", "float32": "fp32"}),
        shard_counts=SHARD_COUNTS,
        programs=_recorded(settings.PROGRAMS, {}),
        common=json.loads(COMMON.read_text(encoding="utf-8")) if COMMON.exists() else [],
        checked=checked_text(),
        footer=f"peftbench {_version()}; torch and transformers as in its requirements. Apache-2.0.",
    )


def published() -> list[dict[str, Any]]:
    """Return the published measurements of steps like those here, with our predictions where they are known."""
    try:
        predicted: Mapping[str, int] = published_predict.stored()
    except UserError:
        predicted = {}
    return [_entry(p, predicted.get(p.id)) for p in published_points.points() if _is_shown(p)]


def _is_shown(point: PublishedPoint) -> bool:
    return not point.left_out and point.measure in COMPARED and point.seq is not None and point.unit != "tokens"


def _entry(point: PublishedPoint, predicted: int | None) -> dict[str, Any]:
    return {
        "id": point.id,
        "title": point.title,
        "source": point.source,
        "gpu": point.gpu,
        "measure": point.measure,
        "model": point.model,
        "method": point.method,
        "roles": str(point.hyper.get("roles", "")),
        "size": next((point.hyper[k] for k in ("rank", "length", "bottleneck") if k in point.hyper), 0),
        "batch": point.batch,
        "seq": point.seq,
        "program": point.program,
        "checkpointing": bool(point.parts.get("checkpointing", False)),
        "shards": point.parts.get("shards", 1),
        "measured": point.value_bytes,
        "predicted": predicted,
    }


def checked_text() -> str:
    """Return how far the page's numbers are from those of `estimate`, from the committed check."""
    if not CHECKED.exists():
        return "The numbers of this page have not been compared with <code>peftbench estimate</code>."
    checked = json.loads(CHECKED.read_text(encoding="utf-8"))
    rows = checked["settings"]
    told = ", ".join(
        _errors_text(rows, name, what)
        for name, what in (
            ("peak", "peak of live tensors"),
            ("needed", "what a card must hold"),
            ("seconds", "seconds"),
        )
    )
    return (
        f"The page replays steps that <code>peftbench estimate</code> simulated. On {len(rows)} random settings its "
        f"numbers differ from those of <code>peftbench estimate</code> by (median and largest): {told} "
        "(<code>scripts/calculator_check.py</code>)."
    )


def _errors_text(rows: Sequence[Mapping[str, Any]], name: str, what: str) -> str:
    """Return the median and the largest error of a quantity, and whose it is if it is above a hundredth."""
    found = [(abs(row["errors"][name]), row["choice"]) for row in rows if name in row["errors"]]
    largest, choice = max(found, key=lambda one: one[0])
    whose = f" ({choice['method']} on {choice['model']})" if largest > WITHIN else ""
    return f"{what} {median(error for error, _ in found):.2%} and {largest:.2%}{whose}"


def common_rows() -> list[list[str]]:
    """Return a table of common settings, computed by the page's own script in node.

    Raises:
        UserError: There is no node.
    """
    models = (
        "llama-3.2-1b",
        "llama-3.1-8b",
        "qwen2.5-7b",
        "llama-2-7b",
        "mistral-nemo-12b",
        "qwen2.5-32b",
        "llama-3.1-70b",
    )
    known = {model["name"] for model in payload.payload()["models"]}
    choices = [
        {
            "model": model,
            "method": method,
            "roles": "q k v o gate up down" if method != "full" else "",
            "size": 16,
            "batch": 1,
            "seq": 2048,
            "dtype": "bfloat16",
            "optimizer": "adamw",
            "checkpointing": True,
            "program": "hf-trainer",
            "gpu": "h100",
            "gpus": 1,
            "examples": 1,
            "epochs": 1,
            "price": 0,
        }
        for model in models
        if model in known
        for method in ("full", "lora", "qlora")
    ]
    rows = []
    for choice, answer in zip(choices, answers(choices), strict=True):
        if "refused" in answer:
            continue
        trains = f"{answer['trainable'] / 1e6:,.1f} M"
        rows.append(
            [
                str(choice["model"]),
                str(choice["method"]),
                trains,
                f"{answer['needed'] / 2**30:.1f} GiB",
                f"{answer['seconds']:.2f} s" if answer["fits"] else "does not fit",
            ]
        )
    return rows


def answers(choices: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the page's numbers for choices, computed by its own script in node.

    Raises:
        UserError: There is no node.
    """
    node = shutil.which("node")
    if node is None:
        raise UserError("the calculator's numbers without a browser need node; install Node.js 18 or newer")
    asked = json.dumps({"data": payload.unpacked(), "choices": choices})
    done = subprocess.run([node, str(HERE / "answers.js")], input=asked, capture_output=True, text=True, check=True)
    read: list[dict[str, Any]] = json.loads(done.stdout)
    return read


def _recorded(names: Sequence[str], words: Mapping[str, str]) -> list[str]:
    """Return the programs or dtypes that any step was recorded with."""
    parts = {
        part for read in payload.unpacked()["families"].values() for key in read["steps"] for part in key.split("|")
    }
    return [name for name in names if words.get(name, name) in parts]


def _groups(names: list[str]) -> list[tuple[str, list[str]]]:
    left = list(names)
    groups = []
    for label, starts in GROUPS:
        own = [name for name in left if name.startswith(starts)]
        left = [name for name in left if name not in own]
        if own:
            groups.append((label, own))
    return groups


def _source(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def _version() -> str:
    return cache.versions("peftbench").get("peftbench") or "from source"
