"""Models and data sets of the hub, asked by the real client of a hub on the loopback."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command_process import CommandProcess, Said, command, environment
from hub_server import Hub, Repo, folder, serve

from peftbench import api
from peftbench.tasks import glue_hub

pytestmark = pytest.mark.slow

TRAIN, DEV = (f"rte/{split}-00000-of-00001.parquet" for split in ("train", "validation"))
TOKEN = "hf_reader"  # accepted by the hub, and may read what is not private
EXPERIMENT = """
name: hubbed
backbone: {model: someone/tiny}
tasks: [{task: TASK, limit_train: 24, limit_test: 12}]
methods: [bitfit]
budget: {steps: 2, seeds: 1, batch_size: 4, max_length: 48}
reference: bitfit
profile: false
"""
IN_A_PROCESS = """
from peftbench.backbones import source
source.download_weights(source.origin("someone/tiny"))
"""


def weights(seed: int) -> dict[str, bytes]:
    """The files of a tiny encoder, as save_pretrained writes them."""
    import tempfile

    import torch
    from transformers import AutoModel

    from peftbench.backbones import tiny

    with tempfile.TemporaryDirectory() as inside, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        AutoModel.from_config(tiny.config("tiny-encoder")).save_pretrained(inside)
        tiny.tokenizer("tiny-encoder").save_pretrained(inside)
        return folder(Path(inside))


def parquet(rows: int, start: int) -> bytes:
    """Rows with the columns of RTE."""
    import pyarrow as pa
    from pyarrow import parquet

    ids = range(start, start + rows)
    columns = {
        "sentence1": [f"box {i} is {'red' if i % 2 else 'blue'}" for i in ids],
        "sentence2": [f"box {i} is red" for i in ids],
        "label": [1 - i % 2 for i in ids],
        "idx": list(ids),
    }
    file = io.BytesIO()
    parquet.write_table(pa.table(columns), file)
    return file.getvalue()


@pytest.fixture(scope="module")
def model() -> dict[str, bytes]:
    return weights(0)


@pytest.fixture(scope="module")
def hub(model: dict[str, bytes]) -> Iterator[Hub]:
    with serve() as hub:
        tiny = hub.model("someone/tiny", model)
        tiny.tags["v1"] = tiny.branches["main"]
        tiny.commit(weights(1), "dev")
        data = {TRAIN: parquet(120, 0), DEV: parquet(30, 500)}
        hub.dataset("nyu-mll/glue").commit(data, commit=glue_hub.REVISION)
        yield hub


@pytest.fixture(autouse=True)
def _faults_of_one_test_are_not_the_next_ones(hub: Hub) -> Iterator[None]:
    yield
    hub.delay = 0.0
    for repo in hub.repos.values():
        repo.fault = repo.files_fault = None


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of experiment files, with the results of those that run."""
    place = tmp_path_factory.mktemp("place")
    (place / "glue.yaml").write_text(EXPERIMENT.replace("TASK", "glue/rte"))
    (place / "model.yaml").write_text(EXPERIMENT.replace("TASK", "synthetic/classification"))
    text = EXPERIMENT.replace("TASK", "glue/rte").replace("someone/tiny", "tiny-encoder").replace("hubbed", "data")
    (place / "data.yaml").write_text(text)
    return place


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What all processes share: peftbench's cache, which would otherwise take each of them long to fill."""
    return {"PEFTBENCH_CACHE": str(tmp_path_factory.mktemp("cache"))}


@pytest.fixture(scope="module")
def trained(hub: Hub, place: Path, shared: dict[str, str]) -> dict[str, str]:
    """The environment in which model and data of the hub have trained once."""
    env = environment(place / "home", hub.url, **shared)
    said = command(place, env, "run", "glue.yaml")
    assert said.code == 0, said.err
    return env


@pytest.fixture(scope="module")
def peftbench(
    hub: Hub, place: Path, shared: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[CommandProcess]:
    """Command lines with an empty cache of the hub, and little time for the hub to answer."""
    limits = {**shared, "HF_HUB_ETAG_TIMEOUT": "2", "HF_HUB_DOWNLOAD_TIMEOUT": "1"}
    process = CommandProcess(place, environment(tmp_path_factory.mktemp("empty"), hub.url, **limits))
    yield process
    process.close()


def message(said: Said) -> str:
    """The one message of a command that ended with a user's mistake."""
    assert said.code == 2, said
    assert "Traceback" not in said.err
    text = said.err[said.err.index("error: ") :]
    assert len(text) <= 2000
    assert "hf_" not in text, "a token"
    return text


def records(place: Path, name: str = "hubbed") -> list[Any]:
    return list(api.records(place / "results" / name))


def test_a_model_and_a_data_set_of_the_hub_train_and_the_record_names_the_commit(
    hub: Hub, place: Path, trained: dict[str, str]
) -> None:
    (record,) = [r for r in records(place) if r.spec.seed == 0]
    assert record.is_finished
    commit = hub.repos["models", "someone/tiny"].branches["main"]
    assert record.spec.backbone.fingerprint == f"hub:someone/tiny@{commit}"
    large = [line for line in hub.asked if line.startswith("GET /large/models/someone/tiny")]
    assert len(large) == 1, "the weights are downloaded once"
    assert not Path(trained["OUTSIDE"]).exists(), "an address outside was asked for"
    assert not (Path(trained["HOME"]) / ".cache" / "huggingface").exists(), "HF_HOME is not respected"


def test_after_one_run_another_seed_trains_offline(place: Path, trained: dict[str, str]) -> None:
    said = command(place, {**trained, "HF_HUB_OFFLINE": "1"}, "run", "glue.yaml", "--set", "budget.seeds=2")
    assert said.code == 0, said.err
    assert "1 to run" in said.out
    assert {r.spec.seed for r in records(place) if r.is_finished} == {0, 1}
    assert len({r.spec.backbone.fingerprint for r in records(place)}) == 1


def test_a_hub_that_is_gone_is_told_and_what_is_done_stays_done(place: Path, trained: dict[str, str]) -> None:
    said = command(place, {**trained, "HF_ENDPOINT": "http://127.0.0.1:9"}, "run", "glue.yaml")
    assert said.code == 0, said.err
    assert " 0 to run" in said.out
    assert "nothing answers at http://127.0.0.1:9" in said.err
    assert "of the local cache is used" in said.err


def test_a_report_needs_neither_hub_nor_caches(place: Path, trained: dict[str, str], tmp_path: Path) -> None:
    said = command(place, environment(tmp_path, "http://127.0.0.1:9"), "report", "results/hubbed")
    assert said.code == 0, said.err
    assert "bitfit" in said.out


def test_verify_says_what_it_needs_of_a_hub_that_is_gone(
    place: Path, trained: dict[str, str], shared: dict[str, str], tmp_path: Path
) -> None:
    said = command(place, environment(tmp_path, "http://127.0.0.1:9", **shared), "verify", "results/hubbed")
    assert said.code == 1
    assert "not repeated" in said.out
    assert "nothing answers at http://127.0.0.1:9" in said.out


def test_a_commit_a_branch_and_a_tag_name_a_model_and_another_commit_is_another_one(
    hub: Hub, peftbench: CommandProcess
) -> None:
    repo = hub.repos["models", "someone/tiny"]
    main, dev = repo.branches["main"], repo.branches["dev"]
    for revision, commit in ((None, main), ("main", main), ("v1", main), (main, main), ("dev", dev), (dev, dev)):
        said = peftbench.python(
            f"from peftbench.backbones import source; print(source.fingerprint('someone/tiny', {revision!r}))"
        )
        assert said.out.strip() == f"hub:someone/tiny@{commit}", said.err


def test_a_run_loads_the_commit_of_its_plan_where_the_branch_has_moved_since(
    hub: Hub, peftbench: CommandProcess, model: dict[str, bytes]
) -> None:
    repo = hub.model("someone/moving", model)
    before = repo.branches["main"]
    chosen = "overrides=['backbone.model=someone/moving']"
    look = f"import peftbench\nspec = peftbench.plan('model.yaml', {chosen}).runs[0]\n"
    planned = peftbench.python(look + "print(spec.id, spec.backbone.fingerprint)").out.split()
    after = repo.commit(weights(2))
    load = (
        f"{look}from dataclasses import replace\n"
        f"spec = replace(spec.backbone, fingerprint='hub:someone/moving@{before}')\n"
        "from peftbench.backbones.load import load\n"
        "print(load(spec.model, 'classification', 2, revision=spec.pinned_revision).fingerprint)\n"
    )
    assert peftbench.python(load).out.strip() == planned[1] == f"hub:someone/moving@{before}"
    again = peftbench.python(look + "print(spec.id, spec.backbone.fingerprint)").out.split()
    assert again[1] == f"hub:someone/moving@{after}"
    assert again[0] != planned[0], "other weights are another run"


def refused(hub: Hub, model: dict[str, bytes]) -> dict[str, tuple[Repo, list[str]]]:
    """Models that the hub does not deliver, each with what its message must say."""
    without = {k: v for k, v in model.items() if not k.endswith(".safetensors")}
    late, limited = {"Retry-After": "37"}, {"RateLimit": '"api";r=0;t=55'}
    return {
        "a/private": (hub.model("a/private", model, private="hf_member"), ["private, or does not exist", "HF_TOKEN"]),
        "a/gated": (hub.model("a/gated", model, gated=("hf_member",)), ["licence", f"{hub.url}/a/gated", "HF_TOKEN"]),
        "a/late": (hub.model("a/late", model, fault=429, headers=late), ["Wait 37 seconds", "HF_TOKEN"]),
        "a/limited": (hub.model("a/limited", model, fault=429, headers=limited), ["Wait 55 seconds"]),
        "a/down": (hub.model("a/down", model, fault=503), ["status 503", "later"]),
        "a/page": (hub.model("a/page", model, fault="page"), ["does not answer as a hub", "HF_ENDPOINT"]),
        "a/silent": (hub.model("a/silent", model, fault="silent"), ["no answer", "2 s", "HF_HUB_ETAG_TIMEOUT=12"]),
        "a/readme": (hub.model("a/readme", {"README.md": b"#"}), ["no config.json", "README.md"]),
        "a/pickle": (hub.model("a/pickle", {**without, "pytorch_model.bin": b"x"}), ["pytorch_model.bin is a pickle"]),
        "a/empty": (hub.model("a/empty", without), ["no model.safetensors", "save_pretrained"]),
        "a/dumb": (hub.model("a/dumb", {k: v for k, v in model.items() if "token" not in k}), ["tokenizer"]),
        "a/odd": (hub.model("a/odd", {**model, "config.json": b"{"}), ["config.json", "does not load"]),
    }


def test_each_way_in_which_the_hub_refuses_a_model_has_its_own_message(
    hub: Hub, peftbench: CommandProcess, model: dict[str, bytes], place: Path
) -> None:
    messages = []
    for name, (_, parts) in refused(hub, model).items():
        text = message(said := peftbench("plan", "model.yaml", "--set", f"backbone.model={name}"))
        assert name in text
        assert all(part in text for part in parts), (name, text)
        assert ("waiting for" in said.err) == (name == "a/silent")
        messages.append(text.replace(name, "").replace("55", "37"))
    assert len(set(messages)) == len(messages) - 1, "only the two that limit requests say the same"
    assert not (place / "results" / "model").exists()


@pytest.mark.parametrize(
    ("name", "token", "parts"),
    [
        ("a/nowhere", "", ["private, or does not exist", "check the name"]),
        ("a/nowhere", TOKEN, ["no such model", "your token may not read it"]),
        ("a/never-loaded", "hf_of_nobody", ["does not accept your token", "unset it"]),
        ("a/b/c", "", ["cannot be a name", "OWNER/NAME"]),
        ("minilm-l7", "", ["Did you mean 'minilm-l6'?"]),
        ("llama-2-7b", "", ["architecture without weights", "Llama-2-7b-hf"]),
        ("n" * 90 + "/" + "m" * 150, "", ["cannot be a name"]),
    ],
)
def test_a_name_or_a_token_that_the_hub_does_not_know(
    hub: Hub, peftbench: CommandProcess, model: dict[str, bytes], name: str, token: str, parts: list[str]
) -> None:
    hub.model("a/never-loaded", model)
    given = {"HF_TOKEN": token} if token else {}
    text = message(peftbench("plan", "model.yaml", "--set", f"backbone.model={name}", **given))
    assert all(part in text for part in parts), text


def test_a_revision_that_is_not_there_names_those_that_are(peftbench: CommandProcess) -> None:
    text = message(peftbench("plan", "model.yaml", "--set", "backbone.revision=v9"))
    assert "no revision 'v9'. Valid: main, dev, v1, or a commit" in text


def test_each_way_in_which_the_hub_refuses_data_has_its_own_message(hub: Hub, peftbench: CommandProcess) -> None:
    kept = hub.repos["datasets", "nyu-mll/glue"]
    files = kept.commits[glue_hub.REVISION]

    def data(given: dict[str, bytes] | None = None, commit: str = glue_hub.REVISION, **facts: Any) -> Repo:
        made = hub.dataset("nyu-mll/glue", **facts)
        made.commit(files if given is None else given, commit=commit)
        return made

    page = f"{hub.url}/datasets/nyu-mll/glue"
    cases: list[tuple[Repo, list[str]]] = [
        (data(private="hf_member"), ["private, or does not exist", "HF_TOKEN"]),
        (data(gated=("hf_member",)), ["licence", page]),
        (data(fault=429, headers={"Retry-After": "9"}), ["Wait 9 seconds"]),
        (data(fault=500), ["status 500"]),
        (data(fault="silent"), ["no answer"]),
        (data({TRAIN: files[TRAIN]}), [f"no file '{DEV}'"]),
        (data(commit="f" * 40), ["no revision 'bcdcba79"]),
        (data(files_fault=503), ["status 503"]),
        (data(files_fault="cut"), ["was cut off", "Run the same command again"]),
    ]
    try:
        messages = []
        for repo, parts in cases:
            hub.repos["datasets", "nyu-mll/glue"] = repo
            text = message(peftbench("plan", "data.yaml"))
            assert all(part in text for part in ("glue/rte", "--data-dir", *parts)), text
            messages.append(text)
        assert len(set(messages)) == len(cases)
    finally:
        hub.repos["datasets", "nyu-mll/glue"] = kept


@pytest.mark.parametrize(
    "args",
    [
        ("plan", "model.yaml", "--set", "backbone.model=a/down"),
        ("run", "model.yaml", "--set", "backbone.model=a/down", "--results", "never"),
        ("profile", "model.yaml", "--set", "backbone.model=a/down", "--results", "never"),
        ("count", "a/down", "lora"),
        ("estimate", "a/down", "lora"),
    ],
    ids=lambda args: args[0],
)
def test_every_command_that_asks_the_hub_says_the_same(
    hub: Hub, peftbench: CommandProcess, model: dict[str, bytes], place: Path, args: tuple[str, ...]
) -> None:
    hub.model("a/down", model, fault=502)
    assert "has a fault of its own (status 502)" in message(peftbench(*args))
    assert not (place / "never").exists()


@pytest.mark.parametrize(
    ("fault", "parts"),
    [
        ("stall", ["model.safetensors stalled", "nothing came for 1 s", "HF_HUB_DOWNLOAD_TIMEOUT=6"]),
        ("cut", ["model.safetensors was cut off", "files that are whole are kept"]),
        pytest.param("half", ["model.safetensors was cut off"], marks=pytest.mark.full),
        (429, ["429, too many requests"]),
        pytest.param(500, ["status 500"], marks=pytest.mark.full),
    ],
)
def test_weights_that_do_not_arrive_end_the_command_before_any_run(
    hub: Hub, peftbench: CommandProcess, model: dict[str, bytes], place: Path, fault: Any, parts: list[str]
) -> None:
    name = f"a/{fault}"
    hub.model(name, model, files_fault=fault, headers={"Retry-After": "0"})
    start = time.monotonic()
    said = peftbench("run", "model.yaml", "-q", "--set", f"backbone.model={name}", "--results", f"not-{fault}")
    assert all(part in message(said) for part in parts), said.err
    assert time.monotonic() - start < 300
    assert not list((place / f"not-{fault}").rglob("*.json"))


def test_a_download_that_breaks_off_once_goes_on(hub: Hub, peftbench: CommandProcess, model: dict[str, bytes]) -> None:
    hub.model("a/cut-once", model, files_fault="cut once")
    said = peftbench.python(IN_A_PROCESS.replace("someone/tiny", "a/cut-once"))
    assert said.code == 0, said.err
    assert len([line for line in hub.asked if line.startswith("GET /large/models/a/cut-once")]) == 2


def test_a_slow_hub_is_waited_for(hub: Hub, peftbench: CommandProcess, model: dict[str, bytes]) -> None:
    hub.model("a/slow", model)
    hub.delay = 0.4
    said = peftbench("count", "a/slow", "lora")
    assert said.code == 0, said.err


@pytest.mark.full
def test_a_token_opens_a_private_model_and_stands_nowhere_afterwards(
    hub: Hub, place: Path, model: dict[str, bytes], shared: dict[str, str], tmp_path: Path
) -> None:
    hub.model("a/own", model, private="hf_member")
    env = environment(tmp_path, hub.url, HF_TOKEN="hf_member", **shared)
    said = command(place, env, "run", "model.yaml", "--set", "backbone.model=a/own", "--results", str(tmp_path / "out"))
    assert said.code == 0, said.err
    assert "hf_member" in hub.tokens
    assert "hf_member" not in said.out + said.err
    (finished,) = api.records(tmp_path / "out")
    assert finished.is_finished
    for file in (f for d in (tmp_path, shared["PEFTBENCH_CACHE"]) for f in Path(d).rglob("*") if f.is_file()):
        assert b"hf_member" not in file.read_bytes(), file


def test_a_hub_that_fails_in_a_run_interrupts_it_and_the_next_command_repeats_it(
    hub: Hub, peftbench: CommandProcess, model: dict[str, bytes], place: Path
) -> None:
    repo = hub.model("a/fails-later", model)
    chosen = "overrides=['backbone.model=a/fails-later']"
    attempt = f"""
import json, os, shutil
from huggingface_hub import constants
import peftbench
from peftbench.backbones import hub_model
from peftbench.run.attempt import SessionHost
from peftbench.run.jobs import Job
spec = peftbench.plan('model.yaml', {chosen}).runs[0]
shutil.rmtree(os.path.join(constants.HF_HUB_CACHE, 'models--a--fails-later'))
hub_model.snapshot.cache_clear()
import urllib.request
urllib.request.urlopen(constants.ENDPOINT + '/fail/models/a/fails-later')
host = SessionHost('peftbench.run.session:Session', {{'device': 'cpu'}})
print(json.dumps(host.carry_out(Job('run', spec, 'hubbed', 'later'), lambda _: None, lambda: False)))
"""
    facts = json.loads(peftbench.python(attempt).out)
    assert facts["status"] == "interrupted", facts
    assert "status 503" in facts["reason"]
    repo.fault = None
    said = peftbench("run", "model.yaml", "--set", "backbone.model=a/fails-later", "--results", "later")
    assert said.code == 0, said.err
    assert [r.status for r in sorted(api.records(place / "later"), key=lambda r: r.attempt)] == [
        "interrupted",
        "finished",
    ]


@pytest.mark.parametrize("variable", ["HF_HOME", "HF_HUB_CACHE"])
def test_the_cache_that_the_user_names_is_used_and_shared_by_processes(hub: Hub, tmp_path: Path, variable: str) -> None:
    chosen = tmp_path / "chosen"
    env = environment(tmp_path / "home", hub.url, **{variable: str(chosen)})
    hub.delay = 0.1
    argv = [sys.executable, "-c", IN_A_PROCESS]
    both = [subprocess.Popen(argv, env=env, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in both:
        _, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
    (file,) = chosen.rglob("snapshots/*/model.safetensors")
    assert file.read_bytes() == hub.repos["models", "someone/tiny"].commits[file.parent.name]["model.safetensors"]
    assert not list((tmp_path / "home").rglob("*.safetensors"))


def test_an_address_that_nobody_knows(place: Path, shared: dict[str, str], tmp_path: Path) -> None:
    said = command(place, environment(tmp_path, "http://user:secret@hub.invalid", **shared), "plan", "model.yaml")
    assert "the name hub.invalid has no address" in message(said)
    assert "secret" not in said.err


def test_offline_without_a_cache_says_how_to_fill_it(place: Path, shared: dict[str, str], tmp_path: Path) -> None:
    env = environment(tmp_path, "http://127.0.0.1:9", HF_HUB_OFFLINE="1", **shared)
    text = message(command(place, env, "plan", "model.yaml"))
    assert "HF_HUB_OFFLINE is set" in text
    assert str(tmp_path / "hf") in text
