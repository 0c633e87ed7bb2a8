"""The command line: exit codes, messages, and that asking for help is quick."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from commands import TINY, Call, cache_of_this_session

import peftbench
from peftbench.errors import UserError
from peftbench.method import scaffold
from peftbench.plan import experiment
from peftbench.records.retries import TimeLimits
from peftbench.run import runner
from peftbench.run.view import Lines


def python(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "peftbench", *args]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **env})


def test_help_answers_within_half_a_second_of_work() -> None:
    spent = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert "Usage" in python("--help").stdout
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(spent) < 0.5, "seconds of processor time: the clock's would count what else runs here"


def test_the_command_line_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'pydantic', 'rich', 'yaml', 'pandas', 'numpy', 'tabulate'}"
    code = f"import sys, peftbench.cli.app; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.skipif(sys.platform != "linux", reason="only there a process can become the parent of orphans")
def test_a_process_that_has_called_a_command_is_no_parent_of_orphans(call: Call) -> None:
    call("--version")
    leaves = "import subprocess, sys; p = subprocess.Popen(['sleep', '60'], stdout=2); print(p.pid, flush=True)"
    orphan = psutil.Process(int(subprocess.check_output([sys.executable, "-c", leaves], text=True)))
    assert orphan.ppid() != os.getpid(), "nobody would ask for its exit code"
    orphan.kill()


def test_version(call: Call) -> None:
    done = call("--version")
    assert (done.code, done.out) == (0, f"peftbench {peftbench.__version__}\n")


def test_every_command_has_help(call: Call) -> None:
    commands = ("run", "plan", "report", "methods", "tasks", "fetch", "new-method", "schema")
    top = call("--help").out
    for command in commands:
        assert command in top
        assert call(command, "--help").code == 0


@pytest.mark.parametrize(
    "args", [("rnu",), ("run",), ("plan", "x.yaml", "--jobz", "2"), ("run", "x.yaml", "--jobs", "0")]
)
def test_wrong_usage_exits_with_2(call: Call, args: Sequence[str]) -> None:
    done = call(*args)
    assert (done.code, done.out) == (2, "")
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("run", "nowhere.yaml"), "no experiment file nowhere.yaml"),
        (("plan", "TINY", "--only", "method=lroa"), "did you mean 'lora'?"),
        (("run", "TINY", "--device", "gpu"), "--device: unknown device 'gpu'"),
        (("run", "TINY", "--device", "cuda:99"), "device 'cuda:99'"),
        (("profile", "TINY", "--device", "cuda:99"), "device 'cuda:99'"),
        (("plan", "TINY", "--plugin", "nowhere.py"), "no plugin file"),
        (("plan", "TINY", "--data-dir", "nowhere"), "--data-dir nowhere: there is no such directory"),
        (("run", "TINY", "--data-dir", "TINY"), "is a file, not a directory"),
        (("methods", "lroa"), "unknown method 'lroa'; did you mean 'lora'?"),
        (("methods", "mine"), "--plugin FILE"),
        (("tasks", "glue/rtee"), "unknown task 'glue/rtee'; did you mean 'glue/rte'?"),
        (("fetch", "minilm"), "did you mean 'minilm-l6'?"),
        (("report", "nowhere"), "no records of runs here"),
        (("new-method", "my-method"), "cannot name a method"),
    ],
)
def test_a_users_mistake_is_one_message_and_exit_2(call: Call, tiny: str, args: Sequence[str], said: str) -> None:
    done = call(*(tiny if a == "TINY" else a for a in args))
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: ")
    assert said in done.err
    assert "Traceback" not in done.err


def test_a_mistake_leaves_nothing_behind(call: Call, tiny: str, tmp_path: Path) -> None:
    call("run", tiny, "--only", "seed=9")
    assert [p.name for p in tmp_path.iterdir()] == ["tiny.yaml"]


def test_ctrl_c_exits_with_130(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    from peftbench.backbones import embedded

    def interrupted(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(embedded, "fetch", interrupted)
    assert call("fetch").code == 130


def test_plan_shows_sizes_deviations_and_times(call: Call, tiny: str) -> None:
    done = call("plan", tiny)
    assert done.code == 0
    assert "2,048" in done.out
    assert "+2.4%" in done.out
    assert "~" in done.out
    assert "tiny: 4 runs, 0 finished, 4 to run" in done.out
    assert "off the budget of 2,000 trainable parameters by more than 20%: full 15x (only size)" in done.out


def test_plan_says_what_is_done_to_the_data(call: Call, tiny: str, tmp_path: Path) -> None:
    said = call("plan", tiny).out
    assert "data of synthetic/classification\n  Examples: 60 train, 48 validation, 64 test.\n" in said
    assert "Classes, train/validation/test: bad 30/24/32, good 30/24/32." in said
    assert "! Classes" not in said
    rows = [f"{'word ' * (30 + i)},{'Billing' if i % 3 else 'billing'}" for i in range(60)]
    (tmp_path / "t.csv").write_text("\n".join(["body,queue", *rows]))
    own = "task: local, train: t.csv, text: body, label: queue"
    (tmp_path / "own.yaml").write_text(TINY.replace("task: synthetic/classification, rows: 60", own))
    said = " ".join(call("plan", "own.yaml").out.split())
    assert "! Texts over 16 tokens lose their end: 100 % of every split" in said
    assert "! Classes that differ only in case, blanks or hyphens: Billing = billing." in said


def test_plan_as_json_has_a_row_for_each_run(call: Call, tiny: str) -> None:
    rows = json.loads(call("plan", tiny, "--json", "--only", "seed=1").out)
    assert [(r["label"], r["seed"], r["size"]) for r in rows] == [("full", 1, "native"), ("lora", 1, "matched")]
    assert rows[1]["trainable"] == 2048
    assert rows[1]["deviation"] == pytest.approx(0.024)
    assert rows[1]["predicted_seconds"] > 0
    assert rows[1]["status"] is None


def test_plan_says_that_a_stand_in_runs(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from peftbench.backbones import hub
    from peftbench.tasks import glue_hub

    def unreachable(*args: Any, **kwargs: Any) -> Any:
        raise hub.HubError("switched off for the test", "Switch it on")

    monkeypatch.setattr(glue_hub, "glue", unreachable)
    path = tmp_path / "e.yaml"
    path.write_text(
        TINY.replace("task: synthetic/classification, rows: 60", "task: glue/rte, stand_in: synthetic/pair")
    )
    out = call("plan", str(path)).out
    assert "synthetic/pair STANDS IN for glue/rte" in out
    assert "--data-dir" in out


def test_a_data_directory_without_a_tasks_files_still_means_a_stand_in(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peftbench.backbones import hub
    from peftbench.tasks import glue_hub

    def unreachable(*args: Any, **kwargs: Any) -> Any:
        raise hub.HubError("switched off for the test", "Switch it on")

    monkeypatch.setattr(glue_hub, "glue", unreachable)
    path = tmp_path / "e.yaml"
    glue = "task: glue/rte, stand_in: synthetic/pair"
    path.write_text(TINY.replace("task: synthetic/classification, rows: 60", glue))
    (tmp_path / "empty").mkdir()
    done = call("plan", str(path), "--data-dir", "empty")
    assert done.code == 0
    assert "synthetic/pair STANDS IN for glue/rte" in done.out
    refused = call("plan", str(path), "--data-dir", "nowhere")
    assert (refused.code, refused.out, refused.err.count("\n")) == (2, "", 1)


@dataclass
class Ran:
    specs_for: Any
    results_dir: Path
    more: dict[str, Any]


def test_run_hands_its_options_to_the_runner_and_exits_with_its_code(
    call: Call, tiny: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[Ran] = []

    def run(specs_for: Any, results_dir: Path, **more: Any) -> runner.Outcome:
        ran.append(Ran(specs_for, results_dir, more))
        return runner.Outcome(1, {"error": 1}, ("full",))

    monkeypatch.setattr(runner, "run", run)
    Path("d").mkdir()
    done = call(
        *("run", tiny, "--jobs", "3", "--device", "cpu", "--retry-failed", "--only", "method=lora", "--data-dir", "d"),
        *("--timeout", "90"),
    )
    assert done.code == 1
    (one,) = ran
    assert one.results_dir == Path("results/tiny")
    assert [s.slug for s in one.specs_for([])] == [f"lora--synthetic_classification--s{i}" for i in (0, 1)]
    assert one.more["session_kwargs"] == {"device": "cpu", "data_dir": "d", "plugins": [], "adapters": None}
    assert (one.more["jobs"], one.more["retry_failed"]) == (3, True)
    assert one.more["limits"] == TimeLimits(run=90)
    assert isinstance(one.more["view"], Lines), "not quiet, and no terminal"
    assert "tiny: 2 runs, 0 finished, 2 to run" in done.out


@pytest.mark.parametrize(
    ("given", "jobs", "threads", "profile_threads"),
    [("", "1", None, None), ("3", "1", 3, 3), ("3", "2", None, 3), ("4,2", "1", 4, 4)],
)
def test_omp_num_threads_is_respected_where_one_run_has_the_machine(
    call: Call, tiny: str, monkeypatch: pytest.MonkeyPatch, given: str, jobs: str, threads: Any, profile_threads: Any
) -> None:
    told: dict[str, Any] = {}
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    monkeypatch.setattr(runner, "run", lambda *args, **more: (told.update(more), runner.Outcome(0, {}, ()))[1])
    assert call("run", tiny, "--jobs", jobs, "-q").code == 0
    assert (told["threads"], told["profile_threads"]) == (threads, profile_threads)


@pytest.mark.parametrize("given", ["0", "two", "-1", "1.5"])
def test_an_omp_num_threads_that_is_no_number_is_refused(
    call: Call, tiny: str, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    done = call("run", tiny)
    assert (done.code, done.out) == (2, "")
    assert f"OMP_NUM_THREADS={given}" in done.err


def test_adapters_are_kept_beside_the_records_when_asked_for(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: dict[str, Any] = {}
    monkeypatch.setattr(runner, "run", lambda *args, **more: (told.update(more), runner.Outcome(0, {}, ()))[1])
    path = tmp_path / "e.yaml"
    path.write_text(f"{TINY}save_adapters: true\n")
    call("run", str(path), "--results", "r")
    assert told["session_kwargs"]["adapters"] == "r/adapters"


def test_quiet_prints_nothing(call: Call, tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "run", lambda *args, **more: runner.Outcome(0, {}, ()))
    done = call("run", tiny, "-q", "--results", "r")
    assert (done.code, done.out, done.err) == (0, "", "")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--rounds", "0"], "Invalid value for '--rounds'"),
        (["--only", "method=dora"], "unknown method 'dora'"),
        (["--only", "lora"], "write key=value"),
        (["--device", "gpu"], "unknown device 'gpu'"),
        (["--data-dir", "nowhere"], "there is no such directory"),
        (["--plugin", "nowhere.py"], "nowhere.py"),
    ],
)
def test_a_mistake_in_what_profile_is_given_is_told_and_nothing_is_measured(
    call: Call, tiny: str, monkeypatch: pytest.MonkeyPatch, given: list[str], said: str
) -> None:
    monkeypatch.setattr(runner, "run", lambda *args, **more: pytest.fail("it began"))
    done = call("profile", tiny, *given)
    assert (done.code, done.out) == (2, "")
    assert said in done.err.replace("\n", " ")


def test_profile_asks_for_one_pass_a_task_without_any_run(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def run(specs_for: Any, results_dir: Path, **more: Any) -> runner.Outcome:
        asked.append((specs_for([]), results_dir, more))
        return runner.Outcome(0, {}, ())

    monkeypatch.setattr(runner, "run", run)
    path = tmp_path / "e.yaml"
    path.write_text(TINY.replace("profile: {processes: 1, rounds: 1, warmup: 0}", "profile: false"))
    assert call("profile", str(path), "--only", "method=lora", "--rounds", "3", "--processes", "1", "-q").code == 0
    ((spec,), where, more) = asked[0]
    assert (spec.slug, spec.rounds, [m.label for m in spec.methods]) == (
        "profile--synthetic_classification",
        3,
        ["lora"],
    )
    assert where == Path("results/tiny")
    assert more["again"] is True


@pytest.mark.full
@pytest.mark.slow
def test_profile_measures_again_and_the_first_pass_counts_for_run_and_report(
    call: Call, tiny: str, tmp_path: Path
) -> None:
    results = tmp_path / "r"
    given = (tiny, "--results", str(results), "--device", "cpu")
    first = call("profile", *given)
    assert first.code == 0, first.out + first.err
    assert "The machine's rate" in first.out
    assert "attempt" not in first.out
    (only,) = (results / "runs").iterdir()
    rows = json.loads(call("profile", *given, "--json").out)
    assert [(r["method"], r["attempt"], r["counts"]) for r in rows] == [("full", 2, False), ("lora", 2, False)]
    assert all(r["flops"]["total"] > 0 and r["record"] != only.name for r in rows)

    shown = run_trains_reports_and_resumes(call, given, results)
    assert len(list((results / "runs").glob("profile--*"))) == 2, "its pass is there already"
    full, lora = shown
    counted = {r["label"]: r for r in json.loads(only.read_text())["rows"]}
    assert full["step_seconds"] == counted["full"]["step_seconds"]["median"]
    assert lora["split_seconds"]["backward"] == counted["lora"]["split_seconds"]["backward"]["median"]


def run_trains_reports_and_resumes(call: Call, given: tuple[str, ...], results: Path) -> list[dict[str, Any]]:
    """`run` in a process of its own, and again; returns the rows of the report."""
    env = {"PEFTBENCH_CACHE": str(cache_of_this_session(results.parent)), "OMP_NUM_THREADS": "1"}
    first = python("run", *given, **env)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "lora" in first.stdout
    records = sorted(p.name for p in (results / "runs").iterdir())
    assert len([name for name in records if not name.startswith("profile--")]) == 4
    written = (results / "report" / "report.md").stat().st_mtime_ns
    assert "4 runs, 4 finished, 0 to run" in call("run", *given).out
    assert (results / "report" / "report.md").stat().st_mtime_ns == written, "nothing changed: not drawn again"
    assert sorted(p.name for p in (results / "runs").iterdir()) == records
    rows: list[dict[str, Any]] = json.loads(call("report", str(results), "--json").out)
    assert {r["method"] for r in rows} >= {"full", "lora"}
    return rows


def test_methods_lists_all_and_shows_one(call: Call) -> None:
    listed = call("methods").out
    assert all(name in listed for name in ("full", "lora", "qlora", "adapter", "prefix", "ia3", "dora"))
    card = call("methods", "lora").out
    for part in ("arXiv:2106.09685", "h = W x + (alpha/r) B A x", "size knob:     rank", "rank = 8  [integer >= 1]"):
        assert part in card
    for part in ("trains:        r (in + out) at each site", "when it fails: Given much new data", "arXiv:2405.09673"):
        assert part in card
    assert "needs:" not in card
    assert "needs:         a task head" in call("methods", "linear_probe").out
    told = json.loads(call("methods", "lora", "--json").out)
    assert (told["size_knob"], told["defaults"]["rank"]) == ("rank", 8)
    assert told["caveats"].startswith("Given much new data")


def test_tasks_lists_all_and_shows_one(call: Call) -> None:
    listed = call("tasks").out
    assert all(name in listed for name in ("glue/rte", "embedded/question_type", "e2e_nlg", "local"))
    assert "mcc, accuracy" in call("tasks", "glue/cola").out
    assert json.loads(call("tasks", "glue/cola", "--json").out)["kind"] == "classification"


def test_the_card_of_local_data_lists_every_option_and_the_metrics_of_each_kind(call: Call) -> None:
    from peftbench.tasks import dataset, local, metrics

    card = call("tasks", "local").out
    items = re.split(r"\n(?:  )?(?=\S)", card)
    lines = {item.split()[0]: " ".join(item.split()) for item in items if item.strip()}
    assert set(lines) >= {*local.OPTIONS, *dataset.LIMITS}
    for name, said in {
        "train": "[required]",
        "text": "[required]",
        "label": "[required for classification and regression]",
        "answer": "[required for generation]",
        "test": "[default: carved from train",
        "kind": "[default: classification, or generation where answer is given]",
    }.items():
        assert said in lines[name]
    for kind in dataset.KINDS:
        assert lines[f"{kind}:"].endswith(", ".join(metrics.for_kind(kind)))
    told = json.loads(call("tasks", "local", "--json").out)
    assert [o["name"] for o in told["options"]] == [*local.OPTIONS, *dataset.LIMITS]
    assert told["metrics_by_kind"]["regression"] == metrics.for_kind("regression")


def test_the_card_of_any_task_lists_the_row_limits_and_the_keys_of_all_tasks(call: Call) -> None:
    card = call("tasks", "glue/rte").out
    for part in ("limit_train", "limit_test", "max_length", "stand_in"):
        assert part in card


def test_schema_knows_the_methods_and_takes_what_the_suite_takes(call: Call) -> None:
    schema = json.loads(call("schema").out)
    assert {"name", "backbone", "tasks", "methods"} <= set(schema["required"])
    lora = schema["$defs"]["method_lora"]["properties"]["lora"]
    assert lora["additionalProperties"] is False
    assert {"rank", "alpha", "dropout", "roles", *experiment.RESERVED} == set(lora["properties"])
    assert lora["properties"]["rank"]["anyOf"][0] == {"type": "integer", "minimum": 1}
    assert "glue/rte" in schema["$defs"]["TaskSection"]["properties"]["task"]["enum"]
    used = {r for r in json.dumps(schema).split('"') if r.startswith("#/$defs/")}
    assert used <= {f"#/$defs/{name}" for name in schema["$defs"]}


def test_new_method_writes_a_plugin_that_loads(call: Call, tmp_path: Path) -> None:
    done = call("new-method", "my_vectors")
    path = tmp_path / "my_vectors.py"
    assert done.code == 0
    assert str(path) in done.out
    assert done.out.splitlines()[-1].endswith("python -m peftbench check-method my_vectors.py")
    text = path.read_text()
    assert "class MyVectors(Method):" in text
    assert 'name = "my_vectors"' in text
    assert "emplate" not in text.partition("@register")[2]
    assert "my_vectors" in call("methods", "my_vectors", "--plugin", str(path)).out


def test_new_method_overwrites_nothing(call: Call, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("precious")
    done = call("new-method", "mine")
    assert done.code == 2
    assert "is not overwritten" in done.err
    assert (tmp_path / "mine.py").read_text() == "precious"


@pytest.mark.parametrize("name", ["", "my-method", "class", "_hidden", "../up", "1st", "méthode", "lora"])
def test_a_name_that_no_method_can_have_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError):
        scaffold.new_method(name, ["lora"], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_in_a_checkout_a_new_method_belongs_to_methods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods" / "_template.py").write_text('class Template:\n    name = "template"\n')
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "peftbench"\n')
    monkeypatch.setattr(scaffold, "method_folder", lambda: tmp_path / "methods")
    assert scaffold.new_method("mine", [], tmp_path) == tmp_path / "methods" / "mine.py"
    assert (tmp_path / "methods" / "mine.py").read_text() == 'class Mine:\n    name = "mine"\n'


def test_a_plan_has_a_line_for_each_value_of_its_axes(call: Call, tmp_path: Path) -> None:
    path = tmp_path / "sizes.yaml"
    path.write_text(TINY.replace("steps: 3, ", "") + "axes: {train_size: [all, 20], steps: [2, 3]}\n")
    table, data = call("plan", str(path)).out.split("\n\ndata of ", 1)
    head, _, *lines = [line.split() for line in table.splitlines()]
    assert head[:3] == ["task", "train", "size"]
    assert [(line[1], line[2]) for line in lines] == [(size, m) for size in ("20", "20", "all", "all")
                                                      for m in ("full", "lora")]  # fmt: skip
    assert data.startswith("synthetic/classification, train_size 20\n")
    assert "train_size all\n" in data
