"""The GPUs of this machine, and which of them each worker process of the executor `local` computes on.

A worker sees its own cards alone: its process has them as `CUDA_VISIBLE_DEVICES`, so that "cuda" is the first of them.
A card is numbered as "cuda:N" numbers it: from 0, among those that this process sees. Where this process has a
`CUDA_VISIBLE_DEVICES` itself, the workers get its entries, be they numbers, UUIDs or names of MIG instances.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from peftbench.errors import UserError, shown
from peftbench.run.executors import Workers, cores, cuda_driver

VARIABLE = "CUDA_VISIBLE_DEVICES"
DRIVER_SECONDS = 60  # for the driver to answer; without persistence it first initialises every card
PACKED_PER_CARD = 4  # workers on a card by default; they take turns on it, so that more seldom gain anything


@dataclass(frozen=True)
class Card:
    """A CUDA device.

    Attributes:
        name: what `CUDA_VISIBLE_DEVICES` calls it.
        bytes: its memory.
    """

    name: str
    bytes: int


Find = Callable[[], Sequence[Card]]


@dataclass(frozen=True)
class Layout:
    """The cards among which jobs are divided.

    Attributes:
        groups: the cards of one job each; empty where jobs are not placed, and every process sees what this one sees.
        packed: whether several jobs share a card as far as its memory holds them.
        pinned: whether the session's own device ("cuda:1") names the card, so that its process must see all cards.
    """

    groups: tuple[tuple[Card, ...], ...] = ()
    packed: bool = False
    pinned: bool = False

    def environment(self, group: int) -> dict[str, str]:
        """The environment variables of a process that computes on the cards of this group."""
        return {} if self.pinned else {VARIABLE: ",".join(card.name for card in self.groups[group])}

    def environments(self, jobs: int) -> dict[int, dict[str, str]]:
        """The same by the number of the worker, from 1, where so many workers are divided evenly among the groups."""
        if not self.groups:
            return {}
        return {number: self.environment((number - 1) % len(self.groups)) for number in range(1, jobs + 1)}


def layout(device: str, options: Mapping[str, str], each: int, find: Find) -> Layout:
    """Divide the cards among jobs.

    Args:
        device: the session's device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        options: those of the executor: "devices" and "pack".
        each: how many cards each job computes on.
        find: returns the cards that this process sees; it is called only where the device may be one of them.

    Raises:
        UserError: an option is not valid, contradicts the device, or names a card that is not here.
    """
    wanted, packed = options.get("devices"), is_packed(options)
    kind, _, number = device.partition(":")
    if kind not in ("auto", "cuda"):
        _refuse(wanted, packed, f"the device is {device}; leave it out, or use --device cuda")
        return Layout()
    if number and wanted is not None:
        raise UserError(f"local.devices={wanted}: the device {device} names the card already; give one of the two")
    if number and each > 1:
        raise UserError(f"device {device}: it is one card, and each run computes on {each}; use --device cuda")
    if number and not packed:
        return Layout()
    cards = tuple(find())
    if not cards:
        _refuse(wanted, packed, "this process sees no CUDA device; leave it out")
        return Layout()
    if number:
        return Layout(((_numbered(cards, number, f"device {device}"),),), packed, pinned=True)
    if wanted is not None:
        cards = _chosen(cards, wanted)
    if packed and each > 1:
        raise UserError(f"--pack: a run that computes on {each} cards has them to itself; leave it out")
    if each > len(cards):
        raise UserError(f"each run computes on {each} cards, and {_count(len(cards))} can be used; use fewer for a run")
    return Layout(tuple(cards[i : i + each] for i in range(0, len(cards) - each + 1, each)), packed)


def workers(layout: Layout, given: int | None, in_file: int | None) -> Workers:
    """How many jobs run side by side: without a number, one for each card or group of cards.

    A file is for every machine: its number is the most that it wants, and cards may allow fewer. A number of the
    command line is taken as it is, or refused.

    Args:
        layout: the cards.
        given: the number of the command line.
        in_file: the number of the experiment file.

    Raises:
        UserError: see `check`.
    """
    most = len(layout.groups)
    if not most:
        return Workers(given or in_file or 1)
    if layout.packed:
        jobs, note = given or in_file or max(most, min(cores(), PACKED_PER_CARD * most)), None
    else:
        check(layout, given or 1)
        jobs, note = given or min(in_file or most, most), _note(layout, given, in_file)
    environments = layout.environments(jobs).values()
    return Workers(jobs, tuple(e[VARIABLE] for e in environments if VARIABLE in e), note)


def check(layout: Layout, jobs: int) -> None:
    """Raise UserError if so many jobs at the same time would have to share cards, and nobody has asked for that."""
    most = len(layout.groups)
    if not most or layout.packed or jobs <= most:
        return
    each = len(layout.groups[0])
    to_itself = "a card" if each == 1 else f"{each} cards"
    raise UserError(
        f"--jobs {jobs}: {_count(most * each)} can be used, and each run has {to_itself} to itself; "
        f"use --jobs {most}, or --pack to run several on one card as far as its memory holds them"
    )


def is_packed(options: Mapping[str, str]) -> bool:
    """Whether the options ask for several runs on one card. Raises UserError unless it is "true" or "false"."""
    given = options.get("pack", "false")
    if given not in ("true", "false"):
        raise UserError(f"local.pack: given {shown(given)}; must be true or false")
    return given == "true"


def visible() -> tuple[Card, ...]:
    """The cards that torch would see in a new process; none where torch was built without CUDA."""
    return _visible(os.environ.get(VARIABLE), os.environ.get("CUDA_DEVICE_ORDER")) if _torch_has_cuda() else ()


@functools.cache
def _visible(outer: str | None, order: str | None) -> tuple[Card, ...]:
    """The cards under these values of `CUDA_VISIBLE_DEVICES` and `CUDA_DEVICE_ORDER`."""
    return cards_of(outer, _ask_driver)


def cards_of(outer: str | None, ask: Callable[[str | None], Sequence[int]]) -> tuple[Card, ...]:
    """The cards of a process whose `CUDA_VISIBLE_DEVICES` is `outer`; None where it has none.

    Args:
        outer: the variable. A process sees only the first of several MIG instances, so each is looked at alone.
        ask: returns the memory of each device that a process with this variable sees.
    """
    if outer is None:
        return tuple(Card(str(number), size) for number, size in enumerate(ask(None)))
    names = [name.strip() for name in outer.split(",")]
    if any(name.startswith("MIG-") for name in names):
        return tuple(Card(name, size) for name in dict.fromkeys(names) for size in ask(name)[:1])
    return tuple(Card(name, size) for name, size in zip(names, ask(outer), strict=False))


def _ask_driver(variable: str | None) -> list[int]:
    """The memory of each device that a new process sees with this `CUDA_VISIBLE_DEVICES`."""
    environment = os.environ | ({} if variable is None else {VARIABLE: variable})
    command = [sys.executable, "-I", "-S", cuda_driver.__file__]
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, timeout=DRIVER_SECONDS, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired as error:
        raise UserError(
            f"the CUDA driver gives no answer within {DRIVER_SECONDS} s; see if nvidia-smi does, or use --device cpu"
        ) from error
    if done.returncode:
        why = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise UserError(f"the CUDA driver cannot be asked for its devices ({why[0]}); use --device cpu")
    return [int(size) for size in json.loads(done.stdout)]


def _torch_has_cuda() -> bool:
    """Whether torch was built for CUDA, by its files: importing it takes seconds."""
    spec = importlib.util.find_spec("torch")
    places = spec.submodule_search_locations if spec else None
    return any((Path(place) / "lib" / "libtorch_cuda.so").exists() for place in places or ())


def _chosen(cards: Sequence[Card], wanted: str) -> tuple[Card, ...]:
    """The cards that `local.devices` selects: numbers with commas."""
    numbers = [text.strip() for text in wanted.split(",")]
    if len(set(numbers)) < len(numbers):
        raise UserError(f"local.devices={wanted}: a card is named twice; give each once")
    return tuple(_numbered(cards, number, f"local.devices={wanted}") for number in numbers)


def _numbered(cards: Sequence[Card], number: str, given: str) -> Card:
    if not (number.isascii() and number.isdecimal()) or int(number) >= len(cards):
        raise UserError(
            f"{given}: no card is numbered {shown(number)}; this process sees {_count(len(cards))}, "
            f"numbered from 0 to {len(cards) - 1}"
        )
    return cards[int(number)]


def _refuse(wanted: str | None, packed: bool, why: str) -> None:
    if wanted is not None or packed:
        raise UserError(f"{'--pack' if packed else f'local.devices={wanted}'}: {why}")


def _note(layout: Layout, given: int | None, in_file: int | None) -> str | None:
    """A sentence about a number of jobs that no one has given."""
    most, each = len(layout.groups), len(layout.groups[0])
    if given or (in_file or 0) == most or (most == 1 and in_file is None) or (in_file or most) < most:
        return None
    where = "one card" if each == 1 else f"{each} cards"
    if in_file:
        return f"{most} of the {in_file} jobs of the file at a time, as {_count(most * each)} can be used; see --pack"
    return f"{most} jobs at a time, each on {where} of its own"


def _count(number: int) -> str:
    return f"{number} GPU{'' if number == 1 else 's'}"
