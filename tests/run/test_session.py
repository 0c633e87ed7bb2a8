"""A session's runs on tiny networks: what is equal between methods, what is recorded, and what never leaks."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from run_specs import spec
from torch import nn
from torch._dynamo.utils import counters

from peftbench import tasks
from peftbench.cache import Stores
from peftbench.errors import UserError
from peftbench.estimate.run import text_lengths
from peftbench.records.spec import ProfileSpec, RunSpec
from peftbench.run import session as session_module
from peftbench.run.profile import steps as stepping
from peftbench.run.session import Abandoned, Diverged, Session


@pytest.fixture(scope="module")
def session() -> Session:
    return Session("cpu", threads=1)


def test_a_run_repeated_after_other_runs_has_the_same_losses_and_predictions(session: Session) -> None:
    first = session.execute(spec("lora"))
    for other in ("full", "qlora", "prefix"):
        session.execute(spec(other))
    again = session.execute(spec("lora"))
    alone = Session("cpu", threads=1).execute(spec("lora"))
    assert first["curve"] == again["curve"] == alone["curve"]
    assert first["predictions"] == again["predictions"] == alone["predictions"]
    assert first["memory"]["at_peak"] == again["memory"]["at_peak"] == alone["memory"]["at_peak"]


@pytest.mark.parametrize("task", ["synthetic/classification", "synthetic/generation"])
def test_a_record_says_of_the_data_what_the_plan_said(session: Session, tmp_path: Path, task: str) -> None:
    asked = spec("lora", task, max_length=8)
    data = session.execute(asked)["data"]
    planned = text_lengths.data_summary(Stores(tmp_path), asked.backbone, asked.task, 8)
    assert data == msgspec.to_builtins(planned)
    assert data["splits"]["train"]["cut_texts"] > 0


def test_a_trial_says_nothing_of_the_test_split(session: Session) -> None:
    trial = session.execute(replace(spec("lora"), trial=0))
    assert set(trial["data"]["splits"]) == {"train", "validation"}


@pytest.mark.parametrize("method", ["lora", "adalora"])
def test_an_evaluation_that_decides_nothing_changes_no_loss_and_no_prediction(session: Session, method: str) -> None:
    """So that records.comparable may leave eval_every out."""
    never, often = (session.execute(spec(method, eval_every=n)) for n in (None, 1))
    assert len(often["curve"]["validation"]) > len(never["curve"]["validation"])
    assert often["curve"]["loss"] == never["curve"]["loss"]
    assert often["predictions"] == never["predictions"]


def test_methods_that_start_as_the_identity_have_the_same_first_loss(session: Session) -> None:
    """Same head, same first batch, no dropout of their own: only the method differs, and it changes nothing yet."""
    first = {m: session.execute(spec(m, seed=3))["curve"]["loss"][0] for m in ("full", "lora", "dora", "ia3")}
    assert max(first.values()) - min(first.values()) < 1e-6
    assert abs(session.execute(spec("full", seed=4))["curve"]["loss"][0] - first["full"]) > 1e-4


def test_accumulated_micro_batches_give_the_same_losses_as_whole_batches(session: Session) -> None:
    for task in ("synthetic/regression", "synthetic/generation"):
        whole = _undropped(session, spec("full", task))
        parts = _undropped(session, spec("full", task, accumulation=4))
        assert whole["curve"]["loss"] == pytest.approx(parts["curve"]["loss"], rel=1e-4)
        assert parts["memory"]["peak_bytes"] < whole["memory"]["peak_bytes"]


def _undropped(session: Session, run: RunSpec) -> dict[str, Any]:
    return session.execute(replace(run, backbone=replace(run.backbone, dropout=0.0)))


def test_a_run_records_what_a_reader_needs(session: Session) -> None:
    body = session.execute(spec("lora", eval_every=2))
    data = tasks.open_task("synthetic/classification")
    assert [p["step"] for p in body["curve"]["validation"]] == [2, 4, 6]
    assert len(body["curve"]["loss"]) == body["stopped_at"] == body["checkpoint_step"] == 6
    assert body["predictions"]["ids"] == [e.id for e in data.test]
    right = [p == y for p, y in zip(body["predictions"]["values"], body["predictions"]["labels"], strict=True)]
    assert body["metrics"]["test"]["accuracy"] == pytest.approx(sum(right) / len(right))
    counts = body["parameters"]
    assert counts["total"] == counts["added"] + counts["head"] + 29_664
    assert counts["stored_bytes"] > 4 * counts["trainable"]  # float32, and the file's header
    parts = body["memory"]["at_peak"]
    assert sum(parts.values()) == body["memory"]["peak_bytes"]
    assert parts["adapter"] == 4 * counts["trainable"]
    assert body["memory"]["attention"] == "sdpa"


def test_the_best_checkpoint_is_the_one_with_the_best_validation_score(session: Session) -> None:
    run = spec("full", "synthetic/regression", eval_every=1, checkpoint="best", steps=8, lr=5e-2)
    body = session.execute(run)
    scores = {p["step"]: p[body["metrics"]["primary"]] for p in body["curve"]["validation"]}
    assert scores[body["checkpoint_step"]] == max(s for s in scores.values() if s is not None)
    assert body["metrics"]["validation"]["spearman"] == scores[body["checkpoint_step"]]


def test_the_tested_weights_are_the_checkpoints(session: Session) -> None:
    """A run that stops where the other's best checkpoint was, with the same schedule, predicts the same."""
    run = spec("lora", "synthetic/regression", eval_every=2, checkpoint="best", decay="constant", warmup=0.0, steps=8)
    best = session.execute(run)
    shorter = replace(run.train, steps=best["checkpoint_step"], checkpoint="last", eval_every=None)
    assert session.execute(replace(run, train=shorter))["predictions"] == best["predictions"]


def test_early_stopping_ends_a_run_that_no_longer_improves(session: Session) -> None:
    run = spec("lora", lr=1e-12, head_lr=1e-12, steps=40, eval_every=1, patience=3)
    body = session.execute(run)
    assert body["stopped_at"] == 4  # the first evaluation is the best; three more did not beat it
    assert len(body["curve"]["loss"]) == 4


def test_a_diverging_run_says_at_which_step_and_keeps_its_curve(session: Session) -> None:
    with pytest.raises(Diverged, match="at step") as caught:
        session.execute(spec("full", "synthetic/regression", lr=1e30, head_lr=1e30, clip=None, steps=12))
    assert caught.value.body["curve"]["loss"]
    healthy = session.execute(spec("lora"))
    assert all(math.isfinite(x) for x in healthy["curve"]["loss"])  # nothing of it is left in the network


def test_a_run_that_is_asked_to_stop_leaves_the_network_as_it_was(session: Session) -> None:
    before = session.execute(spec("lora"))
    asked = iter([False, False, True])
    with pytest.raises(Abandoned, match="2 of 6"):
        session.execute(spec("full"), stop=lambda: next(asked))
    assert session.execute(spec("lora"))["predictions"] == before["predictions"]


def test_runs_on_one_network_read_their_tokens_once(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    read, encode = [], session.encode
    monkeypatch.setattr(session, "encode", lambda *given: (read.append(given[2]), encode(*given))[1])
    first = session.execute(spec("lora", max_length=15))
    again = session.execute(spec("lora", max_length=15))
    session.execute(spec("ia3", max_length=14))
    assert read == [15, 14]
    assert first["predictions"] == again["predictions"]


def test_data_that_changed_since_the_plan_are_refused(session: Session) -> None:
    run = spec("lora")
    with pytest.raises(UserError, match="changed since the plan"):
        session.execute(replace(run, task=replace(run.task, fingerprint="0" * 64)))


def test_generation_reports_perplexity_bleu_and_samples(session: Session) -> None:
    body = session.execute(spec("lora", "synthetic/generation"))
    assert {"perplexity", "bleu", "rougeL"} <= set(body["metrics"]["test"])
    assert set(body["metrics"]["validation"]) == {"perplexity"}
    assert body["samples"][0].keys() == {"prompt", "prediction", "reference"}
    assert all(isinstance(v, str) for v in body["predictions"]["values"])


def test_bfloat16_checkpointing_and_compiled_off_train_to_finite_losses(session: Session) -> None:
    run = spec("lora")
    for change in ({"dtype": "bfloat16"}, {"gradient_checkpointing": True}):
        body = session.execute(replace(run, backbone=replace(run.backbone, **change)))
        assert all(math.isfinite(x) for x in body["curve"]["loss"])
    assert (
        session.execute(replace(run, backbone=replace(run.backbone, dtype="bfloat16")))["memory"]["at_peak"]["weights"]
        < 0.6 * session.execute(run)["memory"]["at_peak"]["weights"]
    )


def test_times_are_missing_when_the_machine_is_shared() -> None:
    body = Session("cpu", threads=1, shared=True).execute(spec("lora"))
    assert body["time"] is None
    assert body["seconds"]["total"] > 0
    assert body["seconds"]["train"] is None


def test_trained_adapters_are_kept_where_asked(tmp_path: Path) -> None:
    run = spec("lora")
    Session("cpu", threads=1, adapters=tmp_path).execute(run)
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == [f"{run.slug}--{run.id}.head.safetensors", f"{run.slug}--{run.id}.safetensors"]


def passes(*methods: str, **changes: Any) -> ProfileSpec:
    runs = [spec(m) for m in methods]
    asked = ProfileSpec(
        runs[0].backbone,
        runs[0].task,
        tuple(r.method for r in runs),
        tuple(r.train.lr for r in runs),
        batch_size=8,
        max_length=32,
        rounds=2,
        warmup=1,
    )
    return replace(asked, **changes)


@pytest.mark.full
@pytest.mark.slow
def test_a_profile_times_every_method_and_merges_only_what_merges(session: Session) -> None:
    body = session.profile(passes("full", "lora", "adapter"))
    assert 0 <= body["time"]["background_cpu_share"] <= 1
    rows = {r["label"]: r for r in body["rows"]}
    assert list(rows) == ["full", "lora", "adapter"]
    assert rows["full"]["ratio"]["median"] == 1.0
    assert all(r["step_seconds"]["n"] == 2 for r in rows.values())
    shapes = [(c["batch"], c["phase"], c["typical"]) for c in rows["lora"]["latency"]]
    assert shapes == [(batch, "forward", True) for batch in (1, 8, 32)]
    assert all(c["merged"]["n"] == c["unmerged"]["n"] == 2 for c in rows["lora"]["latency"])
    assert [c["batch"] for c in body["base"]["latency"]] == [1, 8, 32]
    assert rows["lora"]["merge_max_change"] < 1e-5
    for label in ("full", "adapter"):
        assert all(c["merged"] is None for c in rows[label]["latency"])
        assert rows[label]["merge_max_change"] is None


@pytest.mark.full
@pytest.mark.slow
def test_a_profile_splits_the_step_and_holds_it_against_the_machine(session: Session) -> None:
    body = session.profile(passes("full", "lora", rounds=3))
    product = body["time"]["product"]
    assert product["flops"] == product["products"] * 2 * product["width"] ** 3
    for row in body["rows"]:
        steps, split, flops = row["step_seconds"]["samples"], row["split_seconds"], row["flops"]
        assert split["rounds"] == "the step's", "the CPU has no queue to wait for"
        parts = zip(*(split[phase]["samples"] for phase in ("forward", "backward", "optimizer")), strict=True)
        for whole, one in zip(steps, parts, strict=True):
            assert 0 < sum(one) <= whole
        assert row["tokens"] <= math.prod(row["shape"])
        assert row["tokens_per_second"]["median"] == pytest.approx(row["tokens"] / sorted(steps)[1])
        assert row["flops_per_second"]["median"] == pytest.approx(flops["total"] / sorted(steps)[1])
        assert flops["total"] == flops["forward"] + flops["backward"] + flops["optimizer"]
        shares = [
            flops["total"] / s / (product["flops"] / p)
            for s, p in zip(steps, product["seconds"]["samples"], strict=True)
        ]
        assert row["product_share"]["median"] == pytest.approx(sorted(shares)[1])
        assert row["product_share"]["low"] <= row["product_share"]["median"] <= row["product_share"]["high"]
        assert set(stepping.SOURCES) <= {*row} & {*body["sources"]}, "each figure says where it comes from"
    full, lora = body["rows"]
    assert full["ratio"] == {"median": 1.0, "iqr": 0.0, "low": 1.0, "high": 1.0, "n": 3}
    assert full["flops"]["backward"] > lora["flops"]["backward"], "a frozen weight takes no gradient"
    assert lora["flops"]["forward"] > full["flops"]["forward"]
    assert all(row["flops"]["optimizer"] == 0 for row in body["rows"]), "AdamW multiplies no matrices"


@pytest.mark.full
@pytest.mark.slow
def test_a_profile_without_the_reference_has_no_ratio(session: Session) -> None:
    (row,) = session.profile(passes("lora", rounds=1, warmup=0))["rows"]
    assert row["ratio"] is None
    assert row["product_share"]["low"] is None, "one round has no interval"


@pytest.mark.full
@pytest.mark.slow
def test_a_compiled_run_has_the_losses_of_a_plain_one_also_over_a_quantised_base(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Captured as for the default backend, which test_methods_on_backbones.py tries, but without its C++ compiler."""
    compile_with = nn.Module.compile
    monkeypatch.setattr(session_module, "_check_compiler", lambda: None)
    monkeypatch.setattr(nn.Module, "compile", lambda net: compile_with(net, backend="aot_eager"))
    run = spec("qlora", steps=3)
    run = replace(run, backbone=replace(run.backbone, dropout=0.0))  # a compiled graph draws its dropout otherwise
    plain = session.execute(run)
    counters.clear()
    compiled = session.execute(replace(run, backbone=replace(run.backbone, compile=True)))
    assert counters["stats"]["unique_graphs"] > 0
    assert compiled["curve"]["loss"] == pytest.approx(plain["curve"]["loss"], rel=1e-3)
    assert session.execute(run)["curve"] == plain["curve"]  # the next run is a plain one again


def test_compiling_without_a_compiler_is_refused_before_the_first_step(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._inductor import cpp_builder, exc

    def none() -> str:
        raise exc.InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none)
    run = spec("lora")
    with pytest.raises(UserError, match="needs a C\\+\\+ compiler"):
        session.execute(replace(run, backbone=replace(run.backbone, compile=True)))
