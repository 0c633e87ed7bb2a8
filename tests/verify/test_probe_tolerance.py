"""What another machine may change of what probes measured, and what it may not."""

from __future__ import annotations

import base64
from copy import deepcopy
from typing import Any

import numpy as np
import pytest

from peftbench.verify.records.probe_tolerance import covers

WIDTH = 24
SPACE = np.linalg.qr(np.random.default_rng(0).normal(size=(WIDTH, WIDTH)))[0]


def stored(rows: Any) -> str:
    return base64.b64encode(np.asarray(rows).astype("<f2").tobytes()).decode()


def turned(rows: Any, angle: float) -> Any:
    """The first two directions turned into each other, as those of near-equal values turn."""
    c, s = np.cos(angle), np.sin(angle)
    return np.vstack([[c * rows[0] + s * rows[1], c * rows[1] - s * rows[0]], rows[2:]])


DIRECTIONS = {"singular": [4.0, 3.9, 2.0], "vectors": stored(SPACE[:3])}
PROBES: dict[str, Any] = {
    "wikitext2_loss": {
        "version": 1,
        "points": [{"loss": 4.5, "windows": [4.0, 5.0], "step": n, "tokens": 9, "sha256": "aa"} for n in (0, 60)],
    },
    "arc_easy": {
        "version": 1,
        "points": [{"accuracy": 0.5, "right": [0, 1] * 20, "step": n} for n in (0, 60)],
    },
    "decomposition": {
        "version": 1,
        "points": [
            {"sites": [{"dD": size, "dM": size, "layer": n, "path": f"q.{n}"} for n in range(4)], "step": step}
            for step, size in ((0, 0.0), (9, 0.002), (99, 0.2))
        ],
    },
    "subspaces": {
        "version": 1,
        "points": [{"sites": [{"A": DIRECTIONS, "update": None, "layer": 0, "width": WIDTH}], "step": 9}],
    },
    "ranks": {"version": 1, "points": [{"sites": [{"rank": n, "layer": n} for n in (4, 8, 12, 6)], "step": 9}]},
}
FIRST = "subspaces.points.0.sites.0.A"
COVERED = {
    "wikitext2_loss.points.1.loss": 4.504,
    "wikitext2_loss.points.0.windows.1": 5.001,
    "decomposition.points.1.sites.2.dD": 0.00201,
    f"{FIRST}.singular.1": 3.91,
    f"{FIRST}.vectors": stored(turned(SPACE[:3], 0.7)),
}
NOT_COVERED = {
    "wikitext2_loss.points.1.loss": 4.55,
    "wikitext2_loss.points.0.loss": 4.52,
    "wikitext2_loss.points.1.windows.1": 5.2,
    "wikitext2_loss.points.1.windows": [4.0],
    "wikitext2_loss.points.1.windows.0": None,
    "wikitext2_loss.points.0.windows.0": "4.0",
    "wikitext2_loss.points.1.step": 61,
    "wikitext2_loss.points.1.tokens": 10,
    "wikitext2_loss.points.1.sha256": "ab",
    "wikitext2_loss.version": 2,
    "arc_easy.points.1.accuracy": 0.9,
    "arc_easy.points.0.accuracy": None,
    "arc_easy.points.1.right.0": "high",
    "decomposition.points.0.sites.2.dD": 1e-6,  # before the first update nothing has changed
    "decomposition.points.1.sites.2.dD": 0.02,  # small numbers have no floor, and no larger point hides them
    "decomposition.points.1.sites.2.path": "k.2",
    "decomposition.points.1.sites.2.layer": 3,
    f"{FIRST}.singular.1": 6.0,
    f"{FIRST}.vectors": stored(SPACE[3:6]),
    f"{FIRST}.vectors ": "",
    f"{FIRST}.vectors  ": None,
    f"{FIRST}": None,
    "ranks.points.0.sites.1.rank": 9,  # the sum is another
    "ranks.points.0.sites.1.rank ": 8.4,
    "ranks.points": [],
}


def changed(place: str, value: Any) -> tuple[dict[str, Any], dict[str, Any], str]:
    """The record, its repeat with another value at a place, and the name of the place in a comparison."""
    one, other, field = {"probes": PROBES}, {"probes": deepcopy(PROBES)}, "probes"
    inner: Any = other["probes"]
    *parents, last = [int(p) if p.isdecimal() else p for p in place.strip().split(".")]
    for key in parents:
        inner = inner[key]
    inner[last] = value
    for key in (*parents, last):
        field += f"[{key}]" if isinstance(key, int) else f".{key}"
    return one, other, field


@pytest.mark.parametrize("place", COVERED)
def test_what_rounding_explains_is_within(place: str) -> None:
    assert covers(*changed(place, COVERED[place]))


@pytest.mark.parametrize("place", NOT_COVERED)
def test_what_rounding_does_not_explain_is_not(place: str) -> None:
    assert not covers(*changed(place, NOT_COVERED[place]))


@pytest.mark.parametrize(("flipped", "well"), [(4, True), (5, False)])
def test_answers_count_by_the_share_that_is_equal_at_their_point(flipped: int, well: bool) -> None:
    right = PROBES["arc_easy"]["points"][1]["right"]
    answers = [1 - v if i < flipped else v for i, v in enumerate(right)]
    one, other, _ = changed("arc_easy.points.1.right", answers)
    other["probes"]["arc_easy"]["points"][1]["accuracy"] = sum(answers) / 40
    assert covers(one, other, "probes.arc_easy.points[1].right[0]") is well
    assert covers(one, other, "probes.arc_easy.points[1].accuracy") is well


@pytest.mark.parametrize(("sites", "well"), [(4, False), (8, True)])
def test_ranks_may_move_from_one_site_to_another(sites: int, well: bool) -> None:
    """Two of 30 are more than a twentieth, two of 66 are less."""
    one, other, field = deepcopy(changed("ranks.points.0.sites.1.rank", 9))
    other["probes"]["ranks"]["points"][0]["sites"][2]["rank"] = 11
    for body in (one, other):
        body["probes"]["ranks"]["points"][0]["sites"] += (sites - 4) * [{"rank": 9}]
    assert covers(one, other, field) is well


@pytest.mark.parametrize("point", [0, 1])
def test_sixteen_bits_round_losses_more_coarsely(point: int) -> None:
    one, other, field = changed(f"wikitext2_loss.points.{point}.loss", 4.52)
    assert not covers(one, other, field)
    assert covers({**one, "spec": {"backbone": {"dtype": "bfloat16"}}}, other, field)
    other["probes"]["wikitext2_loss"]["points"][point]["loss"] = 4.6
    assert not covers({**one, "spec": {"backbone": {"dtype": "bfloat16"}}}, other, field)


def test_a_probe_or_a_part_of_it_that_one_run_lacks_is_no_rounding() -> None:
    assert not covers({"probes": PROBES}, {}, "probes.ranks.points[0].sites[0].rank")
    one, other, _ = changed("arc_easy.points.1.right", [])
    assert not covers(one, other, "probes.arc_easy.points[1].right")
    del other["probes"]["wikitext2_loss"]["points"][1]["windows"]
    assert not covers(one, other, "probes.wikitext2_loss.points[1].windows")


ODD = (None, 3, "x", [], {}, [None], [[1]], {"A": {"vectors": 3}})


@pytest.mark.parametrize("place", ["points", "points.0", "points.0.sites", "points.0.sites.0", "points.0.sites.0.A"])
def test_a_foreign_shape_is_no_rounding_and_no_crash(place: str) -> None:
    for odd in ODD:
        _, other, _ = changed(f"subspaces.{place}", odd)
        for field in ("sites[0].A.vectors", "sites[0].A.singular[0]", "right[0]", "accuracy"):
            assert not covers(other, {"probes": PROBES}, f"probes.subspaces.points[0].{field}"), odd
    for odd in ODD:
        one, other, field = changed("arc_easy.points.1.right", odd)
        assert not covers(one, other, field)
        assert not covers(other, one, "probes.arc_easy.points[1].right[0]")
        _, other, _ = changed("subspaces.points.0.sites.0.width", odd)
        assert not covers(other, {"probes": PROBES}, "probes.subspaces.points[0].sites[0].A.vectors")
        assert not covers({"probes": odd}, {"probes": PROBES}, "probes.ranks.points[0].sites[0].rank")
