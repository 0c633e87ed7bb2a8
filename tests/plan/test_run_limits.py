"""Budgets other than steps: tokens, seconds, memory; who is exempt from them; and that nothing else changes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import planning
import pytest
from hypothesis import given
from hypothesis import strategies as st
from planning import CONFIGURATIONS, TEXT, known, load, parameters, recorded

from peftbench.cache import Stores
from peftbench.errors import UserError
from peftbench.method.catalogue import Catalogue
from peftbench.plan import configurations, experiment, next_runs, run_limits
from peftbench.plan import grid as plan
from peftbench.plan.configurations import Configuration
from peftbench.plan.grid import Planned
from peftbench.records.spec import ProfileSpec, RunSpec, TrainSpec, as_dict
from peftbench.run.schedule import rate, rate_at
from peftbench.run.train import Fitted, _share

MEMORY = TEXT.replace("steps: 5", "steps: 5, memory: 1000B")


def peak_of(spec: RunSpec, _: Any) -> int:
    """A made-up step: 100 bytes for full, 20 otherwise, and 60 for every example of a part."""
    return (100 if spec.method.name == "full" else 20) + 60 * math.ceil(spec.train.batch_size / spec.train.accumulation)


MEASURES = run_limits.Measures(lambda backbone, task, length: 2.5 * length, peak_of)


def grid(asked: experiment.Experiment, ones: list[Configuration] | None = None) -> list[Planned]:
    return plan.grid(asked, known(asked), ones or CONFIGURATIONS, parameters, measures=MEASURES)


def refusal(tmp_path: Path, text: str) -> str:
    with pytest.raises(UserError) as caught:
        load(tmp_path, text)
    return str(caught.value)


# One length.


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("steps: 5", "steps: 5, tokens: 100", ["budget (line 4)", "steps and tokens", "exactly one of steps, tokens"]),
        ("steps: 5", "seconds: 9.0, tokens: 100", ["tokens and seconds; a budget has exactly one"]),
        ("steps: 5", "seconds: 0.0", ["budget.seconds", "greater than 0"]),
        ("steps: 5", "tokens: 100", ["tasks[1].steps (line 3)", "counts tokens", "write tokens: ... here"]),
        ("task: two, steps: 7", "task: two, seconds: 7.0", ["tasks[1].seconds", "counts steps"]),
        ("steps: 5", "steps: 5, tuning_steps: 3", ["tuning_steps is the length of trials", "trials: 4"]),
        ("steps: 5", "steps: 5, memory: 3", ["budget.memory", "given 3"]),
        ("steps: 5", "steps: 5, memory: 3GX", ["budget.memory (line 4)", "'3GX'", "24GiB"]),
        ("steps: 5", "steps: 5, memory: 3GB, accumulation: 2", ["memory decides", "leave out accumulation"]),
        ("task: two, ", "task: two, exempt: {memory: too long}, ", ["tasks[1].exempt.memory", "no budget of memory"]),
        ("task: two, ", "task: two, exempt: {memry: x}, ", ["tasks[1].exempt.memry", "did you mean 'memory'?"]),
        ("task: two, ", "task: two, exempt: {trials: ''}, ", ["tasks[1].exempt.trials", "at least 1 character"]),
    ],
)
def test_budgets_that_contradict_each_other_are_refused_with_place_and_fix(
    tmp_path: Path, old: str, new: str, said: list[str]
) -> None:
    message = refusal(tmp_path, TEXT.replace(old, new))
    for part in said:
        assert part in message


def test_seconds_with_several_workers_are_refused(tmp_path: Path) -> None:
    text = TEXT.replace("steps: 5", "seconds: 9.0").replace("steps: 7, ", "")
    assert "jobs (line 6)" in refusal(tmp_path, f"{text}jobs: 2\n")
    path = tmp_path / "few.yaml"
    path.write_text(
        "name: e\nbackbone: tiny-encoder\ntasks: [synthetic/pair]\nbudget: {seconds: 1.0}\nmethods: [full]\n"
    )
    prepared = planning.prepared(path)
    prepared.check_jobs(1)
    with pytest.raises(UserError, match="--jobs 2: runs that share the machine get less done"):
        prepared.check_jobs(2)


def test_steps_follow_from_tokens_alike_for_all_methods(tmp_path: Path) -> None:
    text = TEXT.replace("steps: 5", "tokens: 100_000").replace("steps: 7, ", "tokens: 900, ")
    found = grid(load(tmp_path, text))
    assert {(p.spec.task.name, p.spec.train.steps, p.spec.train.tokens) for p in found} == {
        ("one", math.ceil(100_000 / (16 * 2.5 * 128)), 100_000),
        ("two", math.ceil(900 / (4 * 2.5 * 9)), 900),
    }


@given(tokens=st.integers(1, 10**9), batch=st.integers(1, 512), mean=st.floats(1.0, 2048.0))
def test_so_many_steps_reach_the_tokens_and_one_less_does_not(tokens: int, batch: int, mean: float) -> None:
    steps = run_limits.steps_for(tokens, batch, mean)
    assert steps * batch * mean >= tokens * (1 - 1e-12)
    assert steps == 1 or (steps - 1) * batch * mean < tokens


def test_the_mean_length_is_that_of_the_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from peftbench.run.session import Session
    from peftbench.tasks import tokens

    monkeypatch.setenv("PEFTBENCH_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "e.yaml"
    path.write_text(TINY.replace("steps: 3", "tokens: 2_000"))
    prepared = planning.prepared(path)
    (spec,) = (p.spec for p in prepared.planned if p.label == "full" and p.spec.seed == 0)
    session = Session("cpu")
    dataset = session.dataset(spec.task)
    lengths = session.encode(dataset, session.backbone(spec.backbone, dataset), 48)["train"].lengths
    assert spec.train.steps == math.ceil(2_000 / (4 * sum(lengths) / len(lengths)))
    monkeypatch.setattr(tokens, "encode", lambda *_: pytest.fail("asked again"))
    assert [p.spec for p in planning.prepared(path).planned] == [p.spec for p in prepared.planned]


# Memory.


def test_a_batch_is_computed_in_the_fewest_parts_that_fit_and_stays_whole(tmp_path: Path) -> None:
    found = {p.label: p.spec.train for p in grid(load(tmp_path, MEMORY)) if p.spec.task.name == "one"}
    assert {label: (t.batch_size, t.accumulation) for label, t in found.items()} == {
        "full": (16, 2),  # 8 examples: 580 bytes; 16: 1060
        "lora": (16, 1),  # 980 bytes
        "lora rank=2": (16, 1),
    }
    assert {t.memory for t in found.values()} == {1000}


@given(limit=st.integers(0, 400), batch=st.integers(1, 40), fixed=st.integers(0, 100), each=st.integers(1, 30))
def test_no_fewer_parts_would_fit(limit: int, batch: int, fixed: int, each: int) -> None:
    def peak(parts: int) -> int:
        return fixed + each * math.ceil(batch / parts)

    fitting = [parts for parts in range(1, batch + 1) if peak(parts) <= limit]
    assert run_limits.fewest_parts(limit, batch, peak) == (min(fitting) if fitting else None)


def test_a_method_of_which_no_single_example_fits_is_refused_with_the_remedies(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        grid(load(tmp_path, MEMORY.replace("1000B", "150B")))
    for part in ("methods[0]", "160 bytes", "has 150", "max_length", "exempt: {memory: why}"):
        assert part in str(caught.value)


def test_one_pass_times_every_method_with_its_own_parts(tmp_path: Path) -> None:
    asked = load(tmp_path, MEMORY)
    everything = grid(asked)
    (first, *_) = next_runs.profiles(asked, everything, [recorded(p.spec) for p in everything])
    assert (first.accumulations, first.accumulation) == ((2, 1, 1), 1)
    assert ProfileSpec.from_dict(json.loads(json.dumps(as_dict(first)))).id == first.id


@pytest.mark.slow
def test_the_peak_of_the_largest_batch_is_simulated_as_the_run_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A budget just below the whole batch's own peak takes two parts, and one of exactly that peak takes one."""
    monkeypatch.setenv("PEFTBENCH_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "e.yaml"
    from peftbench.estimate.run import run_memory

    path.write_text(TINY)
    prepared = planning.prepared(path)
    p = next(p for p in prepared.planned if p.label == "full")
    whole = run_memory.at_worst(p.spec, p.task, prepared.catalogue)
    for limit, parts in ((whole, 1), (whole - 1, 2)):
        path.write_text(TINY.replace("steps: 3", f"steps: 3, memory: {limit}B"))
        train = next(q.spec.train for q in planning.prepared(path).planned if q.label == "full")
        assert (train.accumulation, train.batch_size, train.memory) == (parts, 4, limit)


# Exemptions.


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    return Catalogue(stores=Stores(tmp_path_factory.mktemp("answers")))


def test_an_exempt_method_keeps_its_size_and_its_batch_and_has_no_trials(tmp_path: Path) -> None:
    asked = load(tmp_path, MEMORY.replace("seeds: 2", "seeds: 2, trials: 3"))
    why = {"trainable_params": "one size", "memory": "too large", "trials": "published rate"}
    ones = [replace(c, space={"lr": (1e-4, 1e-2)}, exempt=why if c.label == "full" else {}) for c in CONFIGURATIONS]
    lora = replace(ones[1], label="free", exempt={"trainable_params": "its own rank"})
    found = {p.label: p for p in grid(asked, [*ones, lora]) if p.spec.task.name == "one"}
    assert (found["full"].trials, found["full"].spec.train.accumulation) == ((), 1)
    assert len(found["lora"].trials) == 3
    assert (found["free"].spec.method.size, found["free"].spec.method.hyper) == ("exempt", {})
    assert found["free"].trainable == 8 * 128


def test_a_task_may_be_exempt_for_all_methods(tmp_path: Path) -> None:
    text = TEXT.replace("seeds: 2", "seeds: 2, trials: 3").replace(
        "{task: two, ", "{task: two, exempt: {trials: tiny}, "
    )
    ones = [replace(c, space={"lr": (1e-4, 1e-2)}) for c in CONFIGURATIONS]
    found = grid(load(tmp_path, text), ones)
    assert {p.spec.task.name for p in found if p.spec.trial is not None} == {"one"}
    assert {p.spec.task.name: dict(p.spec.method.exempt) for p in found} == {"one": {}, "two": {"trials": "tiny"}}


def test_a_reason_may_be_reworded_without_running_again_and_an_exemption_may_not(tmp_path: Path) -> None:
    def spec(why: dict[str, str]) -> str:
        return replace(known_spec, method=replace(known_spec.method, exempt=why)).id

    known_spec = grid(load(tmp_path, TEXT))[0].spec
    assert spec({"memory": "a"}) == spec({"memory": "b"}) != spec({"trials": "a"})
    assert spec({}) == known_spec.id


@pytest.mark.parametrize(
    ("exempt", "said"),
    [
        ("{memory: x}", "there is no budget of memory to be exempt from"),
        ("{trainable_params: ''}", "every exemption needs its reason"),
        ("{trainable_params: 3}", "every exemption needs its reason"),
        ("{params: x}", "unknown budget 'params'"),
        ("yes", "valid: a mapping such as {memory: the reason}"),
    ],
)
def test_an_exemption_without_reason_or_budget_is_refused(
    tmp_path: Path, catalogue: Catalogue, exempt: str, said: str
) -> None:
    text = TEXT.replace("[placeholder]", f"[{{lora: {{exempt: {exempt}}}}}]")
    with pytest.raises(UserError) as caught:
        configurations.expand(load(tmp_path, text), catalogue.methods(), catalogue.hyper)
    assert said in str(caught.value)
    assert "methods[0].lora.exempt" in str(caught.value)


# The schedule under a limit of seconds.

TIMED = TrainSpec(lr=1.0, steps=0, batch_size=4, max_length=8, warmup=0.2, seconds=10.0)


@pytest.mark.parametrize("decay", ["linear", "cosine", "constant"])
def test_the_rate_over_time_is_the_rate_over_many_steps(decay: str) -> None:
    timed, stepped = replace(TIMED, decay=decay), replace(TIMED, decay=decay, seconds=None, steps=1000)
    for done in range(0, 1000, 37):
        assert rate_at((done + 1) / 1000, timed) == pytest.approx(rate(done, stepped), abs=2e-3)
    assert rate_at(1.0, timed) == pytest.approx(0.0 if decay != "constant" else 1.0, abs=1e-12)


def test_the_share_of_training_behind_a_step_counts_time_where_time_limits_it() -> None:
    assert _share(Fitted(stopped_at=4, seconds=2.0), TIMED) == pytest.approx(
        0.25
    )  # four steps of half a second, and one
    assert _share(Fitted(stopped_at=4, seconds=99.0), TIMED) == 1.0
    assert _share(Fitted(stopped_at=4), replace(TIMED, seconds=None, steps=10)) == 0.5


TINY = """\
name: e
backbone: tiny-encoder
tasks: [{task: synthetic/classification, limit_train: 64, limit_validation: 40, limit_test: 40}]
budget: {trainable_params: 1000, tolerance: 0.9, steps: 3, batch_size: 4, max_length: 48, seeds: 2}
methods: [full, lora]
"""
Run = Callable[..., dict[str, Any]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Carries out the first run of an experiment's label, changed as asked."""
    from peftbench.run.session import Session

    session = Session("cpu", threads=1)

    def carry_out(text: str = TINY, label: str = "lora", trial: int | None = None, **train: Any) -> dict[str, Any]:
        path = tmp_path / "e.yaml"
        path.write_text(text)
        found = planning.prepared(path).planned
        p = next(p for p in found if p.label == label and p.spec.trial == trial)
        return session.execute(replace(p.spec, train=replace(p.spec.train, **train)))

    return carry_out


def test_a_run_stops_at_the_first_step_after_its_seconds_and_says_that_it_does_not_repeat(run: Run) -> None:
    body = run(TINY.replace("steps: 3", "seconds: 0.4"))
    trained, steps = body["trained"], body["stopped_at"]
    assert trained["repeatable"] is False
    assert trained["seconds"] >= 0.4
    assert steps == len(body["curve"]["loss"]) > 1
    assert trained["seconds"] - max(body["time"]["step_seconds"]["samples"]) < 0.4, "and not one step later"
    assert body["metrics"]["test"]["accuracy"] is not None


def test_a_run_of_steps_repeats_and_counts_its_tokens(run: Run) -> None:
    trained = run()["trained"]
    assert (trained["repeatable"], trained["seconds"]) == (True, None)
    assert 3 * 4 <= trained["tokens"] <= 3 * 4 * 48
    assert run(steps=6)["trained"]["tokens"] > trained["tokens"]


# A trial never sees the test split.

TRIALS = TINY.replace("seeds: 2", "seeds: 2, trials: 2")


def test_a_trial_is_judged_on_validation_and_never_reads_the_test_split(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peftbench.run import one_run as running

    looked = []
    scores = running.Run._scores

    def watched(self: Any, split: str) -> Any:
        looked.append(split)
        assert "test" not in self.data
        assert self.dataset.test == ()
        return scores(self, split)

    monkeypatch.setattr(running.Run, "_scores", watched)
    body = run(TRIALS, trial=0)
    assert set(looked) == {"validation"}
    assert "test" not in body["metrics"]
    assert "predictions" not in body
    assert body["metrics"]["validation"]["accuracy"] is not None
    assert (body["metrics"]["primary"], body["metrics"]["direction"]) == ("accuracy", "max")


def test_trials_of_all_methods_begin_with_the_same_batches_and_head(run: Run) -> None:
    first = [run(TRIALS, label, trial)["curve"]["loss"][0] for label in ("full", "lora") for trial in (0, 1)]
    assert max(first) - min(first) < 1e-6
    assert abs(run(TRIALS.replace(", trials: 2", ""))["curve"]["loss"][0] - first[0]) > 1e-4
