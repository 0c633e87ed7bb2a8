"""What the benchmarks claim before they time anything: both sides do the same work; and what they say about results."""

from __future__ import annotations

import importlib
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import Zoo
from transformers import AutoModel, AutoTokenizer

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import cases  # noqa: E402
import figure  # noqa: E402
import fixed_costs  # noqa: E402
import grid  # noqa: E402
import part_clocks  # noqa: E402
import run_overhead  # noqa: E402
import targets  # noqa: E402
import twins  # noqa: E402

CPU = torch.device("cpu")


def hyper(case: cases.Case) -> cases.Case:
    """The case with numbers that fit a tiny network, and without double quantisation, where bytes may differ."""
    small = {"prefix": {"length": 3}, "prompt": {"length": 3}, "vera": {"rank": 6}, "adalora": {"rank": 2}}
    small |= {method: {"double_quant": False} for method in ("qlora", "qdora")}
    settings = {**case.hyper, **small.get(case.method, {})}
    return cases.Case(case.method, case.config, settings, case.copy, case.quantised, case.floor)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["bert", "llama"])
@pytest.mark.parametrize("name", list(cases.CASES))
def test_both_sides_compute_the_same_and_both_can_be_stepped(zoo: Zoo, name: str, architecture: str) -> None:
    case = hyper(cases.CASES[name])
    made = twins.build(case, str(zoo[architecture].folder), "float32", CPU)
    batch = twins.batch_for(made.backbone, 4, 12)
    assert twins.difference(made, batch, case) < 1e-4
    for side in (made.ours, made.theirs):
        before = {n: p.detach().clone() for n, p in side.net.named_parameters() if p.requires_grad}
        side.stepper(batch)()
        after = dict(side.net.named_parameters())
        assert [n for n, p in before.items() if torch.equal(p, after[n])] == []


@pytest.mark.parametrize("name", ["lora, q v", "ia3", "prefix", "prompt", "layernorm", "qdora"])
def test_another_adapter_is_seen_in_the_difference(zoo: Zoo, name: str) -> None:
    case = hyper(cases.CASES[name])
    made = twins.build(case, str(zoo["llama"].folder), "float32", CPU)
    batch = twins.batch_for(made.backbone, 4, 12)
    with torch.no_grad():
        next(p for p in made.ours.net.parameters() if p.requires_grad).add_(0.1)
    assert twins.difference(made, batch, case) > 1e-3


@pytest.mark.parametrize(("roles", "without"), [("q v", ["k", "o"]), ("*", [])])
def test_the_floor_goes_back_to_the_lowest_adapted_layers_and_no_further(
    zoo: Zoo, roles: str, without: list[str]
) -> None:
    case = cases.Case("lora", cases.lora(), {"roles": roles})
    side = twins.floor(case, str(zoo["bert"].folder), "float32", CPU)
    first = side.net.bert.encoder.layer[0].attention
    places = {"q": first.self.query, "k": first.self.key, "o": first.output.dense, "embed": side.net.bert.embeddings}
    asked: dict[str, bool] = {}
    for key, module in places.items():
        module.register_forward_hook(lambda m, i, out, key=key: asked.update({key: out.requires_grad}))
    made = twins.build(case, str(zoo["bert"].folder), "float32", CPU)
    side.stepper(twins.batch_for(made.backbone, 2, 8))()
    assert asked == {"q": True, "k": "k" not in without, "o": True, "embed": False}
    head = {id(p) for path in made.backbone.head for p in side.net.get_submodule(path).parameters()}
    assert {id(p) for p in side.net.parameters() if p.requires_grad} == head


@pytest.mark.parametrize(
    ("value", "low", "within", "said"),
    [
        (0.81, 0.79, False, "reached"),
        (0.88, 0.86, False, "met"),
        (0.89, 0.87, False, "missed"),
        (0.89, 0.87, True, "met within the interval"),
        (0.89, 0.885, True, "missed"),
        (0.89, None, True, "missed"),
    ],
)
def test_a_verdict_follows_from_value_interval_and_target(
    value: float, low: float | None, within: bool, said: str
) -> None:
    target = targets.Target(0.88, 0.82, within)
    assert targets.verdict(targets.Measured("x", value, target, low, value)) == said


def test_quality_is_the_same_only_within_the_noise_of_seeds() -> None:
    ours = {("t", "a"): [0.5, 0.7], ("t", "b"): [0.6, 0.8]}
    near = grid.quality(ours, {("t", "a"): [0.52, 0.72], ("t", "b"): [0.6, 0.8]})
    far = grid.quality(ours, {("t", "a"): [0.1, 0.3], ("t", "b"): [0.2, 0.4]})
    assert [row["method"] for row in near] == ["a", "b", None]
    assert near[-1]["difference"] == pytest.approx(-0.01)
    # variance 0.02 everywhere, four values a side: 2.776 sqrt(0.02 / 4 + 0.02 / 4), 4 degrees of freedom
    assert near[-1]["half_width"] == pytest.approx(2.7764 * 0.1, rel=1e-4)
    assert far[-1]["difference"] > far[-1]["half_width"]
    assert grid.quality({("t", "a"): [0.5]}, {("t", "a"): [0.6]})[-1]["half_width"] is None


def told(value: float) -> dict[str, Any]:
    side = {"median": value, "iqr": 0.0, "n": 2, "samples": [value, value]}
    ratio = {"median": value, "iqr": 0.0, "n": 2, "low": value, "high": value}
    env = {"packages": {"torch": "1"}, "cpu": {"model": "C", "capability": None}, "threads": 1, "code": {}}
    row = {"ours": side, "peft": side, "floor": side, "ratio": ratio, "above_floor": ratio, "difference": 0.0}
    about = {"model": "m", "dtype": "float32", "peft": "2"}
    return {"benchmark": "step_time", "about": about, "env": env, "rows": {"lora, all linear": row}}


def test_the_page_shows_each_value_beside_its_target_and_keeps_the_rest(tmp_path: Path) -> None:
    (tmp_path / "step_time-m-float32.json").write_text(json.dumps(told(0.85)))
    (tmp_path / "other.json").write_text("{}")
    inside = figure.section(figure.read(tmp_path), "res")
    assert "| lora, all linear | 0.88 | 0.82 | 0.850 [0.850, 0.850]" in inside
    assert "| lora, all linear, to the floor | 1.12 | 1.08 |" in inside
    assert "model m, dtype float32; C; 1 thread; torch 1, peft 2." in inside
    page = f"before\n{figure.BEGIN}\nold\n{figure.END}\nafter\n"
    assert figure.replaced(page, inside) == f"before\n{figure.BEGIN}\n{inside}{figure.END}\nafter\n"
    with pytest.raises(ValueError, match="once each"):
        figure.replaced("no markers", inside)


def test_memory_of_several_models_and_dtypes_is_shown_apart_each_beside_its_own_target(tmp_path: Path) -> None:
    rows = [
        {
            "case": case,
            "model": "m",
            "dtype": dtype,
            "shape": [2, 8],
            "ours": {"peak_bytes": 9},
            "peft": {"peak_bytes": 10},
        }
        for dtype in ("float32", "bfloat16")
        for case in ("lora, q v", "dora, q v", "ia3")
    ]
    memory = {**told(1.0), "benchmark": "step_memory", "about": {"peft": "2"}, "rows": rows}
    (tmp_path / "step_memory.json").write_text(json.dumps(memory))
    found = figure.read(tmp_path)
    assert list(found) == ["step_memory-m-float32", "step_memory-m-bfloat16"]
    said = [[targets.verdict(m) for m in targets.measured(part)] for part in found.values()]
    assert said == [["met", "missed", "met"], ["missed", "missed", "met"]]


def test_fixed_costs_are_held_to_those_of_the_checkout_before_where_there_is_one() -> None:
    seconds, ratio = told(2.0)["rows"]["lora, all linear"]["ours"], {"median": 0.4, "low": 0.3, "high": 0.5}
    rows = {"plan": {"now": seconds, "before": seconds, "ratio": ratio}, "verify": {"now": seconds}}
    found = targets.measured({**told(1.0), "benchmark": "fixed_costs", "rows": rows})
    assert [(m.what, targets.verdict(m), m.shown) for m in found] == [("plan", "met", "2.0 s of CPU against 2.0 s")]


def test_the_commands_of_fixed_costs_run_on_files_that_are_committed() -> None:
    named = {part for command in fixed_costs.COMMANDS.values() for part in command if "/" in part}
    assert [part for part in named if not (ROOT / part).exists()] == []


def test_the_same_json_gives_the_same_figure_to_the_byte() -> None:
    first, second = (figure.files("f", told(0.85)) for _ in range(2))
    assert first == second
    assert set(first) == {"f.png", "f.svg"}


def test_the_seconds_of_a_part_leave_out_the_parts_inside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    clocks, now = part_clocks.Clocks(), [10.0]
    monkeypatch.setattr(part_clocks.time, "process_time", lambda: now[0])

    def work(seconds: float, *inside: Any) -> None:
        now[0] += seconds
        for other in inside:
            other(seconds)

    inner = clocks.wrap(work, "inner")
    clocks.wrap(work, "outer")(2.0, inner, inner)
    inner(5.0)
    assert clocks.seconds == {"inner": 9.0, "outer": 2.0}
    assert clocks.calls == {"inner": 3, "outer": 1}


@pytest.mark.parametrize("name", list(part_clocks.PLACES))
def test_every_function_that_is_timed_as_a_part_is_there(name: str) -> None:
    module = importlib.import_module(name)
    for path, _ in part_clocks.PLACES[name]:
        owner, _, function = path.rpartition(".")
        assert hasattr(getattr(module, owner) if owner else module, function), path


def test_overhead_is_told_beside_that_of_another_checkout_and_the_wall_time_beside_what_it_may_take() -> None:
    def side(overhead: float, wall: float) -> dict[str, Any]:
        return {"overhead_seconds": {"median": overhead}, "wall_seconds": {"median": wall}}

    ratio = {"median": 0.4, "low": 0.35, "high": 0.45}
    both = {"sides": {"ours": side(40.0, 90.0), "before": side(100.0, 300.0)}, "ratio": {"overhead": ratio}}
    found = targets.READERS["run_overhead"](both)
    assert [(m.value, targets.verdict(m)) for m in found] == [(0.4, "met"), (0.5, "reached")]
    alone = targets.READERS["run_overhead"]({**both, "ratio": {}})
    assert [(m.what, m.shown) for m in alone] == [("make quickstart", "90 s of 180 s")]


def test_the_overhead_is_of_the_configurations_that_make_quickstart_runs() -> None:
    found = run_overhead.configurations((ROOT / "Makefile").read_text())
    assert found[:2] == ["method=full", "method=lora"]
    assert len(found) == 8
    with pytest.raises(SystemExit, match="EIGHT"):
        run_overhead.configurations("quickstart:")


def test_what_an_executor_adds_is_told_beside_what_it_may() -> None:
    each = {"median": 5.0, "low": 4.0, "high": 30.0}
    row = {"run_milliseconds": each, "begin_seconds": {"median": 1.25}}
    found = targets.READERS["executors"]({"rows": {"in this process": row, "local": row}})
    assert [(m.what, m.value, m.low, m.high, targets.verdict(m)) for m in found] == [
        ("local", 0.25, 0.2, 1.5, "reached")
    ]
    assert found[0].shown == "5.0 ms of 20 ms a run; 1.2 s to begin"


@pytest.mark.slow
@pytest.mark.full
def test_the_executors_carry_out_the_same_runs_of_no_work(tmp_path: Path) -> None:
    out = tmp_path / "executors.json"
    run("executors.py", "--runs", 3, "--rounds", 2, "--only", "local")("--out", out)
    found = json.loads(out.read_text())
    assert list(found["rows"]) == ["in this process", "local"]
    assert all(row["run_milliseconds"]["n"] == 2 for row in found["rows"].values())
    assert "| local | 1 | 0.5 |" in figure.section(figure.read(tmp_path), "res")


@pytest.mark.full
@pytest.mark.slow
def test_step_time_runs_from_the_command_line(zoo: Zoo, tmp_path: Path) -> None:
    out = tmp_path / "s.json"
    run("step_time.py", "--model", zoo["llama"].folder, "--only", "lora, q v", "--batch", 2, "--length", 8)(
        "--rounds", 2, "--device", "cpu", "--out", out
    )
    row = json.loads(out.read_text())["rows"]["lora, q v"]
    assert row["ratio"]["n"] == row["above_floor"]["n"] == 2


@pytest.mark.slow
@pytest.mark.full
def test_a_step_with_dropout_is_compared_with_three_others_and_its_kernels_are_named(zoo: Zoo, tmp_path: Path) -> None:
    out = tmp_path / "step_dropout.json"
    run("step_dropout.py", "--model", zoo["bert"].folder, "--batch", 2, "--length", 8)("--rounds", 2, "--out", out)
    found = json.loads(out.read_text())
    peaks = {side: row["peak_bytes"] for side, row in found["rows"].items() if "peak_bytes" in row}
    assert peaks["no dropout"] < peaks["own masks"] < peaks["torch's masks"]
    assert sum(k["share"] for k in found["rows"]["own masks"]["kernels"]) == pytest.approx(1)
    values = targets.measured(found)
    assert [m.value for m in values[:2]] == [found["ratios"][name]["median"] for name in targets.DROPOUT]
    assert all(m.low <= m.value <= m.high for m in values[:3])
    assert "| operation of a step |" in figure.section(figure.read(tmp_path), "res")


@pytest.mark.slow
@pytest.mark.full
def test_the_grid_runs_from_the_command_line(zoo: Zoo, tmp_path: Path) -> None:
    model, data, out = tmp_path / "model", tmp_path / "data", tmp_path / "g.json"
    AutoModel.from_pretrained(zoo["bert"].folder).save_pretrained(model)  # its head would be for other labels
    AutoTokenizer.from_pretrained(zoo["bert"].folder).save_pretrained(model)
    write_glue(data)
    run("grid.py", "--data-dir", data, "--model", model, "--steps", 2, "--batch", 4, "--length", 16)(
        "--seeds", 1, "--methods", "ia3", "prefix", "--out", out
    )
    found = json.loads(out.read_text())
    assert [(row["task"], row["method"]) for row in found["scripts"]] == [
        (task, method) for task in ("glue/rte", "glue/stsb") for method in ("ia3", "prefix")
    ]
    assert len(found["quality"]) == 6
    assert targets.measured(found)[0].value == found["ratio"]["median"] > 0


def run(script: str, *first: object) -> Any:
    def call(*rest: object) -> None:
        command = [sys.executable, str(ROOT / "benchmarks" / script), *map(str, (*first, *rest))]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr

    return call


def write_glue(folder: Path) -> None:
    draws = random.Random(0)
    labels = {"RTE": ["entailment", "not_entailment"], "STS-B": ["0.5", "2.0", "4.25"]}
    for task, column in (("RTE", "label"), ("STS-B", "score")):
        (folder / task).mkdir(parents=True)
        for split, count in (("train", 60), ("dev", 24)):
            lines = [f"index\tsentence1\tsentence2\t{column}"]
            for i in range(count):
                texts = [" ".join(draws.choices("abcdef", k=5)) for _ in range(2)]
                lines.append("\t".join([str(i), *texts, draws.choice(labels[task])]))
            (folder / task / f"{split}.tsv").write_text("\n".join(lines) + "\n")
