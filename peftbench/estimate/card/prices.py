"""Prices of cards, from a user's file: none are built in, as they differ by place and day."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import yaml

from peftbench.errors import UserError, shown
from peftbench.estimate.card.cards import Card, card


@dataclass(frozen=True)
class Prices:
    """What cards cost for an hour.

    Attributes:
        currency: E.g. "EUR".
        of: When and where the prices were read.
        hourly: Price by name of the card.
    """

    currency: str
    of: str
    hourly: dict[str, float]

    def price(self, of: Card, path: Path) -> float:
        """Return the price of a card.

        Raises:
            UserError: The file has none.
        """
        if of.name not in self.hourly:
            raise UserError(
                f"{path} has no price of {of.name}; add it, or give --price. It has: {', '.join(self.hourly)}"
            )
        return self.hourly[of.name]


class _Loader(yaml.SafeLoader):
    """A SafeLoader that refuses a key that stands twice, where PyYAML takes the last."""

    path: Path

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[Any, int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                line, name = key.start_mark.line + 1, self.construct_object(key)
                if name in lines:
                    first = f"first in line {lines[name]}"
                    raise UserError(
                        f"{self.path}: line {line}: the key {shown(name)} is given twice ({first}); keep one of them"
                    )
                lines[name] = line
        return super().construct_mapping(node, deep)


def read(path: Path) -> Prices:
    """Read a file such as docs/examples/prices.yaml.

    Args:
        path: The file.

    Raises:
        UserError: The file is not such a file, or has a key twice.
    """
    try:
        loader = _Loader(path.read_text(encoding="utf-8"))
        loader.path = path
        found: Any = loader.get_single_data()
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not YAML: {error}") from error
    wanted = "currency, date, source and hourly (a price for each card)"
    if not isinstance(found, dict) or not {"currency", "date", "source", "hourly"} <= set(found):
        raise UserError(f"{path}: a file of prices has {wanted}")
    if not isinstance(found["date"], date) or not isinstance(found["hourly"], dict):
        raise UserError(f"{path}: date is a day such as 2026-11-29, and hourly a price for each card")
    hourly: dict[str, float] = {}
    for name, price in found["hourly"].items():
        if isinstance(price, bool) or not isinstance(price, int | float) or not 0 <= price < float("inf"):
            raise UserError(f"{path}: the price of {name} is {shown(price)}; give a number from 0")
        try:
            known = card(str(name)).name
        except UserError as error:
            raise UserError(f"{path}: {str(error).removeprefix('--gpu: ')}") from error
        if known in hourly:
            raise UserError(f"{path} has two prices of {known}; keep one of them")
        hourly[known] = float(price)
    return Prices(str(found["currency"]), f"{found['date']}, {found['source']}", hourly)
