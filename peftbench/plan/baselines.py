"""Plans a new method against finished baselines: only the new method is trained, under the baselines' budget and seeds.

The baselines' records are only read. `records.comparable` decides which runs may be compared. Differences are reported
before anything is trained. The new method gets the trials that the baselines had, unless the file gives it others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from peftbench.errors import UserError
from peftbench.method.catalogue import Catalogue
from peftbench.plan import configurations, prepare, run_limits
from peftbench.plan.experiment import Experiment
from peftbench.plan.grid import Spec
from peftbench.plan.prepare import Prepared
from peftbench.plan.read import load
from peftbench.plan.run_limits import Measures
from peftbench.records import comparable, record, user_file
from peftbench.records.record import Record, RunRecord, TrialRecord
from peftbench.records.spec import MethodSpec, ProfileSpec, RunSpec
from peftbench.report.data import tunings

ROUNDING = 1e-6  # relative error of a budget derived from a size and its deviation


@dataclass(frozen=True)
class Baselines:
    """The finished runs that the new ones are compared with.

    Attributes:
        folder: the results directory of the baselines.
        runs: their finished runs that may be compared with the new ones.
        reference: identity of the task -> the reference's method and learning rate.
        remarks: sentences for the user.
        labels: labels of the new methods.
    """

    folder: Path
    runs: Sequence[RunRecord]
    reference: Mapping[str, tuple[MethodSpec, float]]
    remarks: Sequence[str]
    labels: Sequence[str]

    def results_dir(self, given: Path | None, name: str) -> Path:
        """The results directory of the new records.

        Args:
            given: the directory that the user chose, or None.
            name: name of the experiment, for the default.

        Raises:
            UserError: if it is the directory of the baselines.
        """
        chosen = given or Path("results") / f"{name}-{'-'.join(_safe(label) for label in self.labels)}"[:100]
        if chosen.resolve() == self.folder.resolve():
            raise UserError(f"--results {chosen}: that is where the baselines lie; name another directory")
        return chosen

    def planner(self, inner: Callable[[list[Record]], list[Spec]]) -> Callable[[list[Record]], list[Spec]]:
        """Wrap a planner so that every profile pass includes the reference, which ratios are relative to."""
        return lambda records: [self._with_reference(s) if isinstance(s, ProfileSpec) else s for s in inner(records)]

    def _with_reference(self, spec: ProfileSpec) -> ProfileSpec:
        method, lr = self.reference[spec.task.identity]
        if method.label in {m.label for m in spec.methods}:
            return spec
        return replace(spec, methods=(method, *spec.methods), lrs=(lr, *spec.lrs))


def prepared(
    experiment: Experiment,
    only: Sequence[str],
    data_dir: Path | None,
    plugins: Sequence[Path],
    folder: Path,
    measures: Callable[[Catalogue], Measures] = lambda _: run_limits.NONE,
) -> tuple[Prepared, Baselines]:
    """Plan the new methods alone, and check that they can be compared with the baselines.

    Args:
        experiment: the experiment, with the methods that the user added.
        only: filters such as "method=NAME"; without a method, all added methods are new.
        data_dir: folder of the data sets.
        plugins: files of method plugins.
        folder: results directory of the baselines.
        measures: gives the measurements that budgets of tokens and memory need.

    Returns:
        The plan and the baselines. A new method that the file does not name has its default hyperparameters.

    Raises:
        UserError: naming every difference that prevents a comparison.
    """
    catalogue = Catalogue(tuple(user_file.resolved(p) for p in plugins))
    known = catalogue.methods()
    wanted = [text.partition("=")[2] for text in only if text.startswith("method=")]
    listed = configurations.expand(_with_their_trials(experiment, folder), known, catalogue.hyper)
    there = {name for c in listed for name in (c.label, c.name)}
    if not wanted:
        if not experiment.added:
            raise UserError("--against: say which method is new: --only method=NAME, or --method 'NAME: {lr: 1e-3}'")
        only = [*only, *(f"method={c.label}" for c in listed if c.place[0] != "methods")]
    whole = load(experiment, [name for name in dict.fromkeys(wanted) if name not in there and name in known])
    asked = _with_their_seeds(_with_their_trials(whole, folder), folder)
    planned = prepare.prepare(asked, only, data_dir, plugins, measures)
    versions = {name: m.version for name, m in known.items()}
    if isinstance(whole.budget.seeds, int):
        return planned, baselines(planned, folder, versions)
    planned = _paired(planned, _finished(folder))
    base = baselines(planned, folder, versions)
    remark = "seeds: those that the reference has there, at once; a new method beside baselines has no looks of its own"
    return planned, replace(base, remarks=[*base.remarks, remark])


def baselines(planned: Prepared, folder: Path, versions: Mapping[str, int]) -> Baselines:
    """Select the baselines for a plan.

    Args:
        planned: the plan of the new methods.
        folder: results directory of the baselines.
        versions: method -> version of its current code.

    Raises:
        UserError: naming every difference that prevents a comparison.
    """
    name, new = planned.experiment.name, list(dict.fromkeys(p.label for p in planned.planned))
    everything = record.finished(_records(folder)).values()
    there = _finished(folder)
    trials = [r for r in everything if isinstance(r, TrialRecord)]
    mine = [r for r in there if r.experiment == name]
    if not mine:
        names = sorted({r.experiment for r in there})
        holds = f"it holds {', '.join(names)}" if names else "it holds no finished runs"
        raise UserError(f"--against {folder}: no finished runs of the experiment {name}; {holds}")
    if taken := sorted(set(new) & {r.spec.method.label for r in mine}):
        label = taken[0]
        raise UserError(
            f"--against {folder}: it has rows of {', '.join(taken)} already; give yours another label: "
            f"--method '{label}: {{label: {label}-mine}}'"
        )
    runs, mistakes = list[RunRecord](), list[str]()
    for spec in _one_a_setting(p.spec for p in planned.planned):
        alike, differences = _comparable(spec, mine)
        runs += alike
        mistakes += differences or [*_unpaired(spec, alike, planned), *_tuned_otherwise(spec, trials, planned)]
    if mistakes:
        listed = "".join(f"\n  {mistake}" for mistake in dict.fromkeys(mistakes))
        raise UserError(f"--against {folder}: not comparable with what {planned.experiment.file} asks for:{listed}")
    base = [r for r in runs if r.spec.method.label == planned.experiment.reference]
    reference = {r.spec.task.identity: _now(r, versions) for r in base}
    return Baselines(folder, runs, reference, [*_remarks(runs, versions), *_untuned(planned)], new)


def _one_a_setting(specs: Iterable[RunSpec]) -> list[RunSpec]:
    """Return a final run of each task, and of each value of the axes that belong to tasks."""
    return list({comparable.key(s): s for s in specs if s.trial is None}.values())


def _comparable(spec: RunSpec, there: Collection[RunRecord]) -> tuple[list[RunRecord], list[str]]:
    """The task's records under the same setting; without any, the differences of the closest record."""
    same_task = [r for r in there if r.spec.task.identity == spec.task.identity or r.spec.task.name == spec.task.name]
    if not same_task:
        tasks = ", ".join(sorted({r.spec.task.name for r in there}))
        return [], [f"no runs on {spec.task.name} there, only on {tasks}; leave it out with --only task=NAME"]
    apart = {r.path: comparable.differences(spec, r.spec) for r in same_task}
    alike = [r for r in same_task if not apart[r.path]]
    if alike:
        return alike, []
    return [], [f"{spec.task.name}: {difference}" for difference in min(apart.values(), key=len)]


def _unpaired(spec: RunSpec, alike: Sequence[RunRecord], planned: Prepared) -> list[str]:
    """What prevents pairing the new runs with these: seeds, the parameter budget or the reference."""
    mistakes, experiment, reference = list[str](), planned.experiment, planned.experiment.reference
    here = {p.spec.seed for p in planned.planned if p.spec.task.name == spec.task.name}
    base = {r.spec.seed for r in alike if r.spec.method.label == reference}
    if base and not here <= base:
        missing = ", ".join(map(str, sorted(here - base)))
        mistakes.append(
            f"{spec.task.name}: seeds: the reference {reference} has no finished run of seed {missing} there"
        )
    everything = {r.spec.seed for r in alike}
    if len(here) < len(everything) and here == set(range(experiment.budget.most_seeds)):
        mistakes.append(f"{spec.task.name}: seeds: {len(everything)} there, {len(here)} here")
    budgets = {round(b) for r in alike if (b := _budget(r)) is not None}
    target = experiment.budget.trainable_params
    if budgets and (target is None or all(abs(b - target) > max(1, ROUNDING * target) for b in budgets)):
        there = " or ".join(f"{b:,}" for b in sorted(budgets)[:2])
        wanted = "none" if target is None else f"{target:,}"
        mistakes.append(f"{spec.task.name}: trainable_params: {there} there, {wanted} here")
    if not base:
        mistakes.append(f"{spec.task.name}: no finished run of the reference {reference} there")
    return mistakes


def _records(folder: Path) -> list[Record]:
    if not folder.is_dir():
        raise UserError(f"--against {folder}: no such directory; give the one that holds the baselines' records")
    return record.readable(folder)


def _finished(folder: Path) -> list[RunRecord]:
    return [r for r in record.finished(_records(folder)).values() if isinstance(r, RunRecord)]


def _with_their_seeds(experiment: Experiment, folder: Path) -> Experiment:
    """Return the experiment with a fixed number of seeds where the baselines' ran until decided: the most there."""
    b = experiment.budget
    if isinstance(b.seeds, int):
        return experiment
    rows = Counter((comparable.key(r.spec), r.spec.method.label) for r in _finished(folder))
    seeds = max(rows.values(), default=b.seeds.least)
    return experiment.model_copy(update={"budget": b.model_copy(update={"seeds": seeds})})


def _paired(planned: Prepared, there: Collection[RunRecord]) -> Prepared:
    """Return the plan with the seeds that the reference has on each task."""
    reference = planned.experiment.reference
    base = {(comparable.key(r.spec), r.spec.seed) for r in there if r.spec.method.label == reference}
    kept = [p for p in planned.planned if p.spec.trial is not None or (comparable.key(p.spec), p.spec.seed) in base]
    return replace(planned, planned=kept or planned.planned)


def _with_their_trials(experiment: Experiment, folder: Path) -> Experiment:
    """Return the experiment with the trials that the baselines had, where it leaves them open."""
    records = [r for r in _records(folder) if r.experiment == experiment.name]
    trials = [r for r in records if isinstance(r, TrialRecord)]
    given, b, changes = experiment.budget.model_fields_set, experiment.budget, dict[str, Any]()
    if "trials" not in given and trials:
        changes["trials"] = len({r.spec.trial for r in trials if not r.spec.first_space})
        changes["tuning_steps"] = _their_tuning_steps(trials, [r for r in records if isinstance(r, RunRecord)])
    if "extensions" not in given and (b.trials or trials) and not _were_extended(trials):
        changes["extensions"] = 0
    return experiment.model_copy(update={"budget": b.model_copy(update=changes)}) if changes else experiment


def _their_tuning_steps(trials: Sequence[TrialRecord], finals: Sequence[RunRecord]) -> int | None:
    """The steps of a trial; None where trials were as long as final runs."""
    lengths = {(r.spec.task.identity, r.spec.train.steps) for r in finals}
    steps = {r.spec.train.steps for r in trials if (r.spec.task.identity, r.spec.train.steps) not in lengths}
    return min(steps, default=None)


def _were_extended(trials: Sequence[TrialRecord]) -> bool:
    """Whether the baselines' trials went on beyond their spaces, or had no reason to."""
    tables = tunings.of(trials)
    at_edge, _ = tunings.edge_counts(tables)
    return not at_edge or any(row.further for t in tables for row in t.rows)


def _tuned_otherwise(spec: RunSpec, records: Collection[TrialRecord], planned: Prepared) -> list[str]:
    """The differences between the baselines' trials and the new method's."""
    if "trials" in spec.method.exempt:
        return []
    name, b = planned.experiment.name, planned.experiment.budget
    ours = [r for r in records if r.experiment == name and r.spec.task.identity == spec.task.identity]
    trials = [r.spec for r in ours if not r.spec.first_space]
    numbers = {t.trial for t in trials}
    if len(numbers) != (b.trials or 0):
        return [f"{spec.task.name}: trials: {len(numbers) or 'none'} there, {b.trials or 'none'} here"]
    here = {p.spec.train.steps for p in planned.planned if p.spec.trial is not None and p.spec.task == spec.task}
    steps = {t.train.steps for t in trials}
    if here and not here & steps:
        return [f"{spec.task.name}: tuning_steps: {min(steps)} there, {min(here)} here"]
    if here and b.extensions and not _were_extended(ours):
        return [f"{spec.task.name}: extensions: none there, up to {b.extensions} here"]
    return []


def _budget(r: RunRecord) -> float | None:
    """The parameter budget of a run, from its trainable parameters and their deviation; None without a budget."""
    deviation, trainable = r.spec.method.deviation, r.parameters.trainable
    return None if deviation is None or not trainable else trainable / (1 + deviation)


def _remarks(runs: Sequence[RunRecord], versions: Mapping[str, int]) -> list[str]:
    methods = [r.spec.method for r in runs]
    old = sorted({m.label for m in methods if versions.get(m.name, m.version) != m.version})
    if not old:
        return []
    return [f"baselines by an older version of their method, whose results have changed since: {', '.join(old)}"]


def _untuned(planned: Prepared) -> list[str]:
    """New methods with a given learning rate, while the baselines were tuned."""
    tuned = {p.label for p in planned.planned if p.spec.trial is not None or "trials" in p.spec.method.exempt}
    given = dict.fromkeys(p.label for p in planned.planned if p.label not in tuned)
    if planned.experiment.budget.trials is None or not given:
        return []
    return [f"no trials, at the rate that was given, where the baselines had theirs: {', '.join(given)}"]


def _now(r: RunRecord, versions: Mapping[str, int]) -> tuple[MethodSpec, float]:
    """The record's method with its current version, and its learning rate, to be timed with the new one."""
    method = r.spec.method
    return replace(method, version=versions.get(method.name, method.version)), r.spec.train.lr


def _safe(label: str) -> str:
    return "".join(c if c.isalnum() or c in ".-_" else "_" for c in label)
