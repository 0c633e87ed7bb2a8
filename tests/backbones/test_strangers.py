"""A model's directory may come from a stranger: its files are data. None of its code runs, no pickle of it is read."""

from __future__ import annotations

import ast
import json
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from architectures import Zoo

from peftbench import tasks
from peftbench.backbones import model_folder, source, tiny
from peftbench.backbones.load import load, load_sites
from peftbench.backbones.tokenizers import tokenizer_and_start
from peftbench.errors import UserError
from peftbench.tasks import tokens

ROOT = Path(__file__).resolve().parents[2]
Copy = Callable[[str], Path]

CODE = """
from pathlib import Path
Path(__file__).resolve()
Path({trap!r}).write_text("ran")
from transformers import BertConfig as OwnConfig, BertForSequenceClassification as OwnModel
from transformers import BertTokenizer as OwnTokenizer
"""


class Trap:
    """What writes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = str(file)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.file,)


@pytest.fixture
def trap(tmp_path: Path) -> Path:
    """The path of what a booby trap makes; it is not there yet."""
    return tmp_path / "sprung"


@pytest.fixture
def copy(zoo: Zoo, tmp_path: Path) -> Copy:
    def of(name: str) -> Path:
        return Path(shutil.copytree(zoo[name].folder, tmp_path / name))

    return of


def edit(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file; None removes one."""
    facts = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in facts.items() if v is not None}))


def shard(folder: Path, name: str) -> None:
    """Turn the weights into a checkpoint whose index names one file."""
    weights = folder / "model.safetensors"
    length = int.from_bytes(weights.read_bytes()[:8], "little")
    names = [n for n in json.loads(weights.read_bytes()[8 : 8 + length]) if n != "__metadata__"]
    weights.rename(folder / "model-00001-of-00001.safetensors")
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(names, name)}
    (folder / model_folder.INDEX).write_text(json.dumps(index))


def with_code(folder: Path, trap: Path, place: str) -> None:
    """Let a directory ask for code of its own, for its configuration and network or for its tokenizer."""
    (folder / "own.py").write_text(CODE.format(trap=str(trap)))
    if place == "config.json":
        classes = {"AutoConfig": "own.OwnConfig", "AutoModelForSequenceClassification": "own.OwnModel"}
        edit(folder / place, model_type="of-its-own", auto_map=classes)
    else:
        edit(folder / "config.json", model_type="bert")
        classes = {"AutoTokenizer": ["own.OwnTokenizer", "own.OwnTokenizer"]}
        edit(folder / place, tokenizer_class="OfItsOwn", auto_map=classes)


@pytest.mark.parametrize("place", ["config.json", "tokenizer_config.json"])
def test_code_of_a_directory_never_runs(copy: Copy, trap: Path, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    folder = copy("bert")
    with_code(folder, trap, place)
    try:
        load(str(folder), "classification", 2)
    except UserError as refusal:
        assert all(part in str(refusal) for part in (place, "own.Own", "auto_map", "never runs"))  # noqa: PT017
        assert "trust_remote_code" not in str(refusal)  # noqa: PT017
    else:
        assert place == "tokenizer_config.json"  # transformers has a tokenizer for this network, and takes that
    assert not trap.exists()


@pytest.mark.slow
@pytest.mark.parametrize("place", ["config.json", "tokenizer_config.json"])
def test_plan_runs_no_code_of_a_directory_even_where_every_question_is_answered_with_yes(
    copy: Copy, trap: Path, place: str, tmp_path: Path
) -> None:
    with_code(copy("bert"), trap, place)
    (tmp_path / "e.yaml").write_text(
        "name: strange\nbackbone: ./bert\ntasks: [synthetic/classification]\n"
        "methods: [lora]\nbudget: {steps: 2, seeds: 1}\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "peftbench", "plan", "e.yaml"],
        cwd=tmp_path, input="y\n" * 50, capture_output=True, text=True,
        env={**os.environ, "PEFTBENCH_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert not trap.exists()
    assert "Traceback" not in done.stderr
    assert place != "config.json" or (done.returncode == 2 and "code of its own" in done.stderr)


def test_a_directory_whose_code_is_not_needed_loads_by_the_class_of_transformers(copy: Copy, trap: Path) -> None:
    folder = copy("bert")
    (folder / "own.py").write_text(CODE.format(trap=str(trap)))
    edit(folder / "config.json", auto_map={"AutoConfig": "own.OwnConfig"})
    edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["own.OwnTokenizer", None]})
    assert type(load(str(folder), "classification", 2).net).__module__.startswith("transformers.")
    assert not trap.exists()


@pytest.mark.parametrize("asked", [7, [7], {"AutoConfig": 7}, "own.OwnConfig", {"AutoConfig": None}], ids=str)
def test_an_odd_request_for_code_is_one_clear_error(copy: Copy, asked: Any) -> None:
    folder = copy("bert")
    edit(folder / "config.json", model_type="of-its-own", auto_map=asked)
    with pytest.raises(UserError, match="auto_map"):
        load_sites(str(folder), "classification")


def test_only_one_module_calls_the_loaders_of_transformers_and_it_refuses_code() -> None:
    loaders = ("from_pretrained", "from_config", "load_dataset", "pipeline", "hub_load")
    for path in [*ROOT.glob("peftbench/**/*.py"), *ROOT.glob("methods/*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                not isinstance(node, ast.Call)
                or getattr(node.func, "attr", getattr(node.func, "id", "")) not in loaders
            ):
                continue
            function: Any = node.func
            if isinstance(function, ast.Attribute) and getattr(function.value, "id", "") == "pretrained":
                continue
            given = {k.arg: getattr(k.value, "value", None) for k in node.keywords}
            assert path.name == "pretrained.py", f"{path}:{node.lineno} loads without pretrained.py"
            assert given.get("trust_remote_code") is False, f"{path}:{node.lineno} lets code of a directory run"


def test_no_module_unpickles() -> None:
    never = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    for path in [*ROOT.glob("peftbench/**/*.py"), *ROOT.glob("methods/*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not never & {n.partition(".")[0] for n in names}, f"{path}: {names}"
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "load":
                owner, keys = getattr(node.func.value, "id", ""), {k.arg: k.value for k in node.keywords}
                if owner == "torch":  # which then reads tensors and plain data, and runs nothing
                    assert getattr(keys.get("weights_only"), "value", None) is True, f"{path}:{node.lineno}"
                if owner in ("np", "numpy"):
                    assert getattr(keys.get("allow_pickle"), "value", None) is False, f"{path}:{node.lineno}"


def zipped_pickle(trap: Path, file: Path) -> None:
    """A pickle in the layout of torch.save."""
    with zipfile.ZipFile(file, "w") as z:
        z.writestr("archive/data.pkl", pickle.dumps(Trap(trap)))
        z.writestr("archive/version", "3")


@pytest.mark.parametrize("name", ["evil.bin", "evil.pt", "evil.pth", "evil.ckpt", "evil.pkl", "evil", "evil.bin/"])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "plain"])
def test_an_index_that_names_a_pickle_is_refused_before_it_is_opened(
    copy: Copy, trap: Path, name: str, zipped: bool
) -> None:
    folder = copy("bert")
    shard(folder, name)
    file = folder / name.rstrip("/")
    zipped_pickle(trap, file) if zipped else file.write_bytes(pickle.dumps(Trap(trap)))
    with pytest.raises(UserError, match=rf"{model_folder.INDEX} names evil.*save_pretrained"):
        load(str(folder), "classification", 2)
    with pytest.raises(UserError, match=model_folder.INDEX):
        source.fingerprint(str(folder))
    assert not trap.exists()


@pytest.mark.parametrize(
    "name",
    ["/ABSOLUTE", "../other/model.safetensors", "a/../../other/model.safetensors", "link",
     "folder link/model.safetensors", 7, None, ["x"], "a\0b.safetensors"], ids=repr,
)  # fmt: skip
def test_an_index_that_names_a_file_elsewhere_is_refused(copy: Copy, tmp_path: Path, name: Any) -> None:
    folder = copy("bert")
    other = tmp_path / "other" / "model.safetensors"
    other.parent.mkdir()
    shutil.copy(folder / "model.safetensors", other)
    (folder / "link.safetensors").symlink_to(other)
    (folder / "folder link").symlink_to(other.parent)
    shard(
        folder, {"/ABSOLUTE": str(other), "link": "link.safetensors"}.get(name, name) if isinstance(name, str) else name
    )
    with pytest.raises(UserError, match=rf"{model_folder.INDEX} names .*(outside its directory|no file name)"):
        load(str(folder), "classification", 2)


def test_a_sharded_checkpoint_in_the_layout_of_the_hubs_cache_loads(copy: Copy, tmp_path: Path) -> None:
    """There every file is a link to a blob."""
    folder, repository = copy("bert"), tmp_path / "models--a--b"
    shard(folder, "model-00001-of-00001.safetensors")
    snapshot, blobs = repository / "snapshots" / "abc", repository / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for file in folder.iterdir():
        shutil.copy(file, blobs / f"blob-{file.name}")
        (snapshot / file.name).symlink_to(Path("../../blobs") / f"blob-{file.name}")
    assert load(str(snapshot), "classification", 3).newly_initialized == []


@pytest.mark.parametrize("file", ["pytorch_model.bin", "model.pt", "weights.ckpt", "consolidated.00.pth"])
def test_a_directory_with_nothing_but_pickled_weights_is_refused(copy: Copy, trap: Path, file: str) -> None:
    folder = copy("bert")
    (folder / "model.safetensors").unlink()
    zipped_pickle(trap, folder / file)
    index = {"metadata": {}, "weight_map": {"a": file}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"model\.safetensors"):
        load(str(folder), "classification", 2)
    assert not trap.exists()


@pytest.mark.parametrize(
    "file",
    ["training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", "pytorch_model.bin", "tokenizer.pkl",
     "vocab.pkl", "model.npz", "generation_config.pkl", "model.gguf", "adapter_model.bin", ".metadata"],
)  # fmt: skip
def test_pickles_beside_the_weights_are_never_opened(copy: Copy, trap: Path, file: str) -> None:
    folder = copy("bert")
    zipped_pickle(trap, folder / file)
    (folder / "pytorch_model.bin.index.json").write_text('{"metadata": {}, "weight_map": {"a": "pytorch_model.bin"}}')
    assert load(str(folder), "classification", 3).newly_initialized == []
    assert not trap.exists()


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("config.json", {"transformers_weights": "adapter_model.bin"}),
        ("config.json", {"transformers_weights": "../other/model.safetensors"}),
        ("config.json", {"configuration_files": ["../x/config.1.0.json"]}),
        ("tokenizer_config.json", {"fast_tokenizer_files": ["../x/tokenizer.1.0.json"]}),
    ],
    ids=str,
)
def test_a_json_file_that_sends_the_reader_elsewhere_is_refused(copy: Copy, file: str, change: dict[str, Any]) -> None:
    folder = copy("bert")
    edit(folder / file, **change)
    with pytest.raises(UserError, match=rf"{file} sends the reader to other files \({next(iter(change))}"):
        load(str(folder), "classification", 2)


def test_an_adapter_beside_the_weights_is_refused(copy: Copy, trap: Path) -> None:
    """Where peft is installed, transformers would load it, and where it is not, it would not."""
    folder = copy("bert")
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "/elsewhere", "peft_type": "LORA"}')
    zipped_pickle(trap, folder / "adapter_model.bin")
    with pytest.raises(UserError, match="holds an adapter of peft"):
        load(str(folder), "classification", 2)
    assert not trap.exists()


@pytest.mark.parametrize("kind", ["pipe", "folder", "loop", "dangling"])
@pytest.mark.parametrize("file", ["model.safetensors", "special_tokens_map.json", "vocab.txt"])
def test_what_is_no_regular_file_is_refused_before_it_is_opened(copy: Copy, kind: str, file: str) -> None:
    folder = copy("bert")
    path = folder / file
    path.unlink(missing_ok=True)
    make: dict[str, Callable[[], Any]] = {
        "pipe": lambda: os.mkfifo(path),
        "folder": path.mkdir,
        "loop": lambda: path.symlink_to(path),
        "dangling": lambda: path.symlink_to(folder / "nothing there"),
    }
    make[kind]()
    with pytest.raises(UserError, match=rf"{file} is not a regular file"):
        load(str(folder), "classification", 2)


# The fingerprint covers what is loaded


class Opened:
    """The files of a directory that Python or the loaders' compiled parts open."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import safetensors
        import tokenizers

        self.paths: set[Path] = set()
        sys.addaudithook(lambda event, facts: self._note(facts[0]) if event == "open" else None)
        for owner, name in ((tokenizers.Tokenizer, "from_file"), (safetensors, "safe_open")):
            real = getattr(owner, name)
            monkeypatch.setattr(owner, name, self._noting(real))

    def _noting(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def noting(path: Any, *args: Any, **options: Any) -> Any:
            self._note(path)
            return real(path, *args, **options)

        return noting

    def _note(self, path: Any) -> None:
        if isinstance(path, (str, bytes, Path)):
            self.paths.add(Path(os.fsdecode(path)))

    def inside(self, folder: Path) -> set[str]:
        return {p.relative_to(folder).as_posix() for p in self.paths if p.is_relative_to(folder) and p.is_file()}


def furnished(folder: Path) -> Path:
    """A directory with every kind of file that a tokenizer or a network may be loaded from."""
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool.jinja").write_text("{{ messages }}")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "README.md").write_text("# A model")
    (folder / "generation_config.json").write_text('{"max_new_tokens": 3}')
    for name in ("added_tokens.json", "special_tokens_map.json"):
        if not (folder / name).exists():
            (folder / name).write_text("{}")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert", "roberta", "deberta-v2", "gpt2", "opt", "llama", "qwen2", "t5", "gpt-neox"])
@pytest.mark.parametrize("layout", ["plain", "sharded"])
def test_the_fingerprint_covers_every_file_that_loading_opens(
    copy: Copy, zoo: Zoo, name: str, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = furnished(copy(name))
    if layout == "sharded":
        (folder / "shards").mkdir()
        shard(folder, "shards/one.safetensors")
        (folder / "model-00001-of-00001.safetensors").rename(folder / "shards" / "one.safetensors")
    opened = Opened(monkeypatch)
    load(str(folder), zoo[name].kind, 3)
    read = opened.inside(folder)
    assert {"config.json", "tokenizer.json", "chat_template.jinja"} <= read
    assert read <= {p.relative_to(folder).as_posix() for p in model_folder.loaded_files(folder)}
    before = source.fingerprint(str(folder))
    for file in sorted(read):
        content = (folder / file).read_bytes()
        (folder / file).write_bytes(content + b" ")
        assert source.fingerprint(str(folder)) != before, file
        (folder / file).write_bytes(content)
    assert source.fingerprint(str(folder)) == before
    (folder / "README.md").write_text("# Another text")
    assert source.fingerprint(str(folder)) == before


def test_the_fingerprint_covers_the_vocabulary_files_of_every_tokenizer_of_transformers(tmp_path: Path) -> None:
    import transformers
    from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

    names = set()
    for name in filter(None, TOKENIZER_MAPPING_NAMES.values()):
        names |= set(getattr(getattr(transformers, name, None), "vocab_files_names", {}).values())
    assert len(names) > 10
    for name in names:
        (tmp_path / name).write_text("")
    assert {p.name for p in model_folder.loaded_files(tmp_path)} == names


def test_a_tokenizer_alone_loads_no_code_either(copy: Copy, trap: Path) -> None:
    folder = copy("bert")
    with_code(folder, trap, "tokenizer_config.json")
    tokenizer_and_start(str(folder), "classification")
    assert not trap.exists()


def test_a_token_cache_with_a_pickle_in_it_is_made_anew(trap: Path, tmp_path: Path) -> None:
    dataset, tokenizer = tasks.open_task("synthetic/pair"), tiny.tokenizer("tiny-encoder")
    first = tokens.encode(dataset, tokenizer, 40, tmp_path)
    (path,) = tmp_path.glob("*.npz")
    with np.load(path) as stored:
        names = list(stored)
    np.savez(path, **{name: np.array([Trap(trap)], dtype=object) for name in names})
    again = tokens.encode(dataset, tokenizer, 40, tmp_path)
    assert not trap.exists()
    assert all(np.array_equal(a, b) for a, b in zip(first["train"].ids, again["train"].ids, strict=True))


@pytest.mark.parametrize("longest", [{"a": 1}, "", [], True, 0, -5, float("nan")])
def test_a_longest_input_that_is_no_length_is_refused(copy: Copy, longest: object) -> None:
    folder = copy("bert")
    edit(folder / "tokenizer_config.json", model_max_length=longest)
    with pytest.raises(UserError, match="model_max_length"):
        tokenizer_and_start(str(folder), "classification")


def test_a_token_beyond_every_vocabulary_is_refused_before_a_table_is_made_for_it(copy: Copy) -> None:
    folder = copy("bert")
    tokens = json.loads((folder / "tokenizer.json").read_text())
    tokens["model"]["vocab"][next(iter(tokens["model"]["vocab"]))] = 2**31
    (folder / "tokenizer.json").write_text(json.dumps(tokens))
    with pytest.raises(UserError, match=r"has the id 2,147,483,648 .*ids go to 10,000,000"):
        tokenizer_and_start(str(folder), "classification")
