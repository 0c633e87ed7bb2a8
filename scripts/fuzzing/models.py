"""Directories of models with one odd file, value or booby trap, planned with `plan` while every question gets a yes.

A trap writes a file named `child.TRAP`; none may be there afterwards.
"""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import struct
import zipfile
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

from fuzzing.case import Case
from fuzzing.child import TRAP
from fuzzing.records import ODD, RAW, places

TASKS = {
    "tiny-encoder": "synthetic/classification",
    "tiny-decoder": "synthetic/generation",
    "tiny-t5": "synthetic/generation",
}
SPECIAL = {  # values for keys by which a configuration steers its loader
    "model_type": ["bert", "llama", "t5", "gpt2", "clip", "mamba", "unknown", "", None, 7],
    "architectures": [["Nothing"], [], "BertModel", None, [7]],
    "_attn_implementation": ["evil/kernel", "flash_attention_2", "paged|eager", "", 7],
    "attn_implementation": ["evil/kernel", {"": "evil/kernel"}],
    "transformers_weights": ["adapter_model.bin", "../x.safetensors", 7],
    "configuration_files": [["../config.1.0.json"], "x"],
    "quantization_config": [{}, {"quant_method": "bitsandbytes", "load_in_4bit": True}, {"quant_method": "x"}, 7, []],
    "auto_map": [{"AutoConfig": "own.Own"}, {"AutoConfig": "evil/repo--own.Own"}, ["own.Own", None], 7, "own.Own"],
    "num_hidden_layers": [10**9, 10**5, -1, 0, 1.5, "2"],
    "vocab_size": [10**12, 1, 0, -1],
    "hidden_size": [10**9, 7, 0, -1],
    "dtype": ["float64", "float8", "nothing", 7],
    "tie_word_embeddings": [None, "yes", 7],
    "text_config": [{}, {"model_type": "bert"}, 7],
    "rope_scaling": [{"type": "x"}, {"rope_type": "yarn", "factor": "nan"}, 7],
    "tokenizer_class": ["Nothing", "BertTokenizer", "PreTrainedTokenizerFast", "MistralCommonBackend", 7, None],
    "added_tokens_decoder": [{"x": 7}, {"999999999": {"content": "x"}}, []],
    "extra_special_tokens": [{"a": "b"}, [7], "x", {"a": {"b": []}}],
    "fast_tokenizer_files": [["../tokenizer.1.0.json"], 7],
    "pad_token": ["<none>", 7, None, {"content": 7}],
    "chat_template": ["{{ 7 * 7 }}", "{% for %}", 7, {"default": 7}],
    "init_inputs": [["x", "y"], 7],
}


def cases(rng: random.Random, count: int, folder: Path) -> Iterator[Case]:
    """Yield cases; each spoils a tiny model in one way."""
    sound = {name: _sound(folder / "sound" / name, name) for name in TASKS}
    for number in range(count):
        name = rng.choice(list(TASKS))
        here = folder / str(number)
        here.mkdir()
        shutil.copytree(sound[name], here / "m")
        spoil = rng.choices(list(WAYS), list(WAYS.values()))[0]
        what = spoil(rng, here / "m")
        (here / "e.yaml").write_text(
            f"name: strange\nbackbone: ./m\ntasks: [{TASKS[name]}]\nmethods: [{{lora: {{rank: 1, lr: 0.01}}}}]\n"
            "budget: {steps: 4, batch_size: 4, max_length: 32, seeds: 1}\nprofile: false\n"
        )
        yield Case(f"{name} {what}", ("plan", "e.yaml"), here)


class Trap:
    """What makes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = str(file)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.file,)


def _json_value(rng: random.Random, folder: Path) -> str:
    """Put an odd value somewhere into a JSON file."""
    path = rng.choice(sorted(folder.glob("*.json")))
    content = json.loads(path.read_text())
    at = rng.choice(list(places(content)) or [()])
    way = rng.choice(["value", "value", "raw", "missing"])
    if not at or way == "raw":
        raw = rng.choice(RAW)
        path.write_bytes(
            (raw if not at else _with(content, at, "RAW").replace('"RAW"', raw)).encode(errors="surrogatepass")
        )
        return f"{path.name} {at[:3]} = {raw[:20]}"
    odd = rng.choice(ODD)
    path.write_bytes(_with(content, at, ... if way == "missing" else odd).encode(errors="surrogatepass"))
    return f"{path.name} {at[:3]} = {'missing' if way == 'missing' else repr(odd)[:20]}"


def _key(rng: random.Random, folder: Path) -> str:
    """Give a value to a key by which the loaders are steered."""
    key = rng.choice(list(SPECIAL))
    value = rng.choice(SPECIAL[key])
    names = ["config.json", "tokenizer_config.json", "generation_config.json"]
    path = folder / rng.choice([n for n in names if (folder / n).exists()])
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    return f"{path.name} {key} = {str(value)[:30]}"


def _code(rng: random.Random, folder: Path) -> str:
    """Let the directory ask for code of its own, which is there."""
    trap = folder.parent / TRAP
    (folder / "own.py").write_text(
        f"import os\nos.mkdir({str(trap)!r})\nfrom transformers import BertConfig as Own, BertModel, BertTokenizer\n"
    )
    for place in ("custom_generate", "additional_chat_templates"):
        (folder / place).mkdir()
    shutil.copy(folder / "own.py", folder / "custom_generate" / "generate.py")
    path = folder / rng.choice(["config.json", "tokenizer_config.json"])
    facts = json.loads(path.read_text())
    networks = ("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoModelForSequenceClassification")
    facts["auto_map"] = dict.fromkeys(networks, "own.Own")
    facts["auto_map"]["AutoTokenizer"] = ["own.BertTokenizer", "own.BertTokenizer"]
    kind = rng.choice(["of-its-own", None, "known"])
    if kind != "known":
        facts.update({"model_type": kind, "tokenizer_class": "OfItsOwn"})
    path.write_text(json.dumps(facts))
    return f"code of its own in {path.name}, {kind}"


def _pickle(rng: random.Random, folder: Path) -> str:
    """Put a pickle with a trap where weights or anything else may be read from."""
    names = [
        *("pytorch_model.bin", "model.pt", "training_args.bin", "vocab.pkl", "model-1.bin", "adapter_model.bin"),
        *("model.safetensors", "tokenizer.model", "vocab.txt", "spiece.model", "tokenizer.json", ".metadata"),
    ]
    name, trap = rng.choice(names), folder.parent / TRAP
    if rng.random() < 0.5:
        with zipfile.ZipFile(folder / name, "w") as z:
            z.writestr("archive/data.pkl", pickle.dumps(Trap(trap)))
            z.writestr("archive/version", "3")
    else:
        (folder / name).write_bytes(pickle.dumps(Trap(trap)))
    alone = rng.random() < 0.6 and name != "model.safetensors"
    if alone:
        (folder / "model.safetensors").unlink()
    index = rng.choice(["model.safetensors.index.json", "pytorch_model.bin.index.json", ""])
    if index:
        content = {
            "metadata": rng.choice([{}, None, 7]),
            "weight_map": {"a": name, "b": rng.choice(["../x", "/x", 7, name])},
        }
        (folder / index).write_text(json.dumps(content))
    return f"a pickle {name}, index {index or 'none'}, {'alone' if alone else 'beside the weights'}"


def _weights(rng: random.Random, folder: Path) -> str:
    """Spoil the header of the weights, or cut them off."""
    path = folder / "model.safetensors"
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    name = rng.choice([n for n in header if n != "__metadata__"])

    def changed(key: str, *odd: Any) -> bytes:
        return _weighted({**header, name: {**header[name], key: rng.choice(odd)}}, content, length)

    def renamed(new: str | None) -> bytes:
        kept = {(new if n == name else n): t for n, t in header.items() if n != name or new}
        return _weighted(kept, content, length)

    ways: dict[str, Callable[[], bytes]] = {
        "cut": lambda: content[: rng.randrange(len(content))],
        "a longer header": lambda: struct.pack("<Q", rng.choice([2**63, 2**40, length * 2, 0])) + content[8:],
        "another dtype": lambda: changed("dtype", "F64", "I8", "X", 7),
        "another shape": lambda: changed("shape", [], [10**12], [-1], "x", [1, 2]),
        "other offsets": lambda: changed("data_offsets", [0, 2**60], [5, 1], [], "x"),
        "a tensor less": lambda: renamed(None),
        "another name": lambda: renamed("x" * 9),
        "a header of lists": lambda: _weighted([], content, length),
        "nothing": lambda: b"",
    }
    way = rng.choice(list(ways))
    path.write_bytes(ways[way]())
    return f"weights: {way}"


def _file(rng: random.Random, folder: Path) -> str:
    """Put something else in the place of a file."""
    path = rng.choice(sorted(folder.iterdir()))
    way = rng.choice(["missing", "empty", "pipe", "folder", "loop", "elsewhere", "device", "bytes", "long", "bom"])
    content = path.read_bytes()
    path.unlink()
    ways: dict[str, Callable[[], Any]] = {
        "missing": lambda: None,
        "empty": path.touch,
        "pipe": lambda: os.mkfifo(path),
        "folder": path.mkdir,
        "loop": lambda: path.symlink_to(path),
        "elsewhere": lambda: path.symlink_to("/etc/hostname"),
        "device": lambda: path.symlink_to("/dev/zero"),
        "bytes": lambda: path.write_bytes(rng.randbytes(3_000)),
        "long": lambda: path.write_bytes(b" " * 5_000_000 + content),
        "bom": lambda: path.write_bytes(b"\xef\xbb\xbf" + content),
    }
    ways[way]()
    return f"{path.name}: {way}"


WAYS: dict[Callable[[random.Random, Path], str], int] = {
    _json_value: 6,
    _key: 4,
    _code: 2,
    _pickle: 3,
    _weights: 2,
    _file: 3,
}


def _with(content: Any, at: tuple[Any, ...], value: Any) -> str:
    """Return JSON text with another value at a place; `...` takes it away."""
    content = deepcopy(content)
    owner = content
    for step in at[:-1]:
        owner = owner[step]
    if value is ...:
        owner.pop(at[-1])
    else:
        owner[at[-1]] = value
    return json.dumps(content)


def _weighted(header: Any, content: bytes, length: int) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content[8 + length :]


def _sound(folder: Path, name: str) -> Path:
    """Save a tiny model with its tokenizer."""
    from peftbench.backbones.load import load

    kind = "classification" if name == "tiny-encoder" else "generation"
    backbone = load(name, kind, 2)
    backbone.net.save_pretrained(folder)
    backbone.tokenizer.save_pretrained(folder)
    return folder
