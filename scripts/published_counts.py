"""Write docs/published-counts.md: published parameter counts beside ours; run it after either changes.

python scripts/published_counts.py
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import ROUND_HALF_UP, Decimal
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from peftbench.backbones import architectures, roles
from peftbench.backbones.sites import Sites
from peftbench.estimate.count import ModelQuery, network
from peftbench.method.catalogue import Catalogue
from peftbench.method.registry import discover, find, make

ROOT = Path(__file__).resolve().parent.parent
DATA, PAGE = ROOT / "tests" / "estimate" / "published_counts.yaml", ROOT / "docs" / "published-counts.md"
UNITS = {"": 1, "M": 10**6, "%": Fraction(1, 100), "MB": 10**6, "MiB": 2**20}
HEAD = """# Published parameter counts and ours

Made by `python scripts/published_counts.py` from
`tests/estimate/published_counts.yaml`; the tests hold every row to it.
*Equal*: our exact count rounds to the digits that are printed. Where it does not, the reason stands beside it. A share
is of the base, or, as peft prints it, of base and adapter together. *Not stated* marks a size that only the printed
count tells.

| source | what | printed | ours, exact | here | sizes from | verdict |
| --- | --- | ---: | ---: | --- | --- | --- |
"""
Row = Mapping[str, Any]


def rows() -> list[dict[str, Any]]:
    """Every row, in the file's order."""
    return yaml.safe_load(DATA.read_text(encoding="utf-8"))


def missing(row: Row) -> str | None:
    """Why a row cannot be counted with what there is here; None where it can."""
    if row["method"] not in discover():
        return f"there is no method {row['method']!r}"
    kind = architectures.known()[row["model"]]["config"]["model_type"]
    return None if kind in roles.TABLES else f"the roles of {kind!r} are not known"


@lru_cache
def sites(model: str) -> Sites:
    return network(ModelQuery(model)).sites


def trainable(row: Row) -> int:
    """The exact count of the method's own parameters."""
    hyper = Catalogue().hyper(row["method"], row.get("hyper", {}))
    return make(find(row["method"]), hyper).parameters(sites(row["model"]))


def quantity(row: Row, numbers: int) -> int | Fraction:
    """What the row's `counts` makes of a number of trained parameters."""
    base = sites(row["model"]).base
    return {
        "trainable": numbers,
        "share": Fraction(numbers, base + numbers),
        "share of base": Fraction(numbers, base),
        "bytes": 4 * numbers,
    }[row.get("counts", "trainable")]


def as_printed(value: int | Fraction, printed: str) -> str:
    """`value` with the unit and the digits of `printed`, halves rounded up.

    >>> as_printed(294_912, "0.3 M"), as_printed(Fraction(83, 10_000), "0.83 %"), as_printed(129_024, "129024")
    ('0.3 M', '0.83 %', '129024')
    """
    digits, _, unit = printed.partition(" ")
    scaled = Fraction(value) / UNITS[unit]
    places = len(digits.partition(".")[2])
    exact = Decimal(scaled.numerator) / Decimal(scaled.denominator)
    rounded = exact.quantize(Decimal(1).scaleb(-places), ROUND_HALF_UP)
    text = f"{rounded:,.{places}f}" if "," in digits else f"{rounded:.{places}f}"
    return f"{text} {unit}".strip()


def equal(row: Row, numbers: int) -> bool:
    """Whether `numbers` trained parameters are what is printed."""
    return as_printed(quantity(row, numbers), str(row["printed"])) == str(row["printed"])


def line(row: Row) -> str:
    """The row's line of the table."""
    here = " ".join([row["method"], row["model"], *(f"{k}={v}" for k, v in row.get("hyper", {}).items())])
    cells = [row["source"], row["what"], row["printed"]]
    reason = missing(row)
    if reason is not None:
        return _cells([*cells, "–", here, row["from"], f"not counted: {reason}"])
    own = trainable(row)
    verdict = "equal" if equal(row, own) else f"{row['explained']}"
    if "plus" in row:
        verdict = f"equal with {row['plus']:+,}: {verdict}"
    return _cells([*cells, f"{own:,}", here, row["from"], verdict])


def page() -> str:
    """The whole page."""
    return HEAD + "".join(f"{line(row)}\n" for row in rows())


def _cells(values: list[Any]) -> str:
    return "| " + " | ".join(str(v) for v in values) + " |"


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(), encoding="utf-8")
