"""From an experiment's file to a grid that is ready to run or to be shown: the steps that `run` and `plan` share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from peftbench import calibrate, configurations, experiment, facts, limits, peaks, plan, predict, probes
from peftbench.calibrate import Costs, Place
from peftbench.errors import UserError
from peftbench.experiment import Experiment
from peftbench.facts import Facts
from peftbench.manifest import Manifest
from peftbench.only import Only
from peftbench.peaks import Peak
from peftbench.plan import Planned, Spec
from peftbench.record import Record

WORTH_SECONDS = 60  # of a grid, by arithmetic: shorter ones are not calibrated


@dataclass(frozen=True)
class Prepared:
    """An experiment with its facts and all its runs."""

    experiment: Experiment
    facts: Facts
    planned: Sequence[Planned]
    manifest: Manifest

    def results_dir(self, given: Path | None) -> Path:
        return given if given is not None else Path("results") / self.experiment.name

    def planner(self, before: Iterable[Record], retry_failed: bool) -> Callable[[list[Record]], list[Spec]]:
        """The function from records to specs that the runner calls between its rounds."""
        first = list(before)
        return lambda records: plan.asked(self.experiment, self.planned, records, retry_failed, first)

    def check_jobs(self, jobs: int) -> None:
        """Raises UserError where so many workers would spoil what the budget counts."""
        if self.experiment.budget.seconds is not None and jobs > 1:
            raise UserError(f"--jobs {jobs}: runs that share the machine get less done in the budget's seconds; use 1")

    def standing(self, records: Iterable[Record]) -> Prepared:
        """With the values that won in the runs whose trials are settled."""
        return replace(self, planned=plan.standing(self.planned, records))

    def costs(self, place: Place, say: Callable[[str], None] | None = None) -> Costs:
        """What is known of what the runs take here. With `say`, what is not known is measured first, and said so.

        A grid that by arithmetic takes no longer than the calibration would is not calibrated.
        """
        found = calibrate.known(self.planned, self.manifest, place)
        tasks, runs = calibrate.missing(self.planned, found)
        if say is None or sum(map(predict.computed, self.planned)) < WORTH_SECONDS:
            return found
        if tasks or runs:
            what = f"how long {len(runs)} configurations take" if runs else "the lengths of texts"
            say(f"measuring {what} on this machine, once (up to half a minute) ...")
            calibrate.measure(tasks, runs, self.manifest, place, _seeds(self.planned))
            found = calibrate.known(self.planned, self.manifest, place)
        if asked := peaks.missing(self.planned, found, self.manifest):
            say(f"simulating a step of {len(asked)} configurations for its peak memory, once (some seconds each) ...")
            peaks.remember(calibrate.simulate(asked, self.manifest, place), self.manifest)
        return found

    def peaks(self, costs: Costs) -> dict[str, Peak]:
        """The peak memory of each run's step by spec id, as far as plans have asked."""
        return peaks.known(self.planned, costs, self.manifest)


def prepare(
    source: str | Path,
    only: Sequence[str] = (),
    data_dir: Path | None = None,
    plugins: Sequence[Path] = (),
    added: Sequence[str] = (),
) -> Prepared:
    """Read, check and plan the experiment `source`. Raises UserError for whatever is wrong with it.

    `added` are methods beside those of the file (experiment.load). A `data_dir` that is not there is a mistake; one
    that lacks a task's files leaves that task to its stand-in.
    """
    if data_dir is not None and not data_dir.is_dir():
        what = "is a file, not a directory" if data_dir.exists() else "there is no such directory"
        raise UserError(f"--data-dir {data_dir}: {what}; give the folder that holds the data sets, or leave it out")
    read = experiment.load(source, added)
    manifest = Manifest(tuple(p.expanduser().resolve() for p in plugins))
    expanded = configurations.expand(read, manifest.methods(), manifest.hyper)
    part = Only.parse(only, read, expanded)
    known = facts.gather(read, part, manifest, data_dir)
    probes.check(read.probes, (task.kind for task in known.tasks), data_dir)
    measures = limits.Measures(
        lambda backbone, task, length: manifest.mean_tokens(backbone, task, length, data_dir),
        lambda spec, task: peaks.at_worst(spec, task, manifest),
    )
    planned = plan.grid(read, known, expanded, manifest.parameters, part, measures)
    manifest.save()
    return Prepared(read, known, planned, manifest)


def _seeds(planned: Sequence[Planned]) -> set[tuple[int, bool]]:
    """The seeds whose batches are asked for, trials' apart."""
    return {(p.spec.seed, p.spec.trial is not None) for p in planned}
