"""Counts the rooms of a package, their floors, and what they import of each other; lazy imports count.

    python scripts/house.py

Exits with 1 where there are more rooms than LIMIT, an arrow that does not lead to a lower layer, or a circle. The
layers are those of the contract in pyproject.toml, which `lint-imports` checks import by import.
"""

from __future__ import annotations

import ast
import sys
import tomllib
from pathlib import Path

import grimp

CONFIG = Path(__file__).resolve().parents[1] / "pyproject.toml"
LIMIT = 14  # rooms that a newcomer can read at one glance


def layers() -> list[list[str]]:
    """The rooms of each layer, highest first, as the contract names them."""
    contracts = tomllib.loads(CONFIG.read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
    (contract,) = [c for c in contracts if c["type"] == "layers"]
    return [[room.strip() for room in layer.split("|")] for layer in contract["layers"]]


def arrows(package: str) -> dict[str, set[str]]:
    """The rooms that each room imports; through the root package, all that the root imports."""
    graph = grimp.build_graph(package, exclude_type_checking_imports=True, cache_dir=None)
    rooms = graph.find_children(package) - {f"{package}.__main__"}
    for room in rooms:
        graph.squash_module(room)
    behind = {m: graph.find_modules_directly_imported_by(m) for m in {package, *rooms}}
    found = {r: behind[r] | (behind[package] if package in behind[r] else set()) for r in rooms}
    return {r.rpartition(".")[2]: {t.rpartition(".")[2] for t in found[r] & rooms - {r}} for r in sorted(rooms)}


def by_name(package: str) -> list[str]:
    """Imports of the package's own modules by a text, which the graph cannot see: `import_module("peftbench.cli")`."""
    found = []
    for path in sorted((CONFIG.parent / package).rglob("*.py")):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and call.args and isinstance(call.args[0], ast.Constant):
                function = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
                if function in ("import_module", "__import__") and str(call.args[0].value).startswith(package):
                    found.append(f"{path.relative_to(CONFIG.parent)}:{call.lineno}")
    return found


def floors(arrows: dict[str, set[str]]) -> list[set[str]]:
    """Rooms from the ground up, each above all that it imports. A circle and all above it have no floor."""
    found: list[set[str]] = []
    done: set[str] = set()
    while ready := {r for r in arrows if r not in done and arrows[r] <= done}:
        found.append(ready)
        done |= ready
    return found


def main(package: str = "peftbench") -> int:
    rooms, height = arrows(package), {room: -i for i, layer in enumerate(layers()) for room in layer}
    found = floors(rooms)
    upwards = [f"{a} -> {b}" for a in rooms for b in sorted(rooms[a]) if height[b] >= height[a]]
    hidden = by_name(package) if (CONFIG.parent / package).is_dir() else []
    circle = sorted(set(rooms).difference(*found))
    print(
        f"{len(rooms)} rooms of at most {LIMIT}, {len(found)} floors, {sum(map(len, rooms.values()))} arrows, "
        f"{len(upwards)} upwards, {len(circle)} rooms in or above circles; lazy imports count"
    )
    print("".join(f"upwards: {arrow}\n" for arrow in upwards) + "".join(f"circle: {room}\n" for room in circle), end="")
    print("".join(f"imported by a text: {place}\n" for place in hidden), end="")
    return int(len(rooms) > LIMIT or bool(upwards or circle or hidden))


if __name__ == "__main__":
    sys.exit(main())
