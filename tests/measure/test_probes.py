"""Probes: the numbers that they take from a trained network, held to plain formulas and other libraries."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import planning
import pytest
import torch
from run_specs import spec
from scipy.linalg import subspace_angles
from torch import Tensor

from peftbench.backbones.load import Backbone, load
from peftbench.errors import UserError
from peftbench.measure import probes
from peftbench.measure.probes import (
    CARDS,
    Probes,
    TrainedNetwork,
    arc_easy,
    decomposition,
    ranks,
    subspaces,
    wikitext2_loss,
)
from peftbench.measure.probes.weight_changes import weight_changes
from peftbench.method.edit import Edit
from peftbench.method.registry import find, make
from peftbench.plan import read
from peftbench.records.spec import RunSpec, as_dict
from peftbench.report.papers import _similarity
from peftbench.run.session import Session

Attached = Callable[..., Edit]
SHARED = Path(__file__).parents[3] / "shared" / "data"


@pytest.fixture(scope="module")
def encoder() -> Backbone:
    return load("tiny-encoder", "classification", 2)


@pytest.fixture
def attached(encoder: Backbone) -> Iterator[Attached]:
    """A function that attaches a method to the tiny encoder, and moves what it trains as training would."""
    edits: list[Edit] = []

    def attach(method: str, spread: float = 0.1, **hyper: Any) -> Edit:
        for edit in edits:
            edit.undo()
        encoder.save_snapshot()
        edits.append(Edit(encoder))
        torch.manual_seed(5)
        make(find(method), hyper).attach(edits[-1])
        with torch.no_grad():
            for p in edits[-1].trained():
                p.add_(spread * torch.randn_like(p))
        return edits[-1]

    yield attach
    for edit in edits:
        edit.undo()


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A data directory with a text of its own in WikiText-2's place, long enough for the windows."""
    (tmp_path / probes.WIKITEXT).parent.mkdir()
    words = ["river", "stone", "the", "old", "house", "under", "a", "green", "sky", ",", "."]
    draw = np.random.default_rng(0)
    text = " ".join(words[k] for k in draw.integers(len(words), size=3000))
    (tmp_path / probes.WIKITEXT).write_text(text)
    (tmp_path / probes.ARC_EASY).parent.mkdir()
    (tmp_path / probes.ARC_EASY).write_text(json.dumps([entry(n, words[: 3 + n % 3]) for n in range(9)]))
    return tmp_path


def entry(n: int, answers: Sequence[str]) -> dict[str, str]:
    """A question in the form of LLM-Adapters' files."""
    told = " ".join(f"Answer{k}: {a}" for k, a in enumerate(answers, 1))
    form = "/".join(f"answer{k}" for k in range(1, len(answers) + 1))
    asked = f"Please choose the correct answer to the question: What is {n}?\n\n{told}\n\nAnswer format: {form}"
    return {"instruction": asked, "input": "", "output": "", "answer": f"answer{1 + n % len(answers)}"}


# Subspaces


def orthonormal(rows: int, width: int, seed: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(width, rows)))[0].T


def test_a_subspace_is_wholly_similar_to_itself_and_not_at_all_to_an_orthogonal_one() -> None:
    both = orthonormal(8, 32, 0)
    assert np.allclose(np.diag(_similarity.similarity(both, both)), 1)
    assert np.allclose(_similarity.similarity(both[:4], both[4:]), 0)
    assert np.allclose(_similarity.similarity(both[:2], both)[1, 1:], 1), "a space lies in those that hold it"


def test_similarity_is_the_mean_squared_cosine_of_the_principal_angles() -> None:
    a, b = orthonormal(5, 24, 1), orthonormal(7, 24, 2)
    found = _similarity.similarity(a, b)
    for i, j in ((1, 1), (2, 5), (5, 7), (4, 3)):
        cosines = np.cos(subspace_angles(a[:i].T, b[:j].T))
        assert found[i - 1, j - 1] == pytest.approx((cosines**2).sum() / min(i, j))


def test_random_subspaces_are_as_similar_as_chance_says() -> None:
    pairs = [_similarity.similarity(orthonormal(4, 32, 2 * k), orthonormal(8, 32, 2 * k + 1)) for k in range(300)]
    assert np.mean([p[3, 7] for p in pairs]) == pytest.approx(_similarity.by_chance(4, 8, 32), abs=0.01)
    assert np.mean([p[0, 0] for p in pairs]) == pytest.approx(_similarity.by_chance(1, 1, 32), abs=0.01)


def test_stored_directions_are_the_right_singular_vectors_in_the_order_of_their_values() -> None:
    A = torch.randn(20, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    kept = subspaces.directions(A)
    _, singular, V = np.linalg.svd(A.numpy(), full_matrices=False)
    assert kept["singular"] == pytest.approx(singular[: subspaces.KEPT], rel=1e-5)
    back = _similarity.vectors(kept, 48)
    assert np.allclose(np.abs((back * V[: subspaces.KEPT]).sum(1)), 1, atol=1e-5)
    assert np.allclose(back @ back.T, np.eye(subspaces.KEPT), atol=1e-12)


def test_directions_of_an_update_are_those_of_its_rank_and_of_none_there_is_none() -> None:
    torch.manual_seed(0)
    assert len(subspaces.directions(torch.randn(12, 3).double() @ torch.randn(3, 40).double())["singular"]) == 3
    assert subspaces.directions(torch.zeros(4, 6, dtype=torch.float64)) == {"singular": [], "vectors": ""}


def test_the_directions_of_a_lora_adapter_span_the_rows_of_its_A(attached: Attached) -> None:
    edit = attached("lora", rank=3)
    found = {site["path"]: site for site in subspaces.measure(TrainedNetwork(edit))["sites"]}
    for site, module in edit.placed():
        own = found[site.path]
        update, A = (_similarity.vectors(own[key], own["width"]) for key in ("update", "A"))
        assert _similarity.similarity(update, A)[2, 2] == pytest.approx(1, abs=1e-4), "B A reads what A reads"
        rows = np.linalg.qr(module.A.detach().double().numpy().T)[0].T
        assert _similarity.similarity(A, rows)[2, 2] == pytest.approx(1, abs=1e-4)


def test_a_matrix_that_is_drawn_and_never_trained_has_no_directions_to_tell(attached: Attached) -> None:
    """VeRA's A is one random matrix for all layers: two runs would seem to have learned the same."""
    assert all(s["A"] is None for s in subspaces.measure(TrainedNetwork(attached("vera")))["sites"])


# Magnitude and direction


def test_magnitude_and_direction_change_as_computed_by_hand() -> None:
    before = torch.tensor([[3.0, 4.0], [1.0, 0.0]], dtype=torch.float64)
    after = torch.tensor([[6.0, 8.0], [0.0, 3.0]], dtype=torch.float64)
    found = decomposition.decompose(before, after)
    assert found["dM"] == pytest.approx((5 + 2) / 2)  # 5 -> 10 and 1 -> 3
    assert found["dD"] == pytest.approx((0 + 1) / 2)  # the first row keeps its direction, the second by 90 degrees


def test_a_direction_that_hardly_turns_is_not_lost_in_rounding() -> None:
    before = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    turned = torch.tensor([[math.cos(1e-9), math.sin(1e-9)]], dtype=torch.float64)
    assert decomposition.decompose(before, turned)["dD"] == pytest.approx(5e-19, rel=1e-6)  # 1 - cos is 0 in float64


@pytest.mark.parametrize("method", ["full", "lora", "dora", "ia3"])
def test_decomposition_of_trained_weights_follows_the_papers_equations(attached: Attached, method: str) -> None:
    edit = attached(method)
    found = {site["path"]: site for site in decomposition.measure(TrainedNetwork(edit))["sites"]}
    assert found
    with edit.merged() as net:
        for path, site in found.items():
            W, W0 = net.get_submodule(path).weight.detach(), edit.backbone.pristine(f"{path}.weight")
            assert site["dM"] == pytest.approx(float((W.norm(dim=1) - W0.norm(dim=1)).abs().mean()), abs=1e-6)
            cosine = torch.nn.functional.cosine_similarity(W, W0, dim=1)
            assert site["dD"] == pytest.approx(float((1 - cosine).mean()), abs=1e-6)


def test_weights_that_no_step_has_touched_have_not_changed(attached: Attached) -> None:
    for method in ("full", "lora"):
        sites = decomposition.measure(TrainedNetwork(attached(method, spread=0.0)))["sites"]
        assert {(s["dM"], s["dD"]) for s in sites} == {(0.0, 0.0)}


def test_an_update_far_below_the_weights_last_digit_is_seen(attached: Attached) -> None:
    edit = attached("lora", rank=2)
    with torch.no_grad():
        for module in edit.adapters():
            module.B.mul_(1e-9)
    for change, module in zip(weight_changes(edit), edit.adapters(), strict=True):
        update = module.scale * module.B.detach().double() @ module.A.detach().double()
        assert torch.allclose(change.after - change.before, update, rtol=1e-3, atol=1e-16)


def test_every_layer_is_named_by_role_and_number(attached: Attached) -> None:
    sites = ranks.measure(TrainedNetwork(attached("full")))["sites"]
    layers = {role: [s["layer"] for s in sites if s["role"] == role] for role in ("q", "v", "up", "down")}
    assert layers == {role: [0, 1] for role in layers}


# Ranks


def test_adaloras_final_ranks_are_the_ranks_of_its_updates(attached: Attached) -> None:
    from peftbench.methods import adalora

    edit = attached("adalora", rank=3)
    torch.manual_seed(0)
    with torch.no_grad():
        for module in edit.adapters():
            module.Lambda.mul_(torch.rand_like(module.Lambda) < 0.5)
    told = adalora.final_ranks(edit.net)
    assert len(set(told.values())) > 1
    assert {s["path"]: s["rank"] for s in ranks.measure(TrainedNetwork(edit))["sites"]} == told


def test_the_rank_of_nothing_is_zero_and_of_a_product_its_inner_size() -> None:
    assert ranks.rank(torch.zeros(4, 6, dtype=torch.float64)) == 0
    torch.manual_seed(0)
    assert ranks.rank(torch.randn(9, 2).double() @ torch.randn(2, 7).double()) == 2


# Loss on WikiText-2


def test_wikitext_loss_is_what_transformers_computes(data_dir: Path) -> None:
    backbone = load("tiny-decoder", "generation")
    found = wikitext2_loss.measure(TrainedNetwork(Edit(backbone), data_dir=data_dir))
    ids = wikitext2_loss.windows(backbone.tokenizer, (data_dir / probes.WIKITEXT).read_text())
    with torch.no_grad():
        each = [backbone.net(input_ids=row[None], labels=row[None]).loss.item() for row in ids]
    assert found["windows"] == pytest.approx(each, rel=1e-5)
    assert found["loss"] == pytest.approx(sum(each) / len(each), rel=1e-5)
    assert found["tokens"] == wikitext2_loss.WINDOWS * (wikitext2_loss.LENGTH - 1)


def test_windows_start_at_the_texts_beginning_and_end_with_it_apart_from_a_remainder() -> None:
    class Words:
        def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
            return {"input_ids": list(range(len(text.split())))}

    ids: Tensor = wikitext2_loss.windows(Words(), "word " * 10_000)
    starts = ids[:, 0].tolist()
    assert ids.shape == (wikitext2_loss.WINDOWS, wikitext2_loss.LENGTH)
    assert starts[0] == 0
    assert len({b - a for a, b in pairwise(starts)}) == 1
    assert 10_000 - wikitext2_loss.WINDOWS < ids[-1, -1].item() < 10_000


def test_a_prompt_in_front_of_the_text_adds_no_token_to_the_mean(data_dir: Path) -> None:
    """Behind a prompt the window's first token would be predicted too, which the base model cannot."""
    backbone = load("tiny-decoder", "generation")
    edit = Edit(backbone)
    make(find("prompt"), {"length": 3}).attach(edit)
    found = wikitext2_loss.measure(TrainedNetwork(edit, data_dir=data_dir))
    row = wikitext2_loss.windows(backbone.tokenizer, (data_dir / probes.WIKITEXT).read_text())[:1]
    with torch.no_grad():
        inputs = backbone.inputs({"input_ids": row, "attention_mask": torch.ones_like(row)})
        logits = backbone.net(**inputs).logits[:, 3:]  # the prompt's own positions left out
    plain = torch.nn.functional.cross_entropy(logits[0, :-1], row[0, 1:]).item()
    assert found["windows"][0] == pytest.approx(plain, rel=1e-5)


# Answers to ARC-Easy


def test_an_answers_log_probability_is_what_transformers_computes(data_dir: Path) -> None:
    """One text at a time, without padding; behind a prompt of a method too."""
    backbone = load("tiny-decoder", "generation")
    asked = arc_easy.questions((data_dir / probes.ARC_EASY).read_text())
    right = []
    for q in asked:
        scores = []
        for answer in q.answers:
            tokens, start = arc_easy.row(backbone.tokenizer, q.text, answer)
            with torch.no_grad():
                logits = backbone.net(input_ids=torch.tensor([tokens])).logits[0].log_softmax(-1)
            said = sum(logits[k - 1, tokens[k]].item() for k in range(start, len(tokens)))
            scores.append(said / len(answer.encode()))
        right.append(int(scores.index(max(scores)) == q.right))
    found = arc_easy.measure(TrainedNetwork(Edit(backbone), data_dir=data_dir))
    assert found["right"] == right
    assert found["accuracy"] == sum(right) / len(right)
    assert 0 < sum(right) < len(right)


def test_answers_behind_a_methods_prompt_are_scored_at_their_own_positions(data_dir: Path) -> None:
    backbone = load("tiny-decoder", "generation")
    edit = Edit(backbone)
    make(find("prompt"), {"length": 3}).attach(edit)
    right = []
    for q in arc_easy.questions((data_dir / probes.ARC_EASY).read_text()):
        scores = []
        for answer in q.answers:
            tokens, start = arc_easy.row(backbone.tokenizer, q.text, answer)
            with torch.no_grad():
                inputs = backbone.inputs(
                    {"input_ids": torch.tensor([tokens]), "attention_mask": torch.ones(1, len(tokens))}
                )
                logits = backbone.net(**inputs).logits[0, 3:].log_softmax(-1)  # the prompt's own positions left out
            said = sum(logits[k - 1, tokens[k]].item() for k in range(start, len(tokens)))
            scores.append(said / len(answer.encode()))
        right.append(int(scores.index(max(scores)) == q.right))
    assert arc_easy.measure(TrainedNetwork(edit, data_dir=data_dir))["right"] == right


def test_an_answer_is_scored_for_its_bytes_and_not_for_its_length_in_tokens() -> None:
    assert arc_easy.best([4.0, 2.0], ("four", "a")) == 0, "1 and 2 nats a byte"
    assert arc_easy.best([4.0, 2.1], ("ää", "ab")) == 0, "four bytes, not two characters"


def test_questions_are_read_as_they_are_published() -> None:
    text = entry(0, ["a, b", "c\u00e9", "d e"])
    text["instruction"] = text["instruction"].replace(" Answer2", "  Answer2")
    assert arc_easy.questions(json.dumps([text])) == [arc_easy.Question("What is 0?", ("a, b", "c\u00e9", "d e"), 0)]
    with pytest.raises(ValueError, match="not a question of ARC-Easy"):
        arc_easy.questions(json.dumps([text | {"answer": "answer4"}]))


def test_the_questions_lie_at_equal_distances_and_each_is_asked_once() -> None:
    found = [arc_easy.Question(str(k), ("a", "b"), 0) for k in range(1000)]
    asked = [int(q.text) for q in arc_easy.chosen(found)]
    assert (len(set(asked)), asked[0]) == (arc_easy.QUESTIONS, 0)
    assert {b - a for a, b in pairwise(asked)} <= {7, 8}
    assert arc_easy.chosen(found[:5]) == found[:5]


@pytest.mark.shared_data
@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data")
def test_every_published_question_is_read() -> None:
    found = arc_easy.questions((SHARED / "commonsense" / probes.ARC_EASY).read_text())
    assert len(found) == 2376
    assert {len(q.answers) for q in found} == {3, 4, 5}
    assert all(q.text and all(q.answers) for q in found)


# What they read


@pytest.mark.parametrize(
    ("name", "file"), [("wikitext2_loss", r"wikitext-2/test\.txt"), ("arc_easy", r"ARC-Easy/test\.json")]
)
def test_without_its_file_nothing_runs_and_the_fix_is_named(tmp_path: Path, name: str, file: str) -> None:
    for where in (None, tmp_path):
        with pytest.raises(UserError, match=rf"{file}.*--data-dir DIR"):
            probes.check([name], ["generation"], where)


def test_a_file_is_found_beside_the_folder_of_a_task_too(data_dir: Path) -> None:
    for where in (data_dir, data_dir / "e2e_nlg", data_dir / "wikitext-2"):
        probes.check(["wikitext2_loss", "arc_easy"], ["generation"], where)


@pytest.mark.parametrize("name", ["wikitext2_loss", "arc_easy"])
def test_a_network_that_writes_no_text_is_refused_before_anything_runs(data_dir: Path, name: str) -> None:
    with pytest.raises(UserError, match="needs a causal language model, and a classification task"):
        probes.check([name], ["classification"], data_dir)


# In an experiment, a spec and a record


def written(folder: Path, rest: str) -> Path:
    path = folder / "e.yaml"
    path.write_text(f"name: e\nbackbone: tiny-encoder\ntasks: [synthetic/classification]\nmethods: [lora]\n{rest}")
    return path


def test_an_experiment_that_lists_probes_plans_them_and_one_without_keeps_its_ids(tmp_path: Path) -> None:
    plain = [p.spec for p in planning.prepared(written(tmp_path, "")).planned]
    probed = [p.spec for p in planning.prepared(written(tmp_path, "probes: [ranks, decomposition]\n")).planned]
    assert [s.probes for s in probed] == [{"ranks": 1, "decomposition": 1}] * len(probed)
    assert [replace(s, probes={}).id for s in probed] == [s.id for s in plain]
    assert not {s.id for s in probed} & {s.id for s in plain}, "records without probes are no answer to these"
    assert RunSpec.from_dict(as_dict(probed[0])) == probed[0]
    before_probes = {key: value for key, value in as_dict(plain[0]).items() if key != "probes"}
    assert RunSpec.from_dict(before_probes) == plain[0]


def test_unknown_and_repeated_probes_are_refused_with_the_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"e\.yaml.*probes.*unknown probe 'rank'; did you mean 'ranks'"):
        read.load(written(tmp_path, "probes: [rank]\n"))
    with pytest.raises(UserError, match="listed twice"):
        read.load(written(tmp_path, "probes: [ranks, ranks]\n"))


def test_an_encoder_with_a_probe_of_language_is_refused_when_planned(tmp_path: Path, data_dir: Path) -> None:
    with pytest.raises(UserError, match="needs a causal language model"):
        planning.prepared(written(tmp_path, "probes: [wikitext2_loss]\n"), data_dir=data_dir)


def test_probes_stand_in_the_record_and_change_nothing_else(data_dir: Path) -> None:
    session = Session("cpu", threads=1, data_dir=data_dir)
    run = spec("lora", "synthetic/generation", eval_every=2)
    plain, probed = session.execute(run), session.execute(replace(run, probes=dict.fromkeys(CARDS, 1)))
    for part in ("curve", "predictions", "metrics"):
        assert plain[part] == probed[part]
    assert plain["memory"]["at_peak"] == probed["memory"]["at_peak"]
    assert "probes" not in plain
    found = probed["probes"]
    assert {name: [p["step"] for p in found[name]["points"]] for name in found} == {
        "decomposition": [0, 2, 4, 6],
        "subspaces": [6],
        "ranks": [6],
        "wikitext2_loss": [0, 2, 4, 6],
        "arc_easy": [0, 2, 4, 6],
    }
    assert [s["rank"] for s in found["ranks"]["points"][0]["sites"]] == [2] * 4  # q and v of two layers
    base = wikitext2_loss.measure(TrainedNetwork(Edit(load("tiny-decoder", "generation")), data_dir=data_dir))
    assert found["wikitext2_loss"]["points"][0]["loss"] == pytest.approx(base["loss"], rel=1e-6)
    assert all({"version", "paper", "definition"} <= set(probe) for probe in found.values())


def test_the_last_point_is_of_the_weights_that_are_tested() -> None:
    """With the best checkpoint, not of those that training ended with."""
    session = Session("cpu", threads=1)
    run = spec("full", "synthetic/regression", eval_every=1, checkpoint="best", steps=8, lr=5e-2)
    run = replace(run, probes={"decomposition": 1})
    body = session.execute(run)
    best = body["checkpoint_step"]
    assert best < 8, "or this run shows nothing"
    points = body["probes"]["decomposition"]["points"]
    assert [p["step"] for p in points] == [*(s for s in range(8) if s != best), best]
    to_the_end = session.execute(replace(run, train=replace(run.train, checkpoint="last")))
    assert points[-1] == next(p for p in to_the_end["probes"]["decomposition"]["points"] if p["step"] == best)


def test_a_probe_of_another_version_is_not_measured_in_its_name() -> None:
    with pytest.raises(UserError, match="version 99"):
        Probes({"ranks": 99}, TrainedNetwork(None))  # type: ignore[arg-type]
