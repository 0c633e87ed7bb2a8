"""Sizes beyond any machine are refused in planning, at once, with what is valid."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import Call
from planning import CONFIGURATIONS, TEXT, grid, known, load, parameters

from peftbench.cache import Stores
from peftbench.errors import LONGEST_MESSAGE, UserError
from peftbench.method.catalogue import Catalogue
from peftbench.plan import configurations, limits
from peftbench.plan import grid as plan
from peftbench.plan.selection import Selection

BASE = "name: e\nbackbone: tiny-encoder\ntasks: [synthetic/classification]\nmethods: [full]\n"


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    return Catalogue(stores=Stores(tmp_path_factory.mktemp("answers")))


@pytest.mark.parametrize(
    ("section", "most"),
    [
        ("budget: {steps: VALUE}", limits.STEPS),
        ("budget: {tokens: VALUE}", limits.TOKENS),
        ("budget: {seconds: VALUE}", limits.SECONDS),
        ("budget: {batch_size: VALUE}", limits.BATCH_SIZE),
        ("budget: {max_length: VALUE}", limits.LENGTH),
        ("budget: {seeds: VALUE}", limits.SEEDS),
        ("budget: {trials: VALUE}", limits.TRIALS),
        ("budget: {trainable_params: VALUE}", limits.PARAMETERS),
        ("train: {head_lr: VALUE}", limits.RATE),
        ("train: {weight_decay: VALUE}", limits.RATE),
        ("train: {eval_every: VALUE}", limits.STEPS),
        ("jobs: VALUE", limits.JOBS),
        ("profile: {processes: VALUE}", limits.PROCESSES),
        ("profile: {rounds: VALUE}", limits.ROUNDS),
        ("profile: {warmup: VALUE}", limits.ROUNDS),
        ("profile: {latency: {batches: [VALUE]}}", limits.BATCH_SIZE),
        ("profile: {latency: {lengths: [VALUE]}}", limits.LENGTH),
        ("profile: {latency: {tokens: VALUE}}", limits.LENGTH),
    ],
)
def test_a_value_beyond_its_limit_is_refused_and_the_limit_itself_is_read(
    tmp_path: Path, section: str, most: int
) -> None:
    load(tmp_path, f"{BASE}{section.replace('VALUE', str(most))}\n")
    for beyond in (most + 1, 10**23, 10**299):
        with pytest.raises(UserError, match=f"less than or equal to {most}$"):
            load(tmp_path, f"{BASE}{section.replace('VALUE', str(beyond))}\n")


@pytest.mark.parametrize(
    ("added", "said"),
    [
        ("profile: {latency: {batches: [" + "1, " * 200 + "]}}", "at most 100 items"),
        ("budget: {memory: 1" + "0" * 400 + "GB}", "at most 1,000TB"),
        ("budget: {memory: 1001TB}", "at most 1,000TB"),
    ],
)
def test_a_long_list_and_a_large_memory_are_refused(tmp_path: Path, added: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        load(tmp_path, f"{BASE}{added}\n")


@pytest.mark.parametrize(
    ("methods", "said"),
    [
        ("[{lora: {rank: 1000000000}}]", "rank.*given 1000000000; must be at most 1,048,576"),
        ("[{lora: {alpha: 1e300}}]", "alpha.*given 1e.300; must be a number that float32 can hold"),
        ("[{vera: {projection_seed: 1" + "0" * 30 + "}}]", "projection_seed.*at most 2,147,483,647"),
        ("[{lora: {lr: 1e7}}]", "lr.*given 10000000.0; a learning rate is a number above 0 and at most 1,000,000"),
        ("[{lora: {lr: 1" + "0" * 299 + "}}]", "lr.*300 characters.*at most 1,000,000"),
        ("[{lora: {first_seed: 1" + "0" * 20 + "}}]", "first_seed.*from 0 to 2147483647"),
        ("[{lora: {lr: [R], alpha: [R], rank: [R]}}]", "its lists make 1,000,000,000 configurations; give at most"),
    ],
)
def test_a_size_of_a_method_beyond_any_machine_is_refused(
    tmp_path: Path, catalogue: Catalogue, methods: str, said: str
) -> None:
    thousand = ", ".join(map(str, range(1, 1001)))
    experiment = load(tmp_path, BASE.replace("[full]", methods.replace("R", thousand)))
    with pytest.raises(UserError, match=said) as caught:
        configurations.expand(experiment, catalogue.methods(), catalogue.hyper)
    assert len(str(caught.value)) <= LONGEST_MESSAGE


def test_a_grid_of_too_many_runs_is_counted_before_it_is_made(tmp_path: Path) -> None:
    experiment = load(tmp_path, TEXT.replace("seeds: 2", "seeds: 10000, trials: 1000"))
    many = [c for c in CONFIGURATIONS for _ in range(10)]
    with pytest.raises(UserError, match="30 configurations x 2 tasks x 11,000 seeds and trials are 660,000 runs"):
        plan.grid(experiment, known(experiment), many, parameters)
    part = Selection(seeds=frozenset({1}), methods=frozenset({"full"}))
    assert len(grid(load(tmp_path, TEXT.replace("seeds: 2", "seeds: 10000")), part)) == 2


def test_a_budget_is_at_most_ten_times_the_network(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the budget has 1,000,000,000,000 trainable parameters; .* at most 50,000"):
        grid(load(tmp_path, TEXT.replace("trainable_params: 1000", "trainable_params: 1000000000000")))


def test_a_row_limit_is_one_that_memory_can_hold(call: Call, tmp_path: Path) -> None:
    path = tmp_path / "e.yaml"
    path.write_text(
        BASE.replace("[synthetic", "[{task: synthetic").replace("tion]", "tion, limit_test: 1" + "0" * 30 + "}]")
    )
    done = call("plan", str(path))
    assert (done.code, "limit_test must be a whole number from 1 to 1,000,000,000" in done.err) == (2, True)
