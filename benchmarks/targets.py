"""What the benchmarks are held to: targets, measured values beside them, and verdicts. Free of torch and of drawing.

A `Measured` is one bar of a figure and one row of a table: a ratio to what others take (below 1 is less), or a time as
a share of the time that it may take.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Target:
    """`must` is held where the value is at most that, `within` where its interval reaches down to it."""

    must: float
    reach: float | None
    within: bool = False


@dataclass(frozen=True)
class Measured:
    what: str
    value: float
    target: Target
    low: float | None = None  # of the 95 % interval
    high: float | None = None
    shown: str = ""  # the raw figures


LORA_ALL = Target(0.88, 0.82)
DORA = Target(0.65, 0.60)
OTHERS = Target(1.0, 0.9, within=True)
FLOOR = {"lora, q v": Target(1.15, 1.08), "lora, all linear": Target(1.12, 1.08)}
TO_LORA = Target(1.05, 1.02)
GRID = Target(0.36, 0.32)
DROPOUT = {"own masks / torch's masks": Target(0.92, 0.89), "own masks / Trainer + peft": Target(0.80, 0.72)}
RATE_SHARE, RATE_SHARE_REACH = 0.62, 0.68  # of the machine's rate of matrix products, at least
DROPOUT_MEMORY = Target(1.0, 0.95)
MEMORY_LORA = {"float32": Target(1.0, None), "bfloat16": Target(0.80, None)}
MEMORY_DORA = Target(0.82, None)
MEMORY_OTHERS = Target(1.0, None)
OVERHEAD = Target(0.5, 0.25)
QUICKSTART_SECONDS, QUICKSTART = 180, Target(1.0, 0.667)  # reach for 120 s
FIXED_COSTS = Target(0.5, 0.25)
EXECUTORS = {"local": 20.0, "ray": 50.0, "slurm": 50.0}  # milliseconds that they may add to a run
START = {"--help": 0.5, "plan of 500 runs": 2.0, "resume of 500 complete runs": 5.0, "report of 5,000 records": 20.0}


def verdict(m: Measured) -> str:
    """In words: reached, met, or missed."""
    if m.target.reach is not None and m.value <= m.target.reach:
        return "reached"
    if m.value <= m.target.must:
        return "met"
    if m.target.within and m.low is not None and m.low <= m.target.must:
        return "met within the interval"
    return "missed"


def measured(told: Mapping[str, Any]) -> list[Measured]:
    """The values of one benchmark's JSON, in its order. Raises ValueError for one that is not known."""
    reader = READERS.get(told.get("benchmark", ""))
    if reader is None:
        raise ValueError(f"unknown benchmark {told.get('benchmark')!r}; known: {', '.join(READERS)}")
    return reader(told)


def _step_time(told: Mapping[str, Any]) -> list[Measured]:
    found = []
    for name, row in told["rows"].items():
        target = {"lora, all linear": LORA_ALL, "dora, all linear": DORA}.get(name, OTHERS)
        ours, peft = (1e3 * row[side]["median"] for side in ("ours", "peft"))
        found.append(_ratio(name, row["ratio"], target, f"{ours:.1f} ms against {peft:.1f} ms"))
    for name, row in told["rows"].items():
        if "above_floor" in row:
            ours, floor = (1e3 * row[side]["median"] for side in ("ours", "floor"))
            shown = f"{ours:.1f} ms against {floor:.1f} ms"
            found.append(_ratio(f"{name}, to the floor", row["above_floor"], FLOOR[name], shown))
        if "to_lora" in row:
            ours, lora = (1e3 * row[side]["median"] for side in ("ours", "lora"))
            found.append(_ratio(f"{name}, to LoRA's", row["to_lora"], TO_LORA, f"{ours:.1f} ms against {lora:.1f} ms"))
    return found


def _step_dropout(told: Mapping[str, Any]) -> list[Measured]:
    """Ratios of times; the share of the machine's rate that must be reached over the share that is; ratio of peaks."""
    found = []
    for name, target in DROPOUT.items():
        ours, other = (1e3 * told["rows"][side]["median"] for side in name.split(" / "))
        found.append(_ratio(name, told["ratios"][name], target, f"{ours:.1f} ms against {other:.1f} ms"))
    share = {key: RATE_SHARE / told["rate_share"]["own masks"][key] for key in ("median", "low", "high")}
    interval = {"median": share["median"], "low": share["high"], "high": share["low"]}
    shown_share = f"{told['rate_share']['own masks']['median']:.1%} of the rate of matrix products"
    target = Target(1.0, round(RATE_SHARE / RATE_SHARE_REACH, 3))
    found.append(_ratio(f"{RATE_SHARE:.0%} of the machine's rate / reached", interval, target, shown_share))
    ours, other = (told["rows"][side]["peak_bytes"] for side in ("own masks", "torch's masks"))
    shown_peaks = f"{ours / 2**20:.1f} MiB against {other / 2**20:.1f} MiB"
    found.append(Measured("peak memory, own masks / torch's masks", ours / other, DROPOUT_MEMORY, shown=shown_peaks))
    return found


def _ratio(what: str, ratio: Mapping[str, Any], target: Target, shown: str) -> Measured:
    return Measured(what, ratio["median"], target, ratio["low"], ratio["high"], shown)


def _step_memory(told: Mapping[str, Any]) -> list[Measured]:
    found = []
    for row in told["rows"]:
        name, target = row["case"], MEMORY_OTHERS
        if name.startswith("lora,"):
            target = MEMORY_LORA[told["about"]["dtype"]]
        if name.startswith("dora,"):
            target = MEMORY_DORA
        ours, peft = (row[side]["peak_bytes"] for side in ("ours", "peft"))
        found.append(
            Measured(name, ours / peft, target, shown=f"{ours / 2**20:.1f} MiB against {peft / 2**20:.1f} MiB")
        )
    return found


def parts(name: str, told: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """One benchmark for each model and dtype, by name, where one file holds several."""
    if not isinstance(told.get("rows"), list):
        return {name: told}
    found: dict[str, dict[str, Any]] = {}
    for row in told["rows"]:
        about = {"model": row["model"], "dtype": row["dtype"], "shape": "x".join(map(str, row["shape"]))}
        key = f"{name}-{row['model']}-{row['dtype']}"
        found.setdefault(key, {**told, "about": {**about, **told["about"]}, "rows": []})["rows"].append(row)
    return dict(found)


def _grid(told: Mapping[str, Any]) -> list[Measured]:
    ours, peft = (told["seconds"][side]["median"] for side in ("ours", "peft"))
    return [_ratio("wall time of the grid", told["ratio"], GRID, f"{ours:.0f} s against {peft:.0f} s")]


def _start(told: Mapping[str, Any]) -> list[Measured]:
    """Seconds over the seconds allowed."""
    found = []
    for name, row in told["rows"].items():
        if name in START:
            seconds = row["wall_seconds"]["median"]
            shown = f"{seconds:.2f} s of {START[name]:g} s"
            found.append(Measured(name, seconds / START[name], Target(1.0, 0.5), shown=shown))
    return found


def _run_overhead(told: Mapping[str, Any]) -> list[Measured]:
    """The overhead to that of another checkout, if there was one; the wall time over the seconds allowed."""
    found, sides = [], told["sides"]
    if told["ratio"]:
        ours, before = (sides[side]["overhead_seconds"]["median"] for side in ("ours", "before"))
        shown = f"{ours:.0f} s of processor time against {before:.0f} s"
        found.append(_ratio("beside training steps, to before", told["ratio"]["overhead"], OVERHEAD, shown))
    seconds = sides["ours"]["wall_seconds"]["median"]
    shown = f"{seconds:.0f} s of {QUICKSTART_SECONDS} s"
    return [*found, Measured("make quickstart", seconds / QUICKSTART_SECONDS, QUICKSTART, shown=shown)]


def _fixed_costs(told: Mapping[str, Any]) -> list[Measured]:
    """Processor seconds over those of the checkout before; nothing where there was none to compare with."""
    found = []
    for name, row in told["rows"].items():
        if "ratio" in row:
            now, before = (row[side]["median"] for side in ("now", "before"))
            found.append(_ratio(name, row["ratio"], FIXED_COSTS, f"{now:.1f} s of CPU against {before:.1f} s"))
    return found


def _executors(told: Mapping[str, Any]) -> list[Measured]:
    """Milliseconds a run over those allowed."""
    found = []
    for name, row in told["rows"].items():
        if (allowed := EXECUTORS.get(name)) is not None:
            each = row["run_milliseconds"]
            low, high = (None if each[end] is None else each[end] / allowed for end in ("low", "high"))
            begin = row["begin_seconds"]["median"]
            shown = f"{each['median']:.1f} ms of {allowed:g} ms a run; {begin:.1f} s to begin"
            found.append(Measured(name, each["median"] / allowed, Target(1.0, 0.5), low, high, shown))
    return found


READERS = {
    "step_time": _step_time,
    "step_dropout": _step_dropout,
    "step_memory": _step_memory,
    "grid": _grid,
    "start": _start,
    "run_overhead": _run_overhead,
    "fixed_costs": _fixed_costs,
    "executors": _executors,
}


def rows(values: Sequence[Measured]) -> list[list[str]]:
    """The values as a Markdown table's rows: what, must, reach, measured, verdict."""
    return [
        [
            m.what,
            f"{m.target.must:g}",
            "lower" if m.target.reach is None else f"{m.target.reach:g}",
            shown(m),
            verdict(m),
        ]
        for m in values
    ]


def shown(m: Measured) -> str:
    interval = "" if m.low is None or m.high is None else f" [{m.low:.3f}, {m.high:.3f}]"
    raw = f" ({m.shown})" if m.shown else ""
    return f"{m.value:.3f}{interval}{raw}"


def setting(told: Mapping[str, Any]) -> str:
    """What ran, in one line, without a path or a name of a machine."""
    about, env = told["about"], told.get("env") or told["about"]["env"]
    skipped = ("env", "peft", "methods", "tasks", "runs", "only")
    kept = [
        f"{key.replace('_', ' ')} {value}" for key, value in about.items() if key not in skipped and value is not None
    ]
    packages = {**env["packages"], **({"peft": about["peft"]} if "peft" in about else {})}
    versions = [f"{name} {packages[name]}" for name in ("torch", "transformers", "peft") if packages.get(name)]
    machine = [env["cpu"]["model"], env["cpu"]["capability"], (env.get("gpu") or {}).get("name")]
    threads = [f"{env['threads']} thread" + "s" * (env["threads"] > 1)] if env["threads"] else []
    others = told.get("others_cpu_share")
    beside = [] if others is None else [f"other programs used {others:.0%} of the machine meanwhile"]
    commit = (env["code"].get("commit") or "")[:10]
    code = [f"code {commit}{', changed' if env['code'].get('dirty') else ''}"] if commit else []
    return "; ".join([", ".join(kept), *[str(m) for m in machine if m], *threads, ", ".join(versions), *beside, *code])
