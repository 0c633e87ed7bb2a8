"""A method with nothing to train of its own goes through the whole pipeline: runs, files, plans, tables, figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import factories
import pytest
import torch
from commands import Call
from paper_trial import CLOSE, Trial
from reference_bert import bert
from run_specs import spec

from peftbench.errors import UserError
from peftbench.method import adapter_file
from peftbench.method.registry import find
from peftbench.report import assemble
from peftbench.run.session import Session
from peftbench.verify.contract import Case
from peftbench.verify.contract.case import AdaptedModel

EXPERIMENT = """\
name: probe
backbone: tiny-encoder
tasks: [{task: synthetic/classification, rows: 60}]
budget: {trainable_params: 2000, tolerance: 0.2, steps: 3, seeds: 2, max_length: 16, batch_size: 4}
profile: {processes: 1, rounds: 1, warmup: 0}
methods: [full, lora, linear_probe]
"""


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("PEFTBENCH_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def test_it_computes_the_bases_own_logits_and_has_no_state() -> None:
    trial = Trial("linear_probe")
    assert (trial.s, trial.model.edit.trained()) == ({}, [])
    logits = trial.net(input_ids=trial.ids, attention_mask=trial.mask).logits
    torch.testing.assert_close(logits, bert(trial.base, trial.ids, trial.mask), **CLOSE)
    with trial.model.edit.merged() as net:
        assert torch.equal(net(input_ids=trial.ids, attention_mask=trial.mask).logits, logits)


def test_its_steps_are_those_of_the_head_alone() -> None:
    model = AdaptedModel(Case(find("linear_probe")))
    groups = model.start().optimizer.param_groups
    assert [len(group["params"]) for group in groups] == [0, 0, 4]
    before = {n: p.detach().clone() for n, p in model.net.named_parameters()}
    model.train()
    moved = {n for n, p in model.net.named_parameters() if not torch.equal(before[n], p)}
    assert moved == {n for n in before if n.startswith(("bert.pooler.", "classifier."))}


@pytest.mark.parametrize("task", ["synthetic/classification", "synthetic/regression"])
def test_a_run_records_no_parameters_but_the_heads(tmp_path: Path, task: str) -> None:
    probe = spec("linear_probe", task)
    body = Session("cpu", threads=1, adapters=tmp_path).execute(probe)
    sizes = body["parameters"]
    assert (sizes["trainable"], sizes["added"]) == (0, 0)
    assert sizes["head"] > 0
    at_peak = body["memory"]["at_peak"]
    assert (at_peak["adapter"], at_peak["optimizer"]) == (0, pytest.approx(8 * sizes["head"], abs=64))
    (path,) = (p for p in tmp_path.iterdir() if not p.name.endswith(".head.safetensors"))
    assert adapter_file.load(path)[0] == {}
    assert sizes["stored_bytes"] < path.stat().st_size < 1024  # headers alone; the kept one names its base, too


def test_a_causal_model_is_refused_before_anything_runs() -> None:
    with pytest.raises(UserError, match="a causal model, has none: nothing would train"):
        Session("cpu", threads=1).execute(spec("linear_probe", "synthetic/generation"))


@pytest.mark.full
@pytest.mark.slow
@pytest.mark.usefixtures("in_this_process")
def test_a_grid_with_it_is_planned_run_profiled_and_reported(call: Call, tmp_path: Path) -> None:
    (tmp_path / "probe.yaml").write_text(EXPERIMENT)

    def output(*args: str) -> str:
        done = call(*args)
        assert done.code == 0, done.out + done.err
        return done.out

    assert "linear_probe -100.0% (only size)" in " ".join(output("plan", "probe.yaml").split())
    output("run", "probe.yaml", "--results", "results", "--device", "cpu")
    assert len(list((tmp_path / "results" / "runs").iterdir())) == 7, "six runs and a profile pass"
    rows = {r["method"]: r for r in json.loads(output("report", "results", "--json"))}
    assert (rows["linear_probe"]["trainable"], rows["linear_probe"]["n"]) == (0, 2)
    assert rows["linear_probe"]["latency_seconds"]["1"]["merged"] is None
    assert rows["linear_probe"]["peak_memory_bytes"] < rows["full"]["peak_memory_bytes"]


def test_a_causal_plan_with_it_says_where_and_why_it_stops(call: Call, tmp_path: Path) -> None:
    text = EXPERIMENT.replace("tiny-encoder", "tiny-decoder").replace("/classification", "/generation")
    (tmp_path / "probe.yaml").write_text(text)
    done = call("plan", "probe.yaml")
    assert done.code == 2
    assert "methods[2]" in done.err
    assert "linear_probe trains the task head alone" in done.err


def probed(seed: int, score: float) -> dict[str, Any]:
    method = factories.method_spec("linear_probe", name="linear_probe", hyper={}, size="native", deviation=-1.0)
    body = factories.run("linear_probe", seed, score, method=method)
    body["parameters"] |= {"trainable": 0, "added": 0, "stored_bytes": 96}
    return body


def test_a_point_without_parameters_stands_at_zero_in_tables_and_figures(tmp_path: Path) -> None:
    bodies = [*factories.grid(["full", "lora", "ia3"]), *(probed(seed, 0.61 + seed / 100) for seed in (0, 1))]
    factories.write_all(tmp_path, bodies)
    paths = assemble.write(tmp_path)
    assert "0 native" in assemble.text_table(tmp_path)
    (figure,) = (p for p in paths if p.name.endswith("quality-vs-trainable.svg"))
    drawn = figure.read_text()
    for text in (
        "linear_probe",
        "0",
        "trainable parameters (count, linear up to 1,000, then log, task head not counted)",
    ):
        assert f"<!-- {text} -->" in drawn


def test_a_figure_of_points_without_parameters_alone_is_drawn(tmp_path: Path) -> None:
    factories.write_all(tmp_path, [probed(0, 0.6), probed(1, 0.7)])
    (figure,) = (p for p in assemble.write(tmp_path) if p.name.endswith("quality-vs-trainable.svg"))
    assert "<!-- linear_probe -->" in figure.read_text()
