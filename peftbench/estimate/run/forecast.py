"""Forecast what the runs of a plan will take on this machine: calibrated times and simulated memory peaks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from peftbench.estimate.run import calibrate, run_memory, run_time, text_lengths, trial_step
from peftbench.estimate.run.calibrate import Costs, Place
from peftbench.estimate.run.run_memory import RunPeak
from peftbench.estimate.run.run_time import Predicted
from peftbench.method.catalogue import Catalogue
from peftbench.plan.experiment import ProfileSection
from peftbench.plan.grid import Planned
from peftbench.plan.prepare import Prepared
from peftbench.plan.resolve import TaskFacts
from peftbench.plan.run_limits import Measures
from peftbench.records.record import Record
from peftbench.records.spec import BackboneSpec, RunSpec, TaskSpec
from peftbench.tasks import text_limits

WORTH_SECONDS = 60  # by arithmetic; shorter grids are not calibrated


@dataclass(frozen=True)
class Forecast:
    """What each run of a plan takes.

    Attributes:
        times: Predicted time by spec id.
        peaks: Predicted memory peak by spec id.
        loading: Seconds for loading, in addition to the runs.
    """

    times: dict[str, Predicted]
    peaks: dict[str, RunPeak]
    loading: float


def measures(data_dir: Path | None) -> Callable[[Catalogue], Measures]:
    """Return the factory of what `prepare` measures for budgets of tokens and of memory, and of what it refuses.

    Args:
        data_dir: Directory of the data sets, if given.
    """

    def of(catalogue: Catalogue) -> Measures:
        texts = partial(text_lengths.facts, catalogue.stores, data_dir=data_dir)

        def check_texts(backbone: BackboneSpec, task: TaskSpec, length: int, profile: ProfileSection | None) -> None:
            known = texts(backbone, task, length)
            text_limits.check(*known)
            if profile is not None:
                text_limits.check_timed(*known, profile.latency.lengths, profile.latency.tokens)

        def check_method(spec: RunSpec, task: TaskFacts) -> None:
            if prompt := trial_step.prompt_of(spec, task, catalogue):
                text_limits.check(*texts(spec.backbone, spec.task, spec.train.max_length), prompt)

        return Measures(
            lambda backbone, task, length: texts(backbone, task, length)[0].mean,
            lambda spec, task: run_memory.at_worst(spec, task, catalogue),
            check_texts,
            check_method,
        )

    return of


def forecast(
    prepared: Prepared, records: Sequence[Record], place: Place, say: Callable[[str], None] | None = None
) -> Forecast:
    """Forecast the runs of a plan.

    Args:
        prepared: The plan.
        records: Finished runs, as a source of times.
        place: Where the runs compute.
        say: Called with one line before anything is measured; None to measure nothing and use only what is known.
    """
    known = costs(prepared, place, say)
    times = run_time.predict(prepared.planned, records, known)
    done = {r.spec_id for r in records if r.is_finished}
    left = [p for p in prepared.planned if p.waits or p.spec.id not in done]
    peaks = run_memory.known(prepared.planned, known, prepared.catalogue)
    return Forecast(times, peaks, run_time.loading(left, known))


def peaks(prepared: Prepared, records: Sequence[Record], place: Place) -> dict[str, RunPeak]:
    """Return the memory peak by spec id of the runs without a finished record, simulated where it is not known yet.

    Args:
        prepared: The plan.
        records: The records so far.
        place: Where the runs compute. As many processes simulate.
    """
    done = {r.spec_id for r in records if r.is_finished}
    left = [p for p in prepared.planned if p.spec.id not in done]
    catalogue = prepared.catalogue
    known = calibrate.known(left, catalogue, place)
    if queries := run_memory.missing(left, known, catalogue):
        run_memory.remember(calibrate.simulate(queries, catalogue, place), catalogue)
    return run_memory.known(left, known, catalogue)


def costs(prepared: Prepared, place: Place, say: Callable[[str], None] | None = None) -> Costs:
    """Return what is known of the runs' costs on this machine.

    Args:
        prepared: The plan.
        place: Where the runs compute.
        say: Called with one line before what is unknown is measured; None to measure nothing. A grid that by arithmetic
            takes no longer than the calibration is never calibrated.
    """
    planned, catalogue = prepared.planned, prepared.catalogue
    known = calibrate.known(planned, catalogue, place)
    tasks, runs = calibrate.missing(planned, known)
    if say is None or sum(map(run_time.computed, planned)) < WORTH_SECONDS:
        return known
    if tasks or runs:
        what = f"how long {len(runs)} configurations take" if runs else "the lengths of texts"
        say(f"measuring {what} on this machine, once (up to half a minute) ...")
        calibrate.measure(tasks, runs, catalogue, place, _seeds(planned))
        known = calibrate.known(planned, catalogue, place)
    if queries := run_memory.missing(planned, known, catalogue):
        say(f"simulating a step of {len(queries)} configurations for its peak memory, once (some seconds each) ...")
        run_memory.remember(calibrate.simulate(queries, catalogue, place), catalogue)
    return known


def _seeds(planned: Sequence[Planned]) -> set[tuple[int, bool]]:
    """Return the seeds whose batches are needed, with whether they belong to trials."""
    return {(p.spec.seed, p.spec.trial is not None) for p in planned}
