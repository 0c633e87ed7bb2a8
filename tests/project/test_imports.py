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
            "peftbench.plan.grid", "peftbench.plan.prepare", "peftbench.cli.plan_view", "peftbench.estimate.calibrate"
        )
    }
    assert "peftbench" in tops
    assert not tops & {"torch", "transformers", "datasets", "safetensors"}


def test_tables_and_statistics_import_only_records() -> None:
    found = reachable("peftbench.report.data.collect", "peftbench.report.tables.columns", root=False, lazy=True)
    ours = [m.split(".") for m in found if file_of(m)]
    assert ["peftbench", "records", "record"] in ours
    assert {parts[1] for parts in ours} == {"report", "records", "errors"}


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
    from peftbench.estimate import calibrate
    from peftbench.run import runner
    from peftbench.run.executors import pool

    assert {runner.SESSION, calibrate.WORKER} <= set(paths_in_strings())
    assert pool.WORKER == "peftbench.run.executors.worker", "what `python -m` runs is not __main__"
