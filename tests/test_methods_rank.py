"""VeRA, PiSSA, AdaLoRA and GaLore against their papers, in float64: logits, gradients and steps written out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from paper_trial import Trial
from reference_bert import bert
from test_methods_papers import query_or_value, with_changes
from torch import Tensor

from peftbench.contract import Case
from peftbench.contract.case import Bench, network
from peftbench.errors import UserError
from peftbench.method import find, make


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("PEFTBENCH_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def bench_of(name: str, network: str = "tiny-encoder", **hyper: object) -> Bench:
    return Bench(Case(find(name), hyper, network))


# VeRA


@pytest.mark.parametrize("roles", ["q v", "v down"])
def test_vera_scales_one_random_pair_by_vectors_of_each_layer(roles: str) -> None:
    trial = Trial("vera", rank=5, roles=roles, projection_seed=3)
    w, s = trial.base, trial.s
    inside = 64 if "down" in roles else 32
    draws = torch.Generator().manual_seed(3)  # A first, then B: Kaiming uniform, bound sqrt(6 / fan-in)
    A = ((2 * torch.rand(5, inside, generator=draws) - 1) * math.sqrt(6 / inside)).double()
    B = ((2 * torch.rand(32, 5, generator=draws) - 1) * math.sqrt(6 / 5)).double()
    adapted = {n.removesuffix(".d") for n in s if n.endswith(".d")}
    assert len(adapted) == 4

    def layer(path: str, x: Tensor) -> Tensor:
        W = w[f"{path}.weight"]
        change = torch.diag(s[f"{path}.b"]) @ B @ torch.diag(s[f"{path}.d"]) @ A[:, : W.shape[1]]
        return x @ (W + change).T + w[f"{path}.bias"]

    pair = trial.bench.edit.adapters()[0].projection
    torch.testing.assert_close(pair.A, A, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(pair.B, B, rtol=1e-6, atol=1e-6)
    A, B = pair.A, pair.B  # float32 draws round the product above in another order
    trial.agrees(bert(w, trial.ids, trial.mask, with_changes(w, adapted.__contains__, layer)))


def test_vera_starts_with_b_zero_and_d_as_given() -> None:
    state = bench_of("vera", rank=4).edit.state()
    assert {n.rpartition(".")[2] for n in state} == {"b", "d"}  # the pair is not stored
    assert all(bool((t == (0.1 if n.endswith("d") else 0.0)).all()) for n, t in state.items())


def test_vera_keeps_one_pair_for_all_layers_wherever_the_network_goes() -> None:
    bench = bench_of("vera", rank=4, roles="q v up down")
    bench.net.double()
    first, *rest = bench.edit.adapters()
    assert rest
    assert all(layer.projection.A.data_ptr() == first.projection.A.data_ptr() for layer in rest)
    weights = bench.start().groups()["weights"]
    assert sum(t is first.projection.A for t in weights) == 1


# PiSSA


@pytest.mark.parametrize(("alpha", "iterations"), [(None, None), (12.0, None), (None, 4)])
def test_pissa_is_lora_over_what_the_principal_triplets_leave(alpha: float | None, iterations: int | None) -> None:
    hyper = {"rank": 3, "alpha": alpha, "iterations": iterations, "roles": "q v"}
    start = bench_of("pissa", **hyper).edit.state()
    trial = Trial("pissa", **hyper)
    w, s, scale = trial.base, trial.s, (alpha or 3) / 3

    def layer(path: str, x: Tensor) -> Tensor:
        W = w[f"{path}.weight"]
        if iterations is None:
            U, S, Vt = torch.linalg.svd(W)
            principal = sum(S[i] * torch.outer(U[:, i], Vt[i]) for i in range(3))
            A0, B0 = start[f"{path}.A"].double(), start[f"{path}.B"].double()
            torch.testing.assert_close(scale * B0 @ A0, principal, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(A0 @ A0.T, torch.diag(S[:3] / scale), rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(B0.T @ B0, torch.diag(S[:3] / scale), rtol=1e-4, atol=1e-5)
        residual = trial.net.get_submodule(path).base.weight
        A0, B0 = start[f"{path}.A"].double(), start[f"{path}.B"].double()
        torch.testing.assert_close(residual, W - scale * B0 @ A0, rtol=1e-5, atol=1e-5)
        return x @ (residual + scale * s[f"{path}.B"] @ s[f"{path}.A"]).T + w[f"{path}.bias"]

    trial.agrees(bert(w, trial.ids, trial.mask, with_changes(w, query_or_value, layer)))


def test_pissas_fast_decomposition_leaves_hardly_more_than_the_exact_one_and_repeats() -> None:
    exact, fast, again = (bench_of("pissa", iterations=k) for k in (None, 16, 16))
    state, repeated = fast.edit.state(), again.edit.state()
    assert all(torch.equal(t, repeated[name]) for name, t in state.items())
    for best, near in zip(exact.edit.adapters(), fast.edit.adapters(), strict=True):
        left, least = near.base.weight.norm(), best.base.weight.norm()  # Eckart and Young: no split leaves less
        assert least * (1 - 1e-6) <= left <= 1.05 * least


def test_pissa_adds_its_factors_and_no_second_weight() -> None:
    bench = bench_of("pissa", rank=2)
    counts = bench.edit.counts()
    assert counts["added"] == counts["trainable"] == bench.method.parameters(bench.backbone.sites)


def test_pissa_refuses_a_rank_beyond_the_singular_values() -> None:
    from peftbench.edit import Edit

    with pytest.raises(UserError, match="rank 33, but a layer at q has only 32 singular values"):
        make(find("pissa"), {"rank": 33, "roles": "q"}).attach(Edit(network(Case(find("pissa")))))
