"""The output of `plan`: rows as plain values, and a table and a summary as text."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from peftbench.estimate.run import forecast
from peftbench.estimate.run.run_memory import UNVERIFIED, RunPeak
from peftbench.plan import design, next_runs
from peftbench.records import record
from peftbench.records.record import Record
from peftbench.report.media.plain import visible
from peftbench.run.view import duration

if TYPE_CHECKING:
    from peftbench.estimate.run.run_time import Predicted
    from peftbench.plan.experiment import Experiment
    from peftbench.plan.grid import Planned
    from peftbench.plan.prepare import Prepared

WIDTH = 110
NOT_SIMULATED = RunPeak(None, note="not simulated: `plan` does that for grids that take a minute or longer")
SIZES = {
    "matched": "",
    "nearest": "nearest size",
    "explicit": "size given",
    "native": "only size",
    "exempt": "exempt",
}


def plan_rows(
    prepared: Prepared,
    records: Iterable[Record],
    predicted: Mapping[str, Predicted],
    peaks: Mapping[str, RunPeak],
) -> list[dict[str, Any]]:
    """Return one JSON-ready row for each run, in the order in which they run.

    Args:
        prepared: the experiment and its runs.
        records: all records of the results directory.
        predicted: the predicted time of each run by its spec id.
        peaks: the predicted peak memory of a step of each run by its spec id.
    """
    records = list(records)
    latest = record.latest(records)
    called_for = {p.spec.id for p in next_runs.wanted(prepared.experiment, prepared.planned, records)}
    rows = [
        _row(p, predicted[p.spec.id], peaks.get(p.spec.id, NOT_SIMULATED), None if p.waits else latest.get(p.spec.id))
        for p in prepared.planned
    ]
    return [{**row, "if_undecided": row["spec_id"] not in called_for} for row in rows]


def _row(p: Planned, predicted: Predicted, peak: RunPeak, last: Record | None) -> dict[str, Any]:
    s = p.spec
    return {
        "spec_id": s.id,
        "task": s.task.name,
        "stand_in_for": s.task.stand_in_for,
        "train_size": p.task.point.get("train_size"),
        "label": s.method.label,
        "method": s.method.name,
        "seed": s.seed,
        "trial": s.trial,
        "waits_for_trials": p.waits,
        "extends_space": bool(s.first_space),
        "trials_may_come": p.may_come,
        "hyper": dict(s.method.hyper),
        "lr": None if p.waits else s.train.lr,
        "steps": s.train.steps,
        "tokens": s.train.tokens,
        "seconds": s.train.seconds,
        "accumulation": s.train.accumulation,
        "trainable": p.trainable,
        "size": s.method.size,
        "deviation": s.method.deviation,
        "exempt": dict(s.method.exempt),
        "predicted_seconds": round(predicted.seconds, 1),
        "predicted_from": predicted.source,
        "calibrated_seconds": _rounded(predicted.measured),
        "predicted_peak_bytes": peak.bytes,
        "predicted_peak_batch": peak.batch,
        "predicted_peak_is_bound": peak.at_most,
        "predicted_peak_note": peak.note,
        "took_seconds": _rounded(last.body.seconds.total) if last else None,
        "status": last.status if last else None,
    }


def plan_summary(prepared: Prepared, rows: Sequence[Mapping[str, Any]], jobs: int, loading: float = 0.0) -> str:
    """Return what a user should know before the runs start: stand-ins, sizes off the budget, time and memory.

    For finished runs, it compares the calibration with the time that they took.

    Args:
        prepared: the experiment and its runs.
        rows: the result of `plan_rows`.
        jobs: worker processes.
        loading: seconds that each worker spends before and between its runs.
    """
    e, lines = prepared.experiment, []
    for task in prepared.facts.tasks:
        if task.unavailable is not None:
            lines.append(f"{task.spec.name} STANDS IN for {task.spec.stand_in_for}, and every result has its name.")
            lines.append(textwrap.indent(textwrap.fill(task.unavailable, WIDTH - 4), "    "))
    target = e.budget.trainable_params
    if target is not None:
        off = dict.fromkeys(
            f"{r['label']} {_off(r['deviation'])} ({SIZES[r['size']]})"
            for r in rows
            if r["size"] != "matched" and abs(r["deviation"]) > e.budget.tolerance
        )
        if off:
            start = f"off the budget of {target:,} trainable parameters by more than {e.budget.tolerance:.0%}: "
            lines.append(textwrap.fill(start + ", ".join(off), WIDTH, subsequent_indent="    "))
    lines += _exempt(rows)
    everything, rows = rows, [r for r in rows if not r["if_undecided"]]
    left = [r for r in rows if r["status"] != "finished"]
    spent = sum(r["predicted_seconds"] for r in left) / jobs + (loading if left else 0.0)
    rough = any(r["predicted_from"] == "arithmetic" for r in left)
    by = ", by arithmetic alone" if rough else ""
    by += ": `plan` measures" if rough and spent >= forecast.WORTH_SECONDS else ""  # it measures no shorter grid
    passes = ""
    if e.profile is not None:
        number = len({task.title for task in prepared.facts.tasks})
        passes = f", then a profile pass a task ({number}), each in {e.profile.processes} processes"
    done = len(rows) - len(left)
    lines.append(f"{e.name}: {_grid(rows)}, {done} finished, {len(left)} to run (~{duration(spent)}{by}){passes}")
    if e.parallel:
        lines.append(f"Each run is shared by {e.parallel.ranks} processes; its time is predicted for one.")
    lines += _asked(e)
    lines += [*_may_come(rows, jobs), *_if_undecided(everything, e.budget.most_seeds, jobs)]
    lines += [line for line in (_memory(rows), _error(rows, jobs)) if line]
    return "\n".join(lines)


def _grid(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the numbers of runs, of trials, and of trials that extend a search space."""
    trials, further = sum(r["trial"] is not None for r in rows), sum(r["extends_space"] for r in rows)
    beyond = f", {further} of these beyond an edge of their search space" if further else ""
    return f"{len(rows)} runs" + (f" ({trials} of them tuning trials{beyond})" if trials else "")


def _may_come(rows: Sequence[Mapping[str, Any]], jobs: int) -> list[str]:
    """Return a line on the trials that extensions may add, with the time that the most would take."""
    seconds = {(r["task"], r["label"]): r["predicted_seconds"] for r in rows if r["trial"] is not None}
    most = {(r["task"], r["label"]): r["trials_may_come"] for r in rows if r["trials_may_come"]}
    if not most:
        return []
    spent = sum(number * seconds[key] for key, number in most.items()) / jobs
    return [
        f"and 0 to {sum(most.values())} trials more (at most ~{duration(spent)}): they extend the search space "
        "where the best value lies at its edge"
    ]


def _asked(e: Experiment) -> list[str]:
    """Return a line on what the experiment asks of its comparison, if its file says anything."""
    asked = design.of(e)
    if asked is None:
        return []
    parts = [f"margin {asked.margin:g} in the metric's unit" if asked.margin is not None else "margin 2 points"]
    parts.append(f"of those within it, the least {asked.prefer}")
    if asked.claims:
        parts.append(f"{len(asked.claims)} planned question{'s' if len(asked.claims) > 1 else ''}")
    if asked.looks:
        late = "few seeds decide nothing" if asked.spending == "obrien_fleming" else "clear rows stop early"
        parts.append(f"looks at {', '.join(map(str, asked.looks))} seeds by spending: {asked.spending} ({late})")
    return [textwrap.fill(f"decided by: {'; '.join(parts)}", WIDTH, subsequent_indent="    ")]


def _if_undecided(rows: Sequence[Mapping[str, Any]], most: int, jobs: int) -> list[str]:
    """Return a line on the runs that follow where verdicts are not sure, with the time that the most would take.

    A table whose runs up to its last look have all finished is decided, or given up: none follows.
    """
    going_on = {_table(r) for r in rows if not r["if_undecided"] and r["status"] != "finished"}
    more = [r for r in rows if r["if_undecided"] and _table(r) in going_on]
    if not more:
        return []
    spent = sum(r["predicted_seconds"] for r in more) / jobs
    time = f"at most ~{duration(spent)}"
    return [f"and 0 to {len(more)} runs more ({time}): rows that are not decided go on, to {most} seeds at most"]


def _table(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row["task"], row["train_size"], row["steps"]


def _exempt(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return lines about methods that are exempt from a budget, and about those that alone are not tuned."""
    exempt: dict[tuple[str, str], list[str]] = {}
    for r in rows:
        for axis, reason in r["exempt"].items():
            exempt.setdefault((axis, reason), []).append(r["label"])
    lines = [
        f"exempt from {axis}: {', '.join(dict.fromkeys(labels))} ({reason})"
        for (axis, reason), labels in exempt.items()
    ]
    tuned = {r["label"] for r in rows if r["trial"] is not None}
    fixed = dict.fromkeys(r["label"] for r in rows if tuned and r["label"] not in tuned and "trials" not in r["exempt"])
    return [*lines, *([f"not tuned, at the rate given: {', '.join(fixed)}"] if fixed else [])]


def _error(rows: Sequence[Mapping[str, Any]], jobs: int) -> str:
    """Compare the calibration with the finished runs that it predicted; return "" if there are none."""
    done = [r for r in rows if r["status"] == "finished" and r["calibrated_seconds"] is not None]
    if not done:
        return ""
    predicted, took = (sum(r[key] for r in done) for key in ("calibrated_seconds", "took_seconds"))
    errors = sorted(abs(r["calibrated_seconds"] / r["took_seconds"] - 1) for r in done)
    return (
        f"calibration against {len(done)} finished runs: {duration(predicted / jobs)} predicted, "
        f"{duration(took / jobs)} taken ({predicted / took - 1:+.0%}; "
        f"a single run: median {errors[len(errors) // 2]:.0%}, at most {errors[-1]:.0%})"
    )


def _memory(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the range of the predicted peaks; "" if none was predicted."""
    known = sorted((r for r in rows if r["predicted_peak_bytes"] is not None), key=lambda r: r["predicted_peak_bytes"])
    if not known:
        return ""
    low, high = known[0], known[-1]
    where = f", {UNVERIFIED}" if any(UNVERIFIED in (r["predicted_peak_note"] or "") for r in known) else ""
    return (
        f"predicted peak memory of a training step: {_peak(low)} ({low['label']}) to {_peak(high)} ({high['label']})"
        f"{where}"
    )


def _peak(row: Mapping[str, Any]) -> str:
    """Format a peak: "145 MiB", "≤ 145 MiB" for an upper bound, "—" if it was not predicted."""
    if row["predicted_peak_bytes"] is None:
        return "—"
    size, unit = (row["predicted_peak_bytes"] / 2**20, "MiB")
    if size >= 1024:
        size, unit = size / 1024, "GiB"
    return (
        f"{'≤ ' if row['predicted_peak_is_bound'] else ''}{size:,.{2 if size < 10 else 1 if size < 100 else 0}f} {unit}"
    )


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 1)


def plan_table(rows: Sequence[Mapping[str, Any]], reference: str) -> str:
    """Return the grid as a table with one line for each method of each task, for all its seeds.

    Args:
        rows: the result of `plan_rows`.
        reference: the label of the method that ratios are relative to; it gets a star.
    """
    from tabulate import tabulate

    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for r in rows:
        groups.setdefault((r["task"], r["train_size"], r["steps"], r["label"], r["trial"] is not None), []).append(r)
    tuned, sized = any(tries for *_, tries in groups), any(r["train_size"] is not None for r in rows)
    lines = []
    for (task, size, _, label, tries), runs in groups.items():
        r = runs[0]
        finished, called_for = (sum(map(is_so, runs)) for is_so in (_is_finished, _is_called_for))
        failed = sum(one["status"] not in (None, "finished") for one in runs)
        lines.append(
            {
                "task": visible(task),
                **({"train size": str(size)} if sized else {}),
                "method": visible(label) + (" *" if label == reference else ""),
                **({"runs": "trials" if tries else "final"} if tuned else {}),
                "trainable": f"{r['trainable']:,}",
                "off budget": _off(r["deviation"]),
                "": SIZES[r["size"]] if r["deviation"] is not None else "",
                "set": _set(runs),
                "lr": _rates(runs),
                "steps": r["steps"] if r["seconds"] is None else f"{r['seconds']:g} s",
                "seeds": len(runs) if called_for == len(runs) else f"{called_for} to {len(runs)}",
                "peak": _peak(r),
                "each": f"~{duration(r['predicted_seconds'])}",
                "done": f"{finished}/{called_for}" + (f", {failed} failed" if failed else ""),
            }
        )
    right = (
        "right" if k in ("train size", "trainable", "off budget", "lr", "steps", "seeds", "peak", "each") else "left"
        for k in lines[0]
    )
    return str(tabulate(lines, headers="keys", tablefmt="simple", colalign=tuple(right), disable_numparse=True))


def _is_finished(row: Mapping[str, Any]) -> bool:
    return bool(row["status"] == "finished")


def _is_called_for(row: Mapping[str, Any]) -> bool:
    return not row["if_undecided"]


def _set(runs: Sequence[Mapping[str, Any]]) -> str:
    """Format the hyperparameters of a line. One that differs between trials has all its values."""
    keys = dict.fromkeys(k for r in runs for k in r["hyper"])
    values = {k: list(dict.fromkeys(str(r["hyper"].get(k, "default")) for r in runs)) for k in keys}
    return " ".join(f"{k}={'|'.join(v)}" for k, v in values.items())


def _rates(runs: Sequence[Mapping[str, Any]]) -> str:
    """Format the learning rate of a line: its range over trials, or "tuned" until the trials have chosen it."""
    known = sorted({r["lr"] for r in runs if r["lr"] is not None})
    return "tuned" if not known else " to ".join(f"{lr:g}" for lr in dict.fromkeys((known[0], known[-1])))


def _off(deviation: float | None) -> str:
    """Format a deviation: "-1.7%", or "301x" for many times the budget."""
    if deviation is None:
        return ""
    return f"{deviation + 1:,.0f}x" if deviation >= 9 else f"{deviation:+.1%}"
