"""VeRA, PiSSA, AdaLoRA and GaLore against their papers, in float64: logits, gradients and steps written out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from paper_trial import Trial
from reference_bert import bert
from test_methods_papers import query_or_value, with_changes
from torch import Tensor, nn

from peftbench import tasks
from peftbench.backbones import source
from peftbench.backbones.modules import SiteLinear
from peftbench.errors import UserError
from peftbench.method.edit import Edit
from peftbench.method.registry import find, make
from peftbench.methods.adalora import AdaLoRA, SVDLinear, budget, final_ranks
from peftbench.methods.galore import GaLoreAdamW
from peftbench.records.spec import BackboneSpec, MethodSpec, RunSpec, TaskSpec, TrainSpec
from peftbench.run.session import Session
from peftbench.verify.contract import Case
from peftbench.verify.contract.case import AdaptedModel, batch, network


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("PEFTBENCH_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def model_of(name: str, network: str = "tiny-encoder", **hyper: object) -> AdaptedModel:
    return AdaptedModel(Case(find(name), hyper, network))


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

    pair = trial.model.edit.adapters()[0].projection
    torch.testing.assert_close(pair.A, A, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(pair.B, B, rtol=1e-6, atol=1e-6)
    A, B = pair.A, pair.B  # float32 draws round the product above in another order
    trial.agrees(bert(w, trial.ids, trial.mask, with_changes(w, adapted.__contains__, layer)))


def test_vera_starts_with_b_zero_and_d_as_given() -> None:
    state = model_of("vera", rank=4).edit.state()
    assert {n.rpartition(".")[2] for n in state} == {"b", "d"}  # the pair is not stored
    assert all(bool((t == (0.1 if n.endswith("d") else 0.0)).all()) for n, t in state.items())


def test_vera_keeps_one_pair_for_all_layers_wherever_the_network_goes() -> None:
    model = model_of("vera", rank=4, roles="q v up down")
    model.net.double()
    first, *rest = model.edit.adapters()
    assert rest
    assert all(layer.projection.A.data_ptr() == first.projection.A.data_ptr() for layer in rest)
    weights = model.start().groups()["weights"]
    assert sum(t is first.projection.A for t in weights) == 1


# PiSSA


@pytest.mark.parametrize(("alpha", "iterations"), [(None, None), (12.0, None), (None, 4)])
def test_pissa_is_lora_over_what_the_principal_triplets_leave(alpha: float | None, iterations: int | None) -> None:
    hyper = {"rank": 3, "alpha": alpha, "iterations": iterations, "roles": "q v"}
    start = model_of("pissa", **hyper).edit.state()
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
    exact, fast, again = (model_of("pissa", iterations=k) for k in (None, 16, 16))
    state, repeated = fast.edit.state(), again.edit.state()
    assert all(torch.equal(t, repeated[name]) for name, t in state.items())
    for best, near in zip(exact.edit.adapters(), fast.edit.adapters(), strict=True):
        left, least = near.base.weight.norm(), best.base.weight.norm()  # Eckart and Young: no split leaves less
        assert least * (1 - 1e-6) <= left <= 1.05 * least


def test_pissa_adds_its_factors_and_no_second_weight() -> None:
    model = model_of("pissa", rank=2)
    counts = model.edit.counts()
    assert counts["added"] == counts["trainable"] == model.method.parameters(model.backbone.sites)


def test_pissa_refuses_a_rank_beyond_the_singular_values() -> None:
    with pytest.raises(UserError, match="rank 33, but a layer at q has only 32 singular values"):
        make(find("pissa"), {"rank": 33, "roles": "q"}).attach(Edit(network(Case(find("pissa")))))


# AdaLoRA


def test_adalora_is_w_plus_p_lambda_q() -> None:
    trial = Trial("adalora", rank=2, initial_rank=5, alpha=10.0, roles="q v")
    w, s = trial.base, trial.s
    assert {n.rpartition(".")[2] for n in s} == {"P", "Lambda", "Q"}

    def layer(path: str, x: Tensor) -> Tensor:
        change = (10 / 5) * s[f"{path}.P"] @ torch.diag(s[f"{path}.Lambda"]) @ s[f"{path}.Q"]
        return x @ (w[f"{path}.weight"] + change).T + w[f"{path}.bias"]

    trial.agrees(bert(w, trial.ids, trial.mask, with_changes(w, query_or_value, layer)))


def test_adalora_penalises_what_is_not_orthonormal() -> None:
    trial = Trial("adalora", rank=2, gamma=0.3, roles="q v")
    names = [n for n in trial.s if not n.endswith("Lambda")]
    expected = torch.zeros((), dtype=torch.float64)
    for name in names:
        M = trial.s[name] if name.endswith("P") else trial.s[name].T  # columns that should be orthonormal
        for i in range(M.shape[1]):
            for j in range(M.shape[1]):
                expected = expected + 0.3 * ((M[:, i] * M[:, j]).sum() - float(i == j)) ** 2
    mine = trial.model.method.extra_loss(trial.net)
    torch.testing.assert_close(mine, expected)
    assert mine is not None
    mine.backward()
    own = dict(trial.net.named_parameters())
    for name, gradient in zip(names, torch.autograd.grad(expected, [trial.s[n] for n in names]), strict=True):
        torch.testing.assert_close(own[name].grad, gradient)


def test_adaloras_budget_falls_by_a_cubic_between_warm_up_and_final_steps() -> None:
    # T = 20, t_i = 4, t_f = 6: ten steps of falling from 100 to 20; 80 (1 - k/10)^3 is left over after k of them
    over = {4: 80, 5: 58.32, 6: 40.96, 7: 27.44, 8: 17.28, 9: 10, 10: 5.12, 11: 2.16, 12: 0.64, 13: 0.08, 14: 0}
    for t in range(21):
        expected = 100 if t < 4 else 20 if t > 14 else math.floor(20 + over[t] + 1e-9)
        assert budget(t, 20, 4, 6, 100, 20) == expected, t


@pytest.mark.parametrize(("steps", "interval"), [(12, 1), (12, 3), (2, 1), (1, 1)])
def test_adaloras_masks_are_those_of_the_paper_computed_anew(
    monkeypatch: pytest.MonkeyPatch, steps: int, interval: int
) -> None:
    seen: list[tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, np.ndarray]]] = []
    real = AdaLoRA.after_step

    def after_step(self: AdaLoRA, net: nn.Module, done: float) -> None:
        own = [(n, m) for n, m in net.named_modules() if isinstance(m, SVDLinear)]
        before = {f"{n}.{k}": p for n, m in own for k, p in m.named_parameters(recurse=False)}
        w = {n: p.detach().double().numpy().copy() for n, p in before.items()}
        g = {n: p.grad.double().numpy().copy() for n, p in before.items()}  # None if the engine had dropped them
        real(self, net, done)
        seen.append((w, g, {n: p.detach().double().numpy().copy() for n, p in before.items()}))

    monkeypatch.setattr(AdaLoRA, "after_step", after_step)
    model = model_of("adalora", rank=2, roles="q v", warmup=0.2, final=0.3, interval=interval)
    model.train(steps)
    paths = list(final_ranks(model.net))
    warmup, final, first, last = int(0.2 * steps), int(0.3 * steps), 3 * len(paths), 2 * len(paths)
    sensitivity: dict[str, np.ndarray] = {}
    uncertainty: dict[str, np.ndarray] = {}
    for t, (w, g, after) in enumerate(seen, start=1):
        if t <= steps - final:
            for n in w:
                importance = np.abs(w[n] * g[n])
                sensitivity[n] = 0.85 * sensitivity.get(n, 0) + 0.15 * importance
                uncertainty[n] = 0.85 * uncertainty.get(n, 0) + 0.15 * np.abs(importance - sensitivity[n])
        s = {n: sensitivity[n] * uncertainty[n] for n in w}
        score = [s[f"{p}.Lambda"] + s[f"{p}.P"].mean(axis=0) + s[f"{p}.Q"].mean(axis=1) for p in paths]
        share = 1 - (t - warmup) / (steps - warmup - final)
        kept = first if t < warmup else last if t >= steps - final else int(last + (first - last) * share**3)
        if t >= steps - final or (t >= warmup and t % interval == 0):
            threshold = np.sort(np.concatenate(score))[::-1][kept - 1]
            mask = dict(zip(paths, (row >= threshold for row in score), strict=True))
        else:
            mask = {p: np.ones(3) for p in paths}
        for n in w:
            expected = w[n] * mask[n.removesuffix(".Lambda")] if n.endswith("Lambda") else w[n]
            assert np.array_equal(after[n], expected), f"{n} after step {t}"
    ranks = final_ranks(model.net)
    assert sum(ranks.values()) == last  # the target, exactly
    assert ranks == {p: int(np.count_nonzero(mask[p])) for p in paths}


def test_adalora_refuses_schedules_that_do_not_fall() -> None:
    for hyper, why in (
        ({"initial_rank": 2, "rank": 4}, "initial_rank 2 is below rank 4"),
        ({"warmup": 0.5, "final": 0.5}, "leave no step"),
    ):
        with pytest.raises(UserError, match=why):
            make(find("adalora"), hyper).attach(Edit(network(Case(find("adalora")))))


def test_adaloras_averages_count_as_the_optimisers_memory() -> None:
    model = model_of("adalora", rank=2, roles="q v")
    trainer = model.start()
    model.train(1)

    _, memory = trainer.tracked_step(batch(model.case, 5), 1.0)
    own, head = model.edit.trained(), model.backbone.head_parameters()
    moments = sum(2 * 4 * p.numel() + 4 for p in [*own, *head])  # and a counter each
    averages = sum(2 * 4 * p.numel() for p in own)
    assert memory["at_peak"]["optimizer"] == moments + averages


def test_the_training_loop_tells_after_step_how_much_is_done_while_gradients_are_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[tuple[float, bool, int]] = []
    real = AdaLoRA.after_step

    def after_step(self: AdaLoRA, net: nn.Module, done: float) -> None:
        layers = [m for m in net.modules() if isinstance(m, SVDLinear)]
        there = all(p.grad is not None for m in layers for p in (m.P, m.Lambda, m.Q))
        real(self, net, done)
        told.append((done, there, sum(final_ranks(net).values())))

    monkeypatch.setattr(AdaLoRA, "after_step", after_step)
    data = tasks.open_task("synthetic/classification")
    base = BackboneSpec("tiny-encoder", source.fingerprint("tiny-encoder"))
    train = TrainSpec(lr=5e-3, steps=5, batch_size=8, max_length=32, accumulation=2)
    method = MethodSpec("adalora", "adalora", 1, {"rank": 2, "roles": "q v"})
    body = Session("cpu").execute(RunSpec(base, TaskSpec(data.name, data.fingerprint), method, train, 0))
    assert [done for done, *_ in told] == [0.2, 0.4, 0.6, 0.8, 1.0]  # the tracked step among them, and each once
    assert all(there for _, there, _ in told)
    assert [kept for *_, kept in told] == [9, 8, 8, 8, 8]  # t_i = 0, T - t_f = 3: 8 + 4 (1 - t/3)^3, rounded down
    assert len(body["curve"]["loss"]) == 5


# GaLore


@pytest.mark.parametrize("shape", [(7, 4), (4, 7), (5, 5)])
def test_galore_is_adam_in_the_gradients_own_directions(shape: tuple[int, int]) -> None:
    lr, rank, alpha, decay, gap = 0.1, 2, 0.25, 0.3, 2
    draws = np.random.default_rng(5)
    W = draws.normal(size=shape)
    p = nn.Parameter(torch.from_numpy(W.copy()))
    own = {"rank": rank, "update_gap": gap, "scale": alpha, "weight_decay": decay}
    optimizer = GaLoreAdamW([{"params": [p], **own}], lr=lr)
    wide = shape[0] <= shape[1]
    M = V = P = np.zeros(())
    for t in range(1, 6):
        G = draws.normal(size=shape)
        p.grad = torch.from_numpy(G.copy())
        optimizer.step()
        if t in (1, 3, 5):
            values, vectors = np.linalg.eigh(G @ G.T if wide else G.T @ G)  # without a library's SVD
            P = vectors[:, np.argsort(values)[::-1][:rank]]
            P = P * np.sign(P[np.abs(P).argmax(axis=0), np.arange(rank)])
        R = P.T @ G if wide else G @ P
        M = 0.9 * M + 0.1 * R
        V = 0.999 * V + 0.001 * R**2
        N = (M / (1 - 0.9**t)) / (np.sqrt(V / (1 - 0.999**t)) + 1e-8)
        W = (1 - lr * decay) * W - lr * alpha * (P @ N if wide else N @ P.T)
        np.testing.assert_allclose(p.detach().numpy(), W, rtol=1e-9, atol=1e-11)
        assert optimizer.state[p]["M"].shape == ((rank, shape[1]) if wide else (shape[0], rank))


def test_galore_steps_what_it_does_not_project_as_adamw_does() -> None:
    ours, theirs = (nn.Parameter(torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(3, 4)) for _ in range(2))
    mine = GaLoreAdamW([ours], lr=0.1, weight_decay=0.2)
    adamw = torch.optim.AdamW([theirs], lr=0.1, weight_decay=0.2)
    for step in range(4):
        for p, optimizer in ((ours, mine), (theirs, adamw)):
            p.grad = torch.sin(p.detach() * (step + 1))
            optimizer.step()
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


def test_galore_projects_the_linear_sites_and_trains_everything() -> None:
    model = model_of("galore", rank=2)
    trainer = model.start()
    sites = {s.path: s.size for s in model.backbone.sites.linear()}
    model.train(1)
    shapes = {n: trainer.optimizer.state[p] for n, p in model.net.named_parameters()}
    for name, state in shapes.items():
        path = name.removesuffix(".weight")
        if path in sites:
            inside, outside = sites[path]
            assert state["P"].shape == (min(inside, outside), 2)
            assert state["M"].numel() == 2 * max(inside, outside)
        else:
            assert "P" not in state
            assert state["M"].shape == model.net.get_parameter(name).shape
    projected = sum(2 * 2 * max(size) + 2 * min(size) for size in sites.values())  # M, V and P
    plain = sum(2 * p.numel() for n, p in model.net.named_parameters() if n.removesuffix(".weight") not in sites)
    _, memory = trainer.tracked_step(batch(model.case, 5), 1.0)
    assert memory["at_peak"]["optimizer"] == 4 * (projected + plain)


def test_galore_has_the_gradients_of_full_fine_tuning() -> None:
    trial = Trial("galore")
    trial.agrees(bert(trial.weights(), trial.ids, trial.mask))


def test_galore_lets_a_gradient_that_is_no_number_reach_the_weights() -> None:
    p = nn.Parameter(torch.ones(3, 4))
    p.grad = torch.full((3, 4), torch.nan)
    GaLoreAdamW([{"params": [p], "rank": 2}], lr=0.1).step()
    assert bool(p.isnan().all())  # and not a LinAlgError, which would hide the divergence


def test_a_layer_that_no_step_reaches_keeps_its_values_and_scores_nothing() -> None:
    """Layers that are dropped by chance, or experts that no token is sent to, have no gradient."""
    torch.manual_seed(0)
    layers = nn.ModuleList(SVDLinear(SiteLinear(4, 4), 3, 1.0, 0.0) for _ in range(2))
    with torch.no_grad():
        for layer in layers:
            layer.Lambda.fill_(1.0)
    before = layers[1].P.detach().clone()
    layers[0](torch.randn(5, 4)).square().sum().backward()
    AdaLoRA(rank=2, warmup=0.0, final=0.0).after_step(layers, 0.5)
    assert layers[0].averages["Lambda"][0].count_nonzero()
    assert not layers[1].averages["Lambda"][0].count_nonzero()
    assert torch.equal(layers[1].P, before)
