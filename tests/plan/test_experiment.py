"""The file format: what is read, and that every mistake is one message with its place and what is valid."""

from __future__ import annotations

from pathlib import Path

import pytest

from peftbench.cache import Stores
from peftbench.errors import UserError
from peftbench.method.catalogue import Catalogue
from peftbench.plan import configurations, experiment, strict_yaml
from peftbench.plan.configurations import Configuration
from peftbench.plan.read import find, load, packaged

BASE = """\
name: small
backbone: tiny-encoder
tasks: [synthetic/classification]
methods: [full]
"""


def read(tmp_path: Path, text: str) -> experiment.Experiment:
    path = tmp_path / "e.yaml"
    path.write_text(text, encoding="utf-8")
    return load(path)


def refusal(tmp_path: Path, text: str) -> str:
    with pytest.raises(UserError) as caught:
        read(tmp_path, text)
    return str(caught.value)


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    return Catalogue(stores=Stores(tmp_path_factory.mktemp("answers")))


def expanded(tmp_path: Path, methods: str, catalogue: Catalogue, more: str = "") -> list[Configuration]:
    read_ = read(tmp_path, BASE.replace("[full]", methods) + more)
    return configurations.expand(read_, catalogue.methods(), catalogue.hyper)


def refused_methods(tmp_path: Path, methods: str, catalogue: Catalogue, more: str = "") -> str:
    with pytest.raises(UserError) as caught:
        expanded(tmp_path, methods, catalogue, more)
    return str(caught.value)


def test_shorthands_and_long_forms_mean_the_same(tmp_path: Path) -> None:
    short = read(tmp_path, BASE)
    text = "name: small\nbackbone: {model: tiny-encoder}\ntasks: [{task: synthetic/classification}]\n"
    long = read(tmp_path, text + "methods:\n- full: {}\n")
    assert (short.backbone, short.tasks, short.budget) == (long.backbone, long.tasks, long.budget)
    assert [m.name for m in long.methods] == ["full"]


@pytest.mark.parametrize(("written", "value"), [("1e-3", 1e-3), ("5E-4", 5e-4), ("1.e-3", 1e-3), ("0.001", 1e-3)])
def test_a_rate_without_a_dot_is_a_number(tmp_path: Path, written: str, value: float) -> None:
    assert read(tmp_path, f"{BASE}train: {{head_lr: {written}}}\n").train.head_lr == value


def test_a_name_that_only_looks_like_a_number_stays_text(tmp_path: Path) -> None:
    assert read(tmp_path, f"{BASE}description: e5\n").description == "e5"


def test_integers_may_have_underscores(tmp_path: Path) -> None:
    assert read(tmp_path, f"{BASE}budget: {{trainable_params: 75_000}}\n").budget.trainable_params == 75_000


def test_profile_is_on_unless_false(tmp_path: Path) -> None:
    assert read(tmp_path, BASE).profile is not None
    assert read(tmp_path, f"{BASE}profile: false\n").profile is None
    assert read(tmp_path, f"{BASE}profile: {{rounds: 9}}\n").profile == experiment.ProfileSection(rounds=9)


def test_a_tasks_other_keys_are_its_options(tmp_path: Path) -> None:
    task = read(tmp_path, BASE.replace("[synthetic/classification]", "[{task: local, train: a.csv, steps: 3}]")).tasks[
        0
    ]
    assert (task.steps, task.options) == (3, {"train": "a.csv"})


def test_a_merged_mapping_gives_way_to_what_is_written(tmp_path: Path) -> None:
    text = f"{BASE}budget: {{<<: &b {{steps: 3, seeds: 2}}, steps: 4}}\n"
    assert (read(tmp_path, text).budget.steps, read(tmp_path, text).budget.seeds) == (4, 2)


@pytest.mark.parametrize(
    ("added", "said"),
    [
        ("budgt: {}", ["budgt (line 5)", "unknown key 'budgt'", "did you mean 'budget'?"]),
        ("budget: {step: 3}", ["budget.step (line 5)", "did you mean 'steps'?", "Valid: accumulation"]),
        ("budget:\n  steps: 1.5", ["budget.steps (line 6)", "given 1.5", "whole number"]),
        ("budget: {seeds: 0}", ["budget.seeds", "given 0", "greater than or equal to 1"]),
        ("budget: {tolerance: .nan}", ["budget.tolerance", "given nan"]),
        ("budget: {batch_size: 2, accumulation: 3}", ["accumulation: 3 parts of a batch of 2"]),
        ("train: {decay: lineer}", ["train.decay", "'lineer'", "did you mean 'linear'?"]),
        ("train: {patience: 3}", ["train (line 5)", "patience needs evaluations", "eval_every"]),
        ("train: {checkpoint: best}", ["checkpoint: best needs evaluations"]),
        ("profile: {round: 3}", ["profile.round", "did you mean 'rounds'?"]),
        ("profile: 3", ["profile (line 5)", "given 3", "processes, rounds, warmup"]),
        ("profile:", ["profile", "given nothing", "false"]),
        ("jobs: '2'", ["jobs", "given '2'", "whole number"]),
        ("device: gpu", ["device", "given 'gpu'", "auto, cpu, cuda"]),
        ("compile: yes please", ["compile", "'yes please'", "true or false"]),
        ("name: other", ["line 5", "'name'", "twice", "line 1"]),
        ("budget: {steps: 3, steps: 4}", ["line 5", "'steps' in budget", "twice"]),
        ("budget: &x {steps: *x}", ["budget.steps", "alias"]),
        ("description: !!python/object:os.system x", ["line 5", "!!python/object:os.system", "tag"]),
        ("? [a, b]\n: 3", ["line 5", "a key must be a word"]),
        ("budget: [", ["line 6", "not well-formed"]),
        ("budget:\n\tsteps: 3", ["line 6, column 1", "spaces, not tabs"]),
    ],
)
def test_a_mistake_names_file_place_and_what_is_valid(tmp_path: Path, added: str, said: list[str]) -> None:
    message = refusal(tmp_path, f"{BASE}{added}\n")
    assert message.startswith(str(tmp_path / "e.yaml"))
    for part in said:
        assert part in message


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("name: small\n", "", ["name is missing"]),
        ("small", "a b/c", ["name (line 1)", "'a b/c'", "letters"]),
        ("name: small", "name: café", ["'café'", "ASCII letters"]),
        ("name: small", "name: -x", ["'-x'", "begins with a letter or a digit"]),
        ("tiny-encoder", "{modle: x}", ["backbone.modle", "did you mean 'model'?", "model is missing"]),
        ("[synthetic/classification]", "[{stand_in: glue/rte}]", ["tasks[0]", "task is missing"]),
        ("[synthetic/classification]", "[{task: glue/rte, stpes: 3}]", ["tasks[0].stpes", "did you mean 'steps'?"]),
        ("[synthetic/classification]", "[{task: glue/rte, steps: x}]", ["tasks[0].steps", "given 'x'"]),
        ("[synthetic/classification]", "[]", ["tasks", "at least one"]),
        ("[full]", "full", ["methods", "given 'full'", "list"]),
        ("[full]", "[{lora: 3}]", ["methods[0].lora", "given 3", "mapping"]),
        ("[full]", "[full, {lora: {}, ia3: {}}]", ["methods[1]", "a method is a name"]),
    ],
)
def test_a_mistake_in_a_required_part_is_named(tmp_path: Path, old: str, new: str, said: list[str]) -> None:
    message = refusal(tmp_path, BASE.replace(old, new))
    for part in said:
        assert part in message


def test_all_mistakes_of_a_file_come_at_once(tmp_path: Path) -> None:
    message = refusal(tmp_path, f"{BASE}jobs: 0\nbudget: {{steps: 0}}\ntrain: {{warmup: 2}}\n")
    assert all(place in message for place in ("jobs (line 5)", "budget.steps (line 6)", "train.warmup (line 7)"))
    assert len(message.splitlines()) == 3


def test_aliases_that_multiply_are_refused_before_they_fill_the_memory(tmp_path: Path) -> None:
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    assert "aliases" in refusal(tmp_path, "\n".join(lines))


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "e.yaml"
    path.write_bytes(b"name: \xff\xfe")
    with pytest.raises(UserError, match=r"e\.yaml: not UTF-8 text \(byte 6\)"):
        load(path)


@pytest.mark.parametrize(("content", "said"), [("", "is empty"), ("- a", "holds a list")])
def test_a_file_without_a_mapping_is_refused(tmp_path: Path, content: str, said: str) -> None:
    assert said in refusal(tmp_path, content)


def test_a_missing_file_names_the_nearest_beside_it(tmp_path: Path) -> None:
    (tmp_path / "quick.yaml").write_text(BASE)
    with pytest.raises(UserError, match=r"no experiment file .*quikc\.yaml; did you mean .*quick\.yaml"):
        load(tmp_path / "quikc.yaml")


def test_packaged_experiments_are_found_by_name_and_are_valid(catalogue: Catalogue) -> None:
    for name, path in packaged().items():
        assert find(name) == path
        configurations.expand(load(name), catalogue.methods(), catalogue.hyper)


def test_places_are_spelt_as_people_write_them() -> None:
    assert strict_yaml.spell(("methods", 2, "lora", "rank")) == "methods[2].lora.rank"


def test_lists_expand_to_a_grid_with_labels(tmp_path: Path, catalogue: Catalogue) -> None:
    found = expanded(tmp_path, "[{lora: {rank: [2, 32], lr: [1e-3, 5e-3]}}]", catalogue)
    assert [c.label for c in found] == [
        "lora rank=2 lr=0.001",
        "lora rank=2 lr=0.005",
        "lora rank=32 lr=0.001",
        "lora rank=32 lr=0.005",
    ]
    assert [(c.hyper["rank"], c.lr) for c in found] == [(2, 1e-3), (2, 5e-3), (32, 1e-3), (32, 5e-3)]
    assert all(c.knob_is_given for c in found)


def test_only_what_differs_from_the_defaults_is_kept(tmp_path: Path, catalogue: Catalogue) -> None:
    (one,) = expanded(tmp_path, "[{lora: {rank: 8, alpha: 32}}]", catalogue)
    assert one.hyper == {"alpha": 32.0}
    assert isinstance(one.hyper["alpha"], float), "32 and 32.0 must have one identity"
    assert one.knob_is_given


def test_a_method_without_a_rate_takes_its_papers(tmp_path: Path, catalogue: Catalogue) -> None:
    (one,) = expanded(tmp_path, "[lora]", catalogue)
    assert one.lr == catalogue.methods()["lora"].lr


def test_a_label_names_a_configuration_and_a_list_of_labels_a_grid(tmp_path: Path, catalogue: Catalogue) -> None:
    found = expanded(tmp_path, "[{lora: {label: mine}}, {lora: {rank: [2, 4], label: [small, big]}}]", catalogue)
    assert [c.label for c in found] == ["mine", "small", "big"]


@pytest.mark.parametrize(
    ("methods", "said"),
    [
        ("[lroa]", ["methods[0] (line 4)", "unknown method 'lroa'", "did you mean 'lora'?", "--plugin FILE"]),
        ("[{lroa: {}}]", ["methods[0].lroa", "did you mean 'lora'?"]),
        ("[{lora: {rnak: 3}}]", ["methods[0].lora.rnak", "did you mean 'rank'?", "Valid: alpha"]),
        ("[full, {lora: {rank: 0}}]", ["methods[1].lora.rank", "given 0", "greater than or equal to 1"]),
        ("[{lora: {rank: [2, x]}}]", ["methods[0].lora.rank", "given 'x'", "whole number"]),
        ("[{lora: {alpha: yes}}]", ["methods[0].lora.alpha", "given 'yes'", "number"]),
        ("[{lora: {rank: []}}]", ["methods[0].lora.rank", "empty list"]),
        ("[{lora: {lr: -1}}]", ["methods[0].lora.lr", "given -1", "above 0"]),
        ("[{lora: {lr: true}}]", ["methods[0].lora.lr", "given True"]),
        ("[{lora: {lr: .inf}}]", ["methods[0].lora.lr", "given inf"]),
        ("[{lora: {alpha: .inf}}]", ["methods[0].lora.alpha", "given inf", "finite"]),
        ("[{lora: {alpha: [8, .nan]}}]", ["methods[0].lora.alpha", "given nan", "finite"]),
        ("[{adapter: {placement: paralel}}]", ["methods[0].adapter.placement", "did you mean 'parallel'?"]),
        ("[{lora: {label: ''}}]", ["methods[0].lora.label", "label is a text"]),
        ("[{lora: {rank: [2, 4], label: [a]}}]", ["methods[0].lora.label", "1 labels for 2 configurations"]),
        ("[lora, full, lora]", ["methods[2]", "the label 'lora' is taken by methods[0]", "label: ANOTHER"]),
    ],
)
def test_a_mistake_in_a_method_is_named(tmp_path: Path, catalogue: Catalogue, methods: str, said: list[str]) -> None:
    message = refused_methods(tmp_path, methods, catalogue)
    for part in said:
        assert part in message


def test_mistakes_in_several_methods_come_at_once(tmp_path: Path, catalogue: Catalogue) -> None:
    message = refused_methods(tmp_path, "[lroa, {lora: {rank: 0}}, fulll]", catalogue)
    assert [line.split(": ")[1][:10] for line in message.splitlines()] == ["methods[0]", "methods[1]", "methods[2]"]


def test_a_reference_that_is_no_label_is_refused(tmp_path: Path, catalogue: Catalogue) -> None:
    message = refused_methods(tmp_path, "[full, lora]", catalogue, "reference: flul\n")
    assert "reference (line 5)" in message
    assert "did you mean 'full'?" in message
