"""What the runs of a plan will take on this machine: calibrated times and simulated peaks of memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from peftbench.estimate import calibrate, run_memory, run_time, text_lengths
from peftbench.estimate.calibrate import Costs, Place
from peftbench.estimate.run_memory import Peak
from peftbench.estimate.run_time import Predicted
from peftbench.method.catalogue import Catalogue
from peftbench.plan.grid import Planned
from peftbench.plan.prepare import Prepared
from peftbench.plan.run_limits import Measures
from peftbench.records.record import Record

WORTH_SECONDS = 60  # of a grid, by arithmetic: shorter ones are not calibrated


@dataclass(frozen=True)
class Forecast:
    """What each run takes, by spec id, and the seconds that loading takes beside the runs."""

    times: dict[str, Predicted]
    peaks: dict[str, Peak]
    loading: float


def measures(data_dir: Path | None) -> Callable[[Catalogue], Measures]:
    """What budgets of tokens and of memory ask while planning, for `prepare`."""

    def of(catalogue: Catalogue) -> Measures:
        return Measures(
            lambda backbone, task, length: text_lengths.mean_tokens(catalogue.stores, backbone, task, length, data_dir),
            lambda spec, task: run_memory.at_worst(spec, task, catalogue),
        )

    return of


def forecast(
    prepared: Prepared, records: Sequence[Record], place: Place, say: Callable[[str], None] | None = None
) -> Forecast:
    """The forecast of a plan's runs. With `say`, what is not known of this machine is measured first, and said so."""
    known = costs(prepared, place, say)
    times = run_time.predict(prepared.planned, records, known)
    done = {r.spec_id for r in records if r.is_finished}
    left = [p for p in prepared.planned if p.waits or p.spec.id not in done]
    peaks = run_memory.known(prepared.planned, known, prepared.catalogue)
    return Forecast(times, peaks, run_time.loading(left, known))


def costs(prepared: Prepared, place: Place, say: Callable[[str], None] | None = None) -> Costs:
    """What is known of what the runs take here. With `say`, what is not known is measured first, and said so.

    A grid that by arithmetic takes no longer than the calibration would is not calibrated.
    """
    planned, catalogue = prepared.planned, prepared.catalogue
    found = calibrate.known(planned, catalogue, place)
    tasks, runs = calibrate.missing(planned, found)
    if say is None or sum(map(run_time.computed, planned)) < WORTH_SECONDS:
        return found
    if tasks or runs:
        what = f"how long {len(runs)} configurations take" if runs else "the lengths of texts"
        say(f"measuring {what} on this machine, once (up to half a minute) ...")
        calibrate.measure(tasks, runs, catalogue, place, _seeds(planned))
        found = calibrate.known(planned, catalogue, place)
    if asked := run_memory.missing(planned, found, catalogue):
        say(f"simulating a step of {len(asked)} configurations for its peak memory, once (some seconds each) ...")
        run_memory.remember(calibrate.simulate(asked, catalogue, place), catalogue)
    return found


def _seeds(planned: Sequence[Planned]) -> set[tuple[int, bool]]:
    """The seeds whose batches are asked for, trials' apart."""
    return {(p.spec.seed, p.spec.trial is not None) for p in planned}
