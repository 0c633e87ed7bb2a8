"""A batch without padding reaches a device without a mask: in runs, in the profile, and with a prompt in it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from run_specs import spec

from peftbench import tasks
from peftbench.backbones import attention, prompt
from peftbench.backbones.load import load
from peftbench.run.profile import inputs
from peftbench.run.session import Session
from peftbench.tasks import tokens

META = torch.device("meta")
IDS = torch.tensor([[5, 6, 7], [8, 9, 10]])


@pytest.fixture(scope="module", params=["synthetic/classification", "synthetic/generation"])
def task(request: Any, tmp_path_factory: Any) -> Any:
    """A task's data, and a network that stands on the meta device as far as its batches go."""
    dataset = tasks.open_task(request.param)
    model = "tiny-decoder" if dataset.kind == "generation" else "tiny-encoder"
    backbone = load(model, dataset.kind, 2)
    encoded = tokens.encode(dataset, backbone.tokenizer, 32, tmp_path_factory.mktemp("tokens"))["train"]
    return encoded, SimpleNamespace(
        device=META, tokenizer=backbone.tokenizer, kind=backbone.kind, net=backbone.net, decoder_start=None
    )


def test_the_profile_times_steps_on_the_batch_that_a_run_would_have(task: Any) -> None:
    data, net = task
    assert "attention_mask" not in inputs.typical(data, 1, net), "one text has no padding"
    net.device = torch.device("cpu")
    assert "attention_mask" in inputs.typical(data, 1, net), "on the CPU runs keep it"
    net.device = META


def test_the_profile_reads_exact_lengths_as_runs_do(task: Any) -> None:
    data, net = task
    assert ("attention_mask" in inputs.exact(data, 2, 8, net)) == (net.kind == "generation"), "prompts keep their mask"


def test_a_prompt_adds_no_mask_to_a_batch_that_has_none() -> None:
    config = SimpleNamespace(model_type="llama", max_position_embeddings=64)
    mask = torch.ones_like(IDS)
    with_mask = prompt.insert({"input_ids": IDS, "attention_mask": mask}, 2, 100, config)
    without = prompt.insert({"input_ids": IDS}, 2, 100, config)
    assert set(without) == {"input_ids"}
    assert torch.equal(without["input_ids"], with_mask["input_ids"])


@pytest.mark.parametrize("method", ["lora", "prompt", "prefix"])
def test_a_decoder_without_padding_computes_the_same_without_its_mask(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peftbench.method.registry import find
    from peftbench.verify.contract.case import AdaptedModel, Case, batch

    model = AdaptedModel(Case(find(method), {}, "tiny-decoder"))
    full = {k: v for k, v in batch(model.case).items() if k != "labels"} | {"attention_mask": torch.ones(4, 12).long()}
    expected = model.logits(full)
    monkeypatch.setattr(attention, "is_asynchronous", lambda device: True)
    del full["attention_mask"]
    with model.backbone.computing("float32"):
        torch.testing.assert_close(model.logits(full), expected)


def test_a_session_asks_for_deterministic_kernels_and_gives_the_usual_ones_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    usual = Session("cpu", threads=1).execute(spec("lora"))
    try:
        same_bits = Session("cpu", threads=1, deterministic=True).execute(spec("lora"))
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        Session("cpu", threads=1)
    assert not torch.are_deterministic_algorithms_enabled()
    assert same_bits["curve"] == usual["curve"]
    assert same_bits["predictions"] == usual["predictions"]
