"""The design of an experiment's comparison, as its records keep it."""

from __future__ import annotations

from collections.abc import Collection

from peftbench.errors import unknown
from peftbench.plan import selection
from peftbench.plan.configurations import Configuration
from peftbench.plan.experiment import Experiment, SeedsSection
from peftbench.records.design import FIXED, Claim, Design


def of(experiment: Experiment, new: Collection[str] = ()) -> Design | None:
    """The design of an experiment; None if its file asks nothing beyond a table.

    Args:
        experiment: the experiment.
        new: labels of new methods beside finished baselines. Each asks one thing, unless the file claims something of
            it: how it compares with the reference.
    """
    seeds = experiment.budget.seeds
    claims = [Claim(c.method, c.against or experiment.reference, c.relation, c.task) for c in experiment.claims]
    if new:
        claims = [claim for claim in claims if claim.method in new]  # the others were asked of the baselines
        about = {claim.method for claim in claims}
        claims += [Claim(label, experiment.reference) for label in new if label not in about]
    design = Design(
        margin=experiment.margin,
        prefer=experiment.prefer,
        looks=list(seeds.planned_looks) if isinstance(seeds, SeedsSection) else [],
        spending=seeds.spending if isinstance(seeds, SeedsSection) else FIXED.spending,
        claims=claims,
    )
    return None if design == FIXED else design


def check(experiment: Experiment, configurations: Collection[Configuration]) -> None:
    """Refuse a claim on a label or a task that the experiment does not have.

    Raises:
        UserError: it names the claim and what is valid.
    """
    labels = [c.label for c in configurations]
    tasks = [name for task in experiment.tasks for name in selection.names(task)]
    for i, claim in enumerate(experiment.claims):
        against = claim.against or experiment.reference
        for key, label in (("method", claim.method), ("against", against)):
            if label not in labels:
                raise unknown("label", label, labels, where=experiment.where(("claims", i, key)))
        if claim.method == against:
            raise experiment.error(("claims", i), f"{against} is compared with itself; name another under against")
        if claim in experiment.claims[:i]:
            raise experiment.error(("claims", i), "it is asked before; remove one, as each takes its share of the 5 %")
        if claim.task is not None and claim.task not in tasks:
            raise unknown("task", claim.task, tasks, where=experiment.where(("claims", i, "task")))
