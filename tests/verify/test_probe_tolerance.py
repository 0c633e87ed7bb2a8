"""What another machine may change of what probes measured, and what it may not."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest

from peftbench.verify.records.probe_tolerance import covers

PROBES: dict[str, Any] = {
    "wikitext2_loss": {
        "version": 1,
        "points": [{"loss": 4.5, "windows": [4.0, 5.0], "step": n, "tokens": 9, "sha256": "aa"} for n in (0, 60)],
    },
    "arc_easy": {"version": 1, "points": [{"accuracy": 0.5, "right": [0, 1] * 20, "step": 60}]},
    "decomposition": {
        "version": 1,
        "points": [{"sites": [{"dD": 0.002, "dM": 0.004, "layer": n, "path": f"q.{n}"} for n in range(4)], "step": 9}],
    },
    "subspaces": {
        "version": 1,
        "points": [
            {"sites": [{"A": {"singular": [4.0, 2.0], "vectors": "zSxe"}, "update": None, "layer": 0}], "step": 9}
        ],
    },
    "ranks": {"version": 1, "points": [{"sites": [{"rank": n, "layer": n} for n in (4, 8, 12, 6)], "step": 9}]},
}
COVERED = {
    "wikitext2_loss.points.1.loss": 4.51,
    "wikitext2_loss.points.0.windows.1": 5.1,
    "decomposition.points.0.sites.2.dD": 0.00201,
    "subspaces.points.0.sites.0.A.singular.1": 2.01,
    "subspaces.points.0.sites.0.A.vectors": "zSxf",
    "ranks.points.0.sites.1.rank": 9,
}
NOT_COVERED = {
    "wikitext2_loss.points.1.loss": 6.5,
    "wikitext2_loss.points.1.windows.1": 9.0,
    "wikitext2_loss.points.1.windows": [4.0],
    "wikitext2_loss.points.1.loss ": None,
    "wikitext2_loss.points.1.step": 61,
    "wikitext2_loss.points.1.tokens": 10,
    "wikitext2_loss.points.1.sha256": "ab",
    "wikitext2_loss.version": 2,
    "decomposition.points.0.sites.2.dD": 0.02,  # small numbers have no floor
    "decomposition.points.0.sites.2.path": "k.2",
    "decomposition.points.0.sites.2.layer": 3,
    "subspaces.points.0.sites.0.A.singular.1": 3.0,
    "ranks.points.0.sites.1.rank": 14,
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
def test_answers_count_by_the_share_that_is_equal(flipped: int, well: bool) -> None:
    right = PROBES["arc_easy"]["points"][0]["right"]
    one, other, _ = changed("arc_easy.points.0.right", [1 - v if i < flipped else v for i, v in enumerate(right)])
    assert covers(one, other, "probes.arc_easy.points[0].right[0]") is well
    assert covers(one, other, "probes.arc_easy.points[0].accuracy") is well


def test_directions_are_held_to_their_singular_values() -> None:
    one, other, _ = changed("subspaces.points.0.sites.0.A.singular.0", 9.0)
    assert not covers(one, other, "probes.subspaces.points[0].sites[0].A.vectors")


def test_a_probe_that_one_run_lacks_is_no_rounding() -> None:
    assert not covers({"probes": PROBES}, {}, "probes.ranks.points[0].sites[0].rank")
