"""Who imports what. The graph is read from the source, so that an import counts although nobody runs it."""

from __future__ import annotations

import ast
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import peftbench

ROOT = Path(peftbench.__file__).parent


def imports(module: str, lazy: bool) -> set[str]:
    """Absolute names of what `module` imports; those inside functions too if `lazy`; never those for type checkers."""
    path = file_of(module)
    if path is None:
        return set()
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found: set[str] = set()
    todo: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            todo += node.orelse
            continue
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)) and not lazy:
            continue
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            found |= {source} | {f"{source}.{name.name}" for name in node.names if file_of(f"{source}.{name.name}")}
        todo += ast.iter_child_nodes(node)
    parents = {name.rsplit(".", i)[0] for name in found for i in range(1, name.count(".") + 1)}
    return found | {p for p in parents if p.startswith("peftbench")}


def file_of(module: str) -> Path | None:
    parts = module.split(".")
    if parts[0] != "peftbench":
        return None
    base = ROOT.joinpath(*parts[1:])
    return next((p for p in (base.with_suffix(".py"), base / "__init__.py") if p.is_file()), None)


def reachable(*modules: str, lazy: bool = False, root: bool = True) -> set[str]:
    """All that these modules import, and so on; without what the root package imports unless `root`."""
    found: set[str] = set()
    todo = list(modules)
    while todo:
        module = todo.pop()
        if module not in found and (root or module != "peftbench"):
            found.add(module)
            todo += imports(module, lazy)
    return found


def test_plan_imports_no_torch() -> None:
    tops = {
        m.partition(".")[0]
        for m in reachable(
            "peftbench.plan.grid",
            "peftbench.plan.prepare",
            "peftbench.cli.plan_view",
            "peftbench.estimate.run.calibrate",
        )
    }
    assert "peftbench" in tops
    assert not tops & {"torch", "transformers", "datasets", "safetensors"}


# of the report
FLOORS = {"media": 0, "stats": 1, "data": 2, "tables": 3, "figures": 3, "web": 4, "write": 5, "papers": 6,
          "assemble": 6, "site": 7}  # fmt: skip


def test_inside_the_report_arrows_go_one_way() -> None:
    upwards, seen = [], 0
    for path in sorted((ROOT / "report").rglob("*.py")):
        module = ".".join(["peftbench", *path.relative_to(ROOT).with_suffix("").parts])
        for name in imports(module, lazy=True):
            here, there = (m.split(".")[2:3] for m in (module, name))
            if here != there and name.startswith("peftbench.report.") and here != ["__init__"]:
                seen += 1
                upwards += [f"{module} -> {name}"] if FLOORS[there[0]] >= FLOORS[here[0]] else []
    assert seen > 50
    assert not upwards


def test_the_data_of_a_report_are_no_circle() -> None:
    names = [f"peftbench.report.data.{p.stem}" for p in (ROOT / "report" / "data").glob("*.py") if p.stem != "__init__"]
    below = {name: reachable(*(imports(name, lazy=True) - {name}), root=False, lazy=True) for name in names}
    assert "peftbench.report.data.comparison" in below["peftbench.report.data.verdicts"]
    assert not [name for name in names if name in below[name]]


def test_the_report_reads_records_and_nothing_else() -> None:
    files = [p for p in (ROOT / "report").rglob("*.py") if p.parent.name != "papers"]
    modules = {".".join(["peftbench", *p.relative_to(ROOT).with_suffix("").parts]) for p in files}
    found = {name.split(".")[1] for m in modules for name in imports(m, lazy=True) if name.startswith("peftbench.")}
    assert found == {"report", "records", "cache", "errors"}


def test_the_bitsandbytes_backend_does_not_know_the_layer_that_it_serves() -> None:
    text = (ROOT / "method" / "layers" / "nf4_bitsandbytes.py").read_text()
    assert "import " in text
    assert "layers.nf4 import" not in text, "not even for type checkers"


MODULES = [".".join(("peftbench", *p.relative_to(ROOT).with_suffix("").parts)) for p in sorted(ROOT.rglob("*.py"))]


def test_no_module_imports_a_method() -> None:
    assert "peftbench.run.train" in MODULES
    found = {(m, i) for m in MODULES for i in imports(m, lazy=True)}
    assert [pair for pair in sorted(found) if f"{pair[1]}.".startswith(("peftbench.methods.", "methods."))] == []


def test_the_reader_of_imports_sees_what_it_must() -> None:
    assert "torch" in reachable("peftbench.run.train")
    assert "peftbench.cli.app" in imports("peftbench.__main__", lazy=False)
    assert "torch" not in imports("peftbench.method.base", lazy=False)
    assert "torch" in imports("peftbench.method.base", lazy=True)
    assert "peftbench.records.record" in imports("peftbench.report.assemble", lazy=False), "relative imports too"


def test_importing_plan_really_leaves_torch_out() -> None:
    code = "import sys, peftbench.plan.prepare; sys.exit('torch' in sys.modules or 'pandas' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


PATH = re.compile(r"peftbench(\.\w+)*\.?(:\w+)?")
GROUPS = {"peftbench.executors"}  # entry points for other packages: no module has this name


def paths_in_strings() -> dict[str, str]:
    """Every string of the sources that is a path in this package, as in `python -m`, and the file that has it."""
    return {
        node.value: path.name
        for path in ROOT.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and PATH.fullmatch(node.value)
    }


def test_every_module_that_a_string_names_is_there() -> None:
    lost = {}
    for name, file in paths_in_strings().items():
        try:
            pkgutil.resolve_name(name)
        except (ImportError, AttributeError, ValueError):
            lost[name] = file
    assert {name: file for name, file in lost.items() if name not in GROUPS} == {}


def test_the_modules_that_processes_start_with_are_named_in_strings() -> None:
    from peftbench.estimate.run import calibrate
    from peftbench.run import runner
    from peftbench.run.executors import pool

    assert {runner.SESSION, calibrate.WORKER} <= set(paths_in_strings())
    assert pool.WORKER == "peftbench.run.executors.worker", "what `python -m` runs is not __main__"
