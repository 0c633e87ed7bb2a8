"""Compute one choice of the page exactly, by `estimate`: of a model by its name, or of a pasted config.json."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from peftbench.backbones import architectures
from peftbench.errors import UserError
from peftbench.estimate import step_estimate
from peftbench.estimate.calculator import settings
from peftbench.estimate.card import cards, fits
from peftbench.estimate.count import ModelQuery, count
from peftbench.records import scratch

OWN = "own"  # the model of a pasted config.json
LAYERS = 512
LARGEST = 1 << 28  # of any whole number in a config.json
WHOLE = {"batch": 4_096, "seq": 1 << 20, "gpus": 65_536, "shards": 1_024, "examples": 10**12}  # largest of each, from 1


def answer(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the page shows of a choice: counts, bytes, seconds, hours, money.

    Args:
        asked: "choice", the page's choice, which may have "shards"; with its model "own", also "config", a text.

    Raises:
        UserError: Something of it is missing or invalid, or the network does not take the method or the length.
    """
    choice = _checked(asked.get("choice"))
    with _model(choice, asked.get("config")) as model:
        try:
            return _answer(choice, ModelQuery(model, task="generation"))
        except UserError as error:
            raise UserError(
                str(error).replace(model, "config.json") if choice["model"] == OWN else str(error)
            ) from error


def _answer(choice: Mapping[str, Any], query: ModelQuery) -> dict[str, Any]:
    hyper = settings.hyper_of(choice["method"], choice["roles"], choice["size"] or None)
    counted = count(query, choice["method"], hyper)
    how = (choice["program"], choice["dtype"], choice["checkpointing"], choice["batch"], choice["seq"])
    setting = replace(settings.setting_of(*how, choice["optimizer"]), shards=choice["shards"])
    question = fits.Question(
        cards.card(choice["gpu"]),
        choice["gpus"],
        examples=choice["examples"],
        epochs=choice["epochs"],
        price=choice["price"],
    )
    question.check(setting)
    told = step_estimate.estimate(query, choice["method"], hyper, setting, counted=counted)
    step = fits.seconds(told, question)
    bill = fits.bill(step.seconds, setting.batch, question) if step is not None else None
    needed, room = fits.needed_bytes(told), question.card.memory_bytes
    return {
        "trainable": counted.trainable,
        "percent": counted.percent_of_base,
        "file": counted.stored_bytes,
        "base": counted.base,
        "peak": told.peak_bytes,
        "parts": dict(told.at_peak),
        "phase": told.peak_phase,
        "reserved": told.reserved_bytes,
        "needed": needed,
        "room": room,
        "fits": needed <= room,
        "context": fits.CONTEXT,
        "seconds": step.seconds if step else None,
        "bound": step.bound if step else None,
        **({"steps": bill.steps, "hours": bill.hours, "kwh": bill.kwh, "money": bill.money} if bill else {}),
        "layers": told.layers_simulated,
    }


@contextmanager
def _model(choice: Mapping[str, Any], config: Any) -> Iterator[str]:
    """The model's name, or a folder that has the pasted configuration while the step is simulated."""
    if choice["model"] != OWN:
        yield choice["model"]
        return
    read = _configuration(config)
    with scratch.folder("calculator") as folder:
        (folder / "config.json").write_text(json.dumps(read), encoding="utf-8")
        yield str(folder)


def _configuration(text: Any) -> dict[str, Any]:
    if not isinstance(text, str) or not text.strip():
        raise UserError("there is no config.json; paste the text of the model's file")
    try:
        read = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"config.json is no JSON: {error}; paste the whole file") from error
    if not isinstance(read, dict) or not isinstance(read.get("model_type"), str):
        raise UserError('config.json has no "model_type"; paste the whole file of a model that transformers knows')
    for name, value in read.items():
        largest = LAYERS if "layers" in name else LARGEST
        if isinstance(value, int) and abs(value) > largest:
            raise UserError(f"config.json has {name} {value}; this page takes at most {largest:,}")
    return {name: value for name, value in read.items() if name not in ("auto_map", "quantization_config")}


def _checked(choice: Any) -> dict[str, Any]:
    """Return a choice whose values have the types and the bounds that the page's form gives them."""
    if not isinstance(choice, dict):
        raise UserError('there is no "choice"; send what the form holds')
    made: dict[str, Any] = {"roles": "", "size": 0, "shards": 1, **choice}
    for name in ("model", "method", "roles", "dtype", "optimizer", "program", "gpu"):
        if not isinstance(made.get(name), str) or (name != "roles" and not made[name]):
            raise UserError(f"the choice has no {name}; send what the form holds")
    for name, largest in WHOLE.items():
        value = made.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= largest:
            raise UserError(f"{name} {value!r}: give a whole number from 1 to {largest:,}")
    size = made["size"]
    if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= LARGEST:
        raise UserError(f"size {size!r}: give a whole number from 0 to {LARGEST:,}")
    for name in ("epochs", "price"):
        if isinstance(made.get(name), bool) or not isinstance(made.get(name), int | float):
            raise UserError(f"{name} {made.get(name)!r}: give a number")
    if not isinstance(made.get("checkpointing"), bool):
        raise UserError(f"checkpointing {made.get('checkpointing')!r}: give true or false")
    if (
        made["model"] != OWN and made["model"] not in architectures.known()
    ):  # a folder or the hub is not the page's to read
        raise UserError(f"model {made['model']!r}: give a name of the page's list, or paste a config.json")
    return made
