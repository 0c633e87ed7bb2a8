"""Seeds until decided: which runs the records call for, and what a file may ask."""

from __future__ import annotations

import random
from pathlib import Path

import factories
import planning
import pytest
from planning import recorded

from peftbench.errors import UserError
from peftbench.plan import design, next_runs
from peftbench.plan.experiment import Experiment
from peftbench.plan.grid import Planned
from peftbench.plan.selection import Selection
from peftbench.records import record
from peftbench.records.design import Claim
from peftbench.records.record import Record
from peftbench.records.spec import RunSpec, as_dict

TEXT = """\
name: e
backbone: tiny-encoder
tasks: [one]
budget: {steps: 5, seeds: {least: 3, most: 8, spending: pocock}}
margin: 0.05
profile: false
methods: [placeholder]
"""
MEANS = {"full": 0.80, "lora": 0.80, "lora rank=2": 0.30}


@pytest.fixture(autouse=True)
def _records_have_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.RECORDS", tmp_path / "records")


RECORDS = Path()


def asked(tmp_path: Path, text: str = TEXT) -> Experiment:
    return planning.load(tmp_path, text)


def score(spec: RunSpec) -> float:
    """A score that the spec alone decides, as a real run's is."""
    return MEANS[spec.method.label] + random.Random(spec.id).gauss(0, 0.002)


def ended(spec: RunSpec) -> Record:
    """A finished run's record, in a file, as its predictions are read when they are needed."""
    pattern = factories.run(spec.method.label, spec.seed, score(spec), experiment="e")
    asked_of = {"spec": as_dict(spec), "spec_id": spec.id, "slug": spec.slug, "hyper": dict(spec.method.hyper)}
    body = {**pattern, **asked_of, "stopped_at": spec.train.steps, "checkpoint_step": spec.train.steps}
    body["curve"] = {"loss": [1.0] * spec.train.steps, "validation": []}
    return record.read(factories.write_all(RECORDS, [body])[0])


def to_do(experiment: Experiment, everything: list[Planned], records: list[Record]) -> list[RunSpec]:
    return [spec for spec in next_runs.plan(experiment, everything, records) if isinstance(spec, RunSpec)]


def carried_out(experiment: Experiment, everything: list[Planned], records: list[Record]) -> list[Record]:
    """The records once nothing is left to run."""
    while specs := to_do(experiment, everything, records):
        records = [*records, *(ended(spec) for spec in specs)]
    return records


def seeds_of(records: list[Record]) -> dict[str, int]:
    labels = [r.spec.method.label for r in records if isinstance(r.spec, RunSpec)]
    return {label: labels.count(label) for label in labels}


def test_every_row_begins_with_the_least_seeds(tmp_path: Path) -> None:
    experiment = asked(tmp_path)
    first = to_do(experiment, planning.grid(experiment), [])
    assert sorted((s.method.label, s.seed) for s in first) == [(label, n) for label in sorted(MEANS) for n in range(3)]


def test_the_next_look_waits_until_all_runs_of_this_one_have_ended(tmp_path: Path) -> None:
    experiment = asked(tmp_path)
    everything = planning.grid(experiment)
    first = to_do(experiment, everything, [])
    assert to_do(experiment, everything, [ended(s) for s in first[:-1]]) == first[-1:]


def test_a_row_that_is_decided_stops_and_the_others_go_on(tmp_path: Path) -> None:
    experiment = asked(tmp_path, TEXT.replace("0.05", "0.006"))  # a margin that few seeds do not decide
    everything = planning.grid(experiment)
    seeds = seeds_of(carried_out(experiment, everything, []))
    assert seeds["lora rank=2"] == 3, "0.50 behind"
    assert seeds["lora"] == seeds["full"] > 3, "the reference goes on as long as a row needs it"


def test_when_every_row_is_decided_nothing_is_left(tmp_path: Path) -> None:
    experiment = asked(tmp_path)
    assert seeds_of(carried_out(experiment, planning.grid(experiment), [])) == dict.fromkeys(MEANS, 3)


@pytest.mark.parametrize("seed", range(10))
def test_a_grid_killed_anywhere_goes_on_to_the_same_runs(tmp_path: Path, seed: int) -> None:
    experiment = asked(tmp_path, TEXT.replace("0.05", "0.006"))
    everything = planning.grid(experiment)
    whole = carried_out(experiment, everything, [])
    drawn = random.Random(seed)
    records: list[Record] = []
    for _ in range(drawn.randint(1, 4)):  # so often is it killed, with some runs of a stage done, in any order
        specs = to_do(experiment, everything, records)
        done = drawn.sample(specs, drawn.randint(0, len(specs)))
        cut = [recorded(spec, "killed") for spec in specs if spec not in done][:1]
        records = [*records, *map(ended, done), *cut]
    resumed = [r for r in carried_out(experiment, everything, records) if r.is_finished]
    assert {r.spec_id for r in resumed} == {r.spec_id for r in whole}


def test_a_failed_run_is_a_seed_that_was_tried(tmp_path: Path) -> None:
    experiment = asked(tmp_path)
    everything = planning.grid(experiment)
    first = to_do(experiment, everything, [])
    lost = next(s for s in first if s.method.label == "lora")
    records = [recorded(s, "diverged") if s is lost else ended(s) for s in first]
    assert lost not in to_do(experiment, everything, records)


def test_a_row_that_always_fails_stops_at_the_first_look(tmp_path: Path) -> None:
    experiment = asked(tmp_path, TEXT.replace("0.05", "0.006"))
    everything = planning.grid(experiment)
    records: list[Record] = []
    while specs := to_do(experiment, everything, records):
        records += [recorded(s, "oom") if s.method.label == "lora rank=2" else ended(s) for s in specs]
    assert seeds_of(records)["lora rank=2"] == 3


def test_trials_come_first_and_all_seeds_share_them(tmp_path: Path) -> None:
    experiment = asked(tmp_path, TEXT.replace("steps: 5,", "steps: 5, trials: 2,"))
    planned = planning.grid(experiment)
    assert {p.spec.trial for p in planned} == {None}, "these configurations have no search space"
    assert len(to_do(experiment, planned, [])) == 9


def test_the_design_says_what_the_file_asks(tmp_path: Path) -> None:
    text = TEXT + "prefer: time\nclaims: [{method: lora, is: equal}, {method: full, against: lora, task: one}]\n"
    found = design.of(asked(tmp_path, text))
    assert found is not None
    assert (found.margin, found.prefer, found.looks, found.spending) == (0.05, "time", [3, 5, 8], "pocock")
    assert found.claims == [Claim("lora", "full", "equal"), Claim("full", "lora", None, "one")]


def test_an_ordinary_file_has_no_design(tmp_path: Path) -> None:
    assert design.of(asked(tmp_path, planning.TEXT)) is None


def test_a_new_method_asks_how_it_compares_with_the_reference(tmp_path: Path) -> None:
    plain = asked(tmp_path, planning.TEXT)
    asked_of_it = design.of(plain, ["mine"])
    assert asked_of_it is not None
    assert asked_of_it.claims == [Claim("mine", "full")]
    claimed = asked(tmp_path, planning.TEXT + "claims: [{method: mine, is: better}, {method: lora, is: equal}]\n")
    claimed_of_it = design.of(claimed, ["mine"])
    assert claimed_of_it is not None
    assert claimed_of_it.claims == [Claim("mine", "full", "better")]


@pytest.mark.parametrize(
    ("seeds", "said"),
    [
        ("{least: 1}", "budget.seeds.least"),
        ("{least: 9, most: 8}", "least: 9 is above most: 8"),
        ("{least: 3, most: 8, looks: [3, 8, 5, 8]}", "looks must ascend"),
        ("{least: 3, most: 8, looks: [2, 8]}", "looks begin with least, 3, and end with most, 8"),
        ("{least: 3, until: sure}", "budget.seeds.until"),
        ("{at_least: 3}", "unknown key 'at_least'"),
        ("0", "budget.seeds"),
        ("two", "budget.seeds"),
    ],
)
def test_seeds_that_are_no_plan_are_refused(tmp_path: Path, seeds: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        asked(tmp_path, TEXT.replace("{least: 3, most: 8, spending: pocock}", seeds))
    assert said in str(caught.value)
    assert "fixed" not in str(caught.value)


@pytest.mark.parametrize(
    ("claim", "said"),
    [
        ("{method: lorra}", "did you mean 'lora'"),
        ("{method: lora, against: nobody}", "unknown label 'nobody'"),
        ("{method: lora, against: lora}", "lora is compared with itself"),
        ("{method: full}", "full is compared with itself"),
        ("{method: lora, task: three}", "unknown task 'three'"),
        ("{method: lora, is: equal}, {method: lora, is: equal}", "it is asked before; remove one"),
    ],
)
def test_a_claim_on_what_is_not_there_is_refused(tmp_path: Path, claim: str, said: str) -> None:
    experiment = asked(tmp_path, TEXT + f"claims: [{claim}]\n")
    with pytest.raises(UserError) as caught:
        design.check(experiment, planning.CONFIGURATIONS)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("claims: [{method: lora, is: nicer}]", "claims[0].is"),
        ("claims: [{is: equal}]", "method is missing"),
        ("claims: [{method: lora, than: full}]", "unknown key 'than'"),
        ("margin: 0", "margin"),
        ("margin: two", "margin"),
        ("prefer: speed", "prefer"),
    ],
)
def test_a_question_that_is_none_is_refused(tmp_path: Path, more: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        asked(tmp_path, TEXT.replace("margin: 0.05\n", "") + more + "\n")
    assert said in str(caught.value)


def test_a_single_seed_cannot_be_selected_where_seeds_run_until_decided(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="seeds run until"):
        Selection.parse(["seed=0"], asked(tmp_path), planning.CONFIGURATIONS)
