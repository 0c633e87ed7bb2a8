"""What another machine may change of a run, and what it may not."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest

from peftbench.verify.records import differences, tolerance


def body(**changes: Any) -> dict[str, Any]:
    made: dict[str, Any] = {
        "env": {"device": "cpu"},
        "curve": {"loss": [0.7, 0.6, 0.5, 0.4], "validation": [{"step": 4, "pearson": 0.8, "rmse": 0.3}]},
        "parameters": {"trainable": 10},
        "memory": {"peak_bytes": 1000, "at_peak": {"weights": 600, "temporaries": 400}, "batch": [4, 8]},
        "metrics": {"test": {"pearson": 0.5}, "majority": None},
        "predictions": {"ids": list("abcd"), "values": [0.1, 1.2, 1.9, 3.3], "labels": [0.0, 1.0, 2.0, 3.0]},
        "stopped_at": 4,
        "checkpoint_step": 4,
    }
    return {**made, **changes}


def changed(place: str, value: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    one, other = body(), deepcopy(body())
    inner: Any = other
    *parents, last = [int(p) if p.isdecimal() else p for p in place.split(".")]
    for key in parents:
        inner = inner[key]
    inner[last] = value
    return one, other


def covered(one: dict[str, Any], other: dict[str, Any]) -> bool:
    found = differences.compare(one, other)
    assert found, "the two are equal"
    return all(d.within for d in tolerance.apply_tolerance(one, other, found).differences)


COVERED = {
    "curve.loss.0": 0.7 * (1 + 1e-5),
    "curve.loss.3": 0.41,
    "curve.validation.0.pearson": 0.81,
    "predictions.values.2": 1.95,
    "memory.at_peak.temporaries": 410,
    "checkpoint_step": 2,
}
NOT_COVERED = {
    "curve.loss.0": 0.71,
    "curve.loss.3": 0.8,
    "curve.loss": [0.7, 0.6, 0.5],
    "curve.loss.1": None,
    "curve.validation.0.pearson": 0.4,
    "curve.validation.0.rmse": None,
    "predictions.values.2": -4.0,
    "predictions.values.1": None,
    "predictions.labels.2": 2.5,
    "predictions.ids.0": "z",
    "parameters.trainable": 11,
    "memory.at_peak.temporaries": 500,
    "memory.batch.1": 9,
    "stopped_at": 3,
    "metrics.majority": 0.5,
    "metrics.test.pearson": 0.52,  # the predictions are equal: so must be what follows from them
}


@pytest.mark.parametrize("place", COVERED)
def test_what_rounding_explains_is_within_the_tolerance(place: str) -> None:
    assert covered(*changed(place, COVERED[place]))


@pytest.mark.parametrize("place", NOT_COVERED)
def test_what_rounding_does_not_explain_is_not(place: str) -> None:
    assert not covered(*changed(place, NOT_COVERED[place]))


def test_texts_and_classes_count_by_the_share_that_is_equal() -> None:
    for kind in ([0, 1] * 20, ["yes", "no"] * 20):
        told = {"ids": list(range(40)), "values": kind, "labels": kind}
        one = body(predictions=told)
        for flipped, well in ((3, True), (6, False)):
            values = [kind[i + 1] if i < flipped else kind[i] for i in range(40)]
            assert covered(one, body(predictions={**told, "values": values})) is well


def generated(values: list[str]) -> dict[str, Any]:
    return {"ids": list("abcd"), "values": values, "labels": ["a b", "c d", "e f", "g h"]}


def test_generated_texts_count_by_their_words_in_order_as_one_token_turns_all_that_follow() -> None:
    texts = [
        "The Mill is a cheap pub near the river",
        "A quiet place in the city centre",
        "It is not family friendly",
        "x",
    ]
    one = body(predictions=generated(texts))
    turned = "The Mill is a cheap place near the river"
    assert covered(one, body(predictions=generated([turned, *texts[1:]])))
    assert covered(one, body(predictions=generated([turned, texts[1], "It is not near the river", texts[3]])))
    others = ["In the city centre stands The Mill", "Eat here", "Kids may come", "y"]
    assert not covered(one, body(predictions=generated(others)))
    assert not covered(one, body(predictions=generated([turned, *others[1:]])))


@pytest.mark.parametrize(("dtype", "well"), [("float32", False), ("bfloat16", True)])
def test_sixteen_bits_round_the_first_loss_more_coarsely(dtype: str, well: bool) -> None:
    spec = {"spec": {"backbone": {"dtype": dtype}}}
    one = body(**spec)
    assert covered(one, body(**spec, curve={**one["curve"], "loss": [0.7 * 1.003, 0.6, 0.5, 0.4]})) is well
    assert not covered(one, body(**spec, curve={**one["curve"], "loss": [0.7 * 1.01, 0.6, 0.5, 0.4]}))


def test_another_device_has_other_memory() -> None:
    one, other = changed("memory.peak_bytes", 3000)
    assert not covered(one, other)
    other["env"] = {"device": "cuda:0"}
    assert covered(one, other)


def test_losses_that_are_zero_can_be_compared() -> None:
    one, other = body(curve={"loss": [0.0, 0.0], "validation": []}), body(curve={"loss": [0.0, 0.1], "validation": []})
    assert not covered(one, other)


def test_an_environment_that_differs_in_code_alone_excuses_nothing() -> None:
    env = {
        "code": {"source": "a", "commit": "c"},
        "cpu": {"capability": "AVX2"},
        "packages": {"torch": "2"},
        "threads": 1,
    }
    older = {**env, "code": {"source": "b", "commit": "d"}}
    found, excused = differences.environments(env, older)
    assert ([d.field for d in found], excused) == (["code.source"], False)
    for key, value in (("threads", 2), ("cpu", {"capability": "AVX512"}), ("packages", {"torch": "3"})):
        found, excused = differences.environments(env, {**env, key: value})
        assert excused
        assert found[0].field.startswith(key)


def test_another_of_nearly_equal_checkpoints_excuses_predictions_but_no_losses() -> None:
    one, other = changed("predictions.values.2", -4.0)
    other["checkpoint_step"] = 2
    assert covered(one, other)
    other["curve"]["loss"][3] = 0.9
    assert not covered(one, other)
