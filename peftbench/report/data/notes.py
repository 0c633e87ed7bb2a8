"""The notes under a table: failures, repeated runs, measuring conditions, and limits of what the numbers show."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence

from msgspec import structs, to_builtins

from peftbench.records.data_summary import DataSummary
from peftbench.records.ranges import LEAST
from peftbench.records.record import ProfileRecord, Record, RunRecord
from peftbench.records.retries import LOST
from peftbench.records.spec import digest
from peftbench.report.data import data_text, designs, times
from peftbench.report.data.comparison import Comparison, Entry, constant_answer
from peftbench.report.data.times import Times

DISTURBED = 0.1  # share of the cores that other programs used, above which times count as disturbed
NOT_LEARNED = "not learned at this budget"


def collect(
    runs: Sequence[RunRecord],
    profiles: Sequence[ProfileRecord],
    machines: Mapping[str, Mapping[str, Times]],
    entries: Sequence[Entry],
    reference: str,
    learned: bool | None,
    repeated: Mapping[str, int],
) -> Iterator[str]:
    """Write the notes of one table.

    Args:
        runs: the runs of the table, failed ones included.
        profiles: the profile passes of its experiment and task, of one kind of machine.
        machines: the times by the kind of machine that measured them, and then by label. Those of the first kind are
            the table's.
        entries: its rows.
        reference: label of the reference.
        learned: whether the task was learned; None if undecided.
        repeated: spec id -> number of attempts that failed; those that the user stopped did not.

    Returns:
        Sentences, most important first.
    """
    if wanted := runs[0].spec.task.stand_in_for:
        name = runs[0].spec.task.name
        yield f"{wanted} could not be had: {name} ran in its place. These numbers say nothing about {wanted} itself."
    data, max_length = data_of(runs), runs[0].spec.train.max_length
    if learned is False:
        constant = constant_answer(entries[0].metric)
        cause = f" A likely cause: {why}." if (why := data_text.likely_cause(data)) else ""
        yield (
            f"{NOT_LEARNED.capitalize()}: {reference} does not beat the {constant} by more than its interval, so "
            f"differences between methods mean nothing here.{cause}"
        )
    if data is not None:
        yield from data_text.warnings(data, max_length)
    base = next((e for e in entries if e.label == reference), None)
    if base is None or base.mean is None:
        yield f"No finished run of the reference {reference}: nothing can be given relative to it."
    elif base.mean < LEAST:
        yield f"The reference {reference} has no positive mean score: nothing can be given relative to it."
    if plan := designs.changed(runs):
        yield plan
    yield from _failures(runs, repeated)
    if again := sum(repeated.get(r.spec_id, 0) for r in runs if r.is_finished):
        yield f"{_count(again, 'earlier attempt')} failed and the run was repeated; the first finished attempt counts."
    if any(e.size == "nearest" for e in entries):
        yield "Size 'nearest': no setting of the method lies within the tolerance of the budget; its nearest one ran."
    if heads := {h for e in entries if (h := e.parameter("head"))}:
        sizes = " or ".join(f"{h:,}" for h in sorted(heads))
        yield f"The task head has {sizes} parameters, which every method trains alike and 'trainable' leaves out."
    yield from _measured(runs, profiles, machines, entries)


def not_learned(c: Comparison) -> str:
    """Why a table's scores say nothing, for headings and other tables; with truncation where it is a likely cause."""
    why = data_text.likely_cause(c.data)
    return f"{NOT_LEARNED} ({why})" if why else NOT_LEARNED


def data_of(runs: Sequence[RunRecord]) -> DataSummary | None:
    """What was done to the task's data; None if no record says so. All runs of a table have the same data."""
    return next((r.body.data for r in runs if r.body.data is not None), None)


def _failures(runs: Sequence[RunRecord], attempts: Mapping[str, int]) -> Iterator[str]:
    failed = [r for r in runs if not r.is_finished]
    for r in failed[:12]:
        reason = " ".join((r.body.reason or "no reason recorded").split())
        short = reason if len(reason) <= 160 else reason[:157] + "..."
        count = attempts.get(r.spec_id, 0)
        often = f" after {count} attempts" if r.status in LOST and count > 1 else ""
        yield f"{r.spec.method.label}, seed {r.spec.seed}: {r.status}{often} ({short})"
    if len(failed) > 12:
        yield f"{_count(len(failed) - 12, 'more run')} failed; the records say why."


def _measured(
    runs: Sequence[RunRecord],
    profiles: Sequence[ProfileRecord],
    machines: Mapping[str, Mapping[str, Times]],
    entries: Sequence[Entry],
) -> Iterator[str]:
    """Environments and machines of the runs, and the profile passes behind the times."""
    environments = sorted({r.env_id for r in runs})
    if len(environments) > 1:
        names = ", ".join(e[:8] for e in environments)
        yield f"The runs come from {len(environments)} environments ({names}): their last digits may differ."
    labels = list(dict.fromkeys(e.runs[0].spec.method.label for e in entries))
    yield from _trained_on(runs, labels)
    yield from _measured_on(machines, labels)
    yield from (
        f"The profile pass ended as {p.status}: {' '.join((p.body.reason or 'no reason recorded').split())}"
        for p in profiles
        if not p.is_finished
    )
    used = {e.times.profile.spec_id: e.times.profile for e in entries if e.times}
    ranks = {r.spec.train.ranks for r in runs}
    if max(ranks, default=1) > 1:
        one = next(iter(runs)).spec.train
        how = f"{one.shards} processes with a shard of the base each" if one.shards > 1 else f"{one.ranks} processes"
        yield f"Each run was shared by {how}. Peak memory is of one; records have the times of the runs' own steps."
    elif not used:
        yield "Step time and latency are not measured: there is no finished profile pass of these configurations."
    elif len(used) > 1:
        yield f"The times come from {len(used)} profile passes: compare ratios rather than milliseconds."
    here = {_machine(r) for r in runs}
    foreign = sorted({p.env_id for p in used.values() if _machine(p) not in here})
    if foreign:
        yield f"The times were measured in another environment ({', '.join(e[:8] for e in foreign)}) than the runs."
    yield from dict.fromkeys(conditions(p) for p in used.values())
    if cold := [e.label for e in entries if e.times and e.times.is_cold]:
        yield (
            f"Warmed up too little: the first timed step took over 15 % longer than later ones ({', '.join(cold)}). "
            "A pass with more rounds of warm-up (profile: {warmup: 3}) is needed before these times are compared."
        )
    if noisy := [f"{e.label} ({'; '.join(e.times.noisy)})" for e in entries if e.times and e.times.noisy]:
        apart = "their quartiles further apart than half of the median"
        yield f"Times too noisy to compare, {apart}: {', '.join(noisy)}."


def _trained_on(runs: Sequence[RunRecord], labels: Sequence[str]) -> Iterator[str]:
    """Which row was trained on which machine, where there are several."""
    seeds: dict[str, dict[str, list[int]]] = {}
    for r in runs:
        seeds.setdefault(r.env.machine, {}).setdefault(r.spec.method.label, []).append(r.spec.seed)
    if len(seeds) < 2:
        return

    def named(machine: str, label: str) -> str:
        if not any(label in there for other, there in seeds.items() if other != machine):
            return label
        numbers = seeds[machine][label]
        return f"{label} (seed{'s' if len(numbers) > 1 else ''} {_numbers(numbers)})"

    parts = (
        f"{machine}: {', '.join(named(machine, label) for label in labels if label in seeds[machine])}"
        for machine in sorted(seeds)
    )
    yield f"Trained on {'; '.join(parts)}."


def _numbers(numbers: Iterable[int]) -> str:
    """The numbers in order, three or more neighbours as one range: `0, 2 to 9`."""
    parts: list[str] = []
    for _, group in itertools.groupby(enumerate(sorted(numbers)), lambda pair: pair[1] - pair[0]):
        together = [n for _, n in group]
        parts += [f"{together[0]} to {together[-1]}"] if len(together) > 2 else map(str, together)
    return ", ".join(parts)


def _measured_on(machines: Mapping[str, Mapping[str, Times]], labels: Sequence[str]) -> Iterator[str]:
    """Which row was timed on which kind of machine, where there are several, with the times that the table lacks."""
    if len(machines) < 2:
        return
    (first, shown), *others = machines.items()
    here = ", ".join(label for label in labels if label in shown)
    yield f"Times are compared within one kind of machine alone. Here they are of {first}: {here}."
    for machine, measured in others:
        parts = (f"{label} {_step(measured[label])}" for label in labels if label in measured)
        yield f"Measured on {machine}, and not in this table: {', '.join(parts)}."


def _step(t: Times) -> str:
    """The step time of a row, with its ratio to the reference in the same rounds."""
    step = "no step time" if t.step is None else f"{t.step.median * 1e3:.1f} ms a step"
    return step if t.ratio is None else f"{step} ({t.ratio.median:.2f} × {t.profile.spec.reference})"


def conditions(profile: ProfileRecord) -> str:
    """The conditions under which a profile pass measured its times, in a sentence."""
    number = profile.env.threads
    threads = f"with {_count(number, 'thread')}" if number is not None else ""
    if (several := profile.processes) > 1:
        threads += f"{', ' if threads else ''}in {several} processes"
    others = times.background_cpu_share(profile)
    if others is None:
        return f"Times: {', '.join(t for t in ('no other run of this command beside them', threads) if t)}."
    used = f"other programs used {others * 100:.0f} % of the machine meanwhile."
    if others <= DISTURBED:
        return f"Times: {'; '.join(t for t in (threads, used) if t)}"
    parts = "; ".join((", ".join(t for t in ("disturbed", threads) if t), used))
    return f"Times: {parts} The ratios suffer less, as they are taken within rounds."


def _machine(r: Record) -> str:
    """Digest of the environment without its threads: parallel runs share the cores, a profile pass has them all."""
    return digest(to_builtins(structs.replace(r.env, threads=None)))


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")
