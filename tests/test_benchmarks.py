"""What the benchmarks claim before they time anything: both sides do the same work; and what they say about results."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from architectures import Zoo

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import cases  # noqa: E402
import twins  # noqa: E402

CPU = torch.device("cpu")


def hyper(case: cases.Case) -> cases.Case:
    """The case with numbers that fit a tiny network, and without double quantisation, where bytes may differ."""
    small = {"prefix": {"length": 3}, "prompt": {"length": 3}, "vera": {"rank": 6}, "adalora": {"rank": 2}}
    small |= {method: {"double_quant": False} for method in ("qlora", "qdora")}
    settings = {**case.hyper, **small.get(case.method, {})}
    return cases.Case(case.method, case.config, settings, case.copy, case.quantised, case.floor)


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
