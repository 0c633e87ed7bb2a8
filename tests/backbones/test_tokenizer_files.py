"""A tokenizer of a stranger reads no file but its own, is one tokenizer, and grows no text without bound."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from architectures import Zoo

from peftbench.backbones import source
from peftbench.backbones.tokenizers import tokenizer_and_start
from peftbench.errors import UserError

Copy = Callable[[str], Path]
OPENED: list[Path] = []
CONFIG, SPECIAL = "tokenizer_config.json", "special_tokens_map.json"
KEYS = (
    *("vocab", "merges", "gguf_file", "spm_file", "emoji_file", "target_spm", "sudachi_config_path"),
    *("model_file", "vocab_path", "resource_dir", "tokenizer_object", "entity_vocab", "src_vocab_file"),
)
NESTED = ("model_file", "mecab_option", "sudachi_config_path", "model_proto")
LEFT_OVER = ("name_or_path", "tokenizer_file", "special_tokens_map_file", "vocab_file", "merges_file", "cache_dir")


@pytest.fixture(scope="module", autouse=True)
def _audit() -> None:
    def note(event: str, facts: Any) -> None:
        if event == "open" and isinstance(facts[0], str):
            OPENED.append(Path(facts[0]))

    sys.addaudithook(note)


@pytest.fixture
def copy(zoo: Zoo, tmp_path: Path) -> Copy:
    def of(name: str) -> Path:
        return Path(shutil.copytree(zoo[name].folder, tmp_path / name))

    return of


@pytest.fixture
def elsewhere(zoo: Zoo, tmp_path: Path) -> Path:
    """A folder with files that a tokenizer could read."""
    folder = Path(shutil.copytree(zoo["gpt2"].folder, tmp_path / "elsewhere"))
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nstolen\n")
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(m) for m in model["merges"]))
    return folder


def edit(path: Path, **changes: Any) -> None:
    facts = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**facts, **changes}))


def opened_in(folder: Path) -> list[Path]:
    return [p for p in OPENED if p.is_relative_to(folder)]


@pytest.mark.parametrize("key", KEYS)
def test_a_text_that_names_a_file_for_the_tokenizer_is_refused_before_it_is_opened(
    copy: Copy, elsewhere: Path, key: str
) -> None:
    folder = copy("bert")
    (folder / "tokenizer.json").unlink()
    edit(folder / CONFIG, **{key: str(elsewhere / "vocab.txt"), "tokenizer_class": "BertTokenizer"})
    OPENED.clear()
    with pytest.raises(UserError, match=rf"{CONFIG} sends the reader to other files \({key}"):
        tokenizer_and_start(str(folder), "classification")
    with pytest.raises(UserError, match=key):
        source.fingerprint(str(folder))
    assert not opened_in(elsewhere)


@pytest.mark.parametrize("key", NESTED)
def test_a_text_in_a_nested_mapping_that_names_a_file_is_refused(copy: Copy, elsewhere: Path, key: str) -> None:
    folder = copy("t5")
    edit(folder / CONFIG, sp_model_kwargs={"deeper": [{key: str(elsewhere / "vocab.txt")}]})
    with pytest.raises(UserError, match=rf"{CONFIG} sends the reader to other files \({key}"):
        tokenizer_and_start(str(folder), "classification")


@pytest.mark.parametrize("file", [CONFIG, "tokenizer.json"])
def test_mappings_nested_as_deep_as_json_allows_are_one_message(copy: Copy, file: str) -> None:
    folder = copy("bert")
    deep = '{"a": ' * 800 + '{"model_file": "/x", "content": "' + "a" * 2000 + '"}' + "}" * 800
    facts = {**json.loads((folder / file).read_text()), "normalizer": 0}
    (folder / file).write_text(json.dumps(facts).replace('"normalizer": 0', f'"normalizer": {deep}'))
    with pytest.raises(UserError, match=r"sends the reader to|may make texts"):
        tokenizer_and_start(str(folder), "classification")


@pytest.mark.parametrize("facts", [{"vocab": {"a_file": 1}}, {"vocab": [["a", 0.5]]}, {"image_token": "a/b"}], ids=str)
def test_a_vocabulary_and_tokens_are_no_paths(copy: Copy, facts: dict[str, Any]) -> None:
    folder = copy("bert")
    edit(folder / CONFIG, **facts)
    edit(folder / SPECIAL, additional_special_tokens=["/a/b_file"], image_token={"content": "/x"}, pad_token=None)
    source.fingerprint(str(folder))


@pytest.mark.parametrize("value", [["/x/vocab.txt"], [{"vocab": "/x"}], "/x"], ids=str)
def test_arguments_without_names_are_refused(copy: Copy, value: Any) -> None:
    folder = copy("bert")
    edit(folder / CONFIG, init_inputs=value)
    with pytest.raises(UserError, match="init_inputs"):
        tokenizer_and_start(str(folder), "classification")


@pytest.mark.parametrize("key", [*KEYS, *LEFT_OVER, "init_inputs", "sp_model_kwargs"])
def test_the_map_of_special_tokens_names_tokens_only(copy: Copy, elsewhere: Path, key: str) -> None:
    """Transformers takes what it says after its own paths."""
    folder = copy("bert")
    edit(folder / SPECIAL, **{key: str(elsewhere / "tokenizer.json")})
    with pytest.raises(UserError, match=rf"{SPECIAL} sends the reader to other files \({key}"):
        tokenizer_and_start(str(folder), "classification")


@pytest.mark.parametrize("value", [None, "PATH"], ids=["null", "a path"])
@pytest.mark.parametrize("name", ["bert", "roberta", "gpt2", "llama", "t5", "deberta-v2"])
def test_what_old_saves_left_behind_loads_and_reads_no_file_elsewhere(
    copy: Copy, elsewhere: Path, name: str, value: str | None
) -> None:
    folder = copy(name)
    files = {"vocab_file": "vocab.json", "merges_file": "merges.txt", "special_tokens_map_file": SPECIAL}
    left = {key: value and str(elsewhere / files.get(key, "tokenizer.json")) for key in LEFT_OVER}
    plain, _ = tokenizer_and_start(str(folder), "classification")
    edit(folder / CONFIG, **left, sp_model_kwargs={}, full_tokenizer_file=None, init_inputs=[])
    OPENED.clear()
    assert tokenizer_and_start(str(folder), "classification")[0].get_vocab() == plain.get_vocab()
    assert opened_in(folder)
    assert not opened_in(elsewhere)


@pytest.mark.parametrize("named", ["BertTokenizer", "GPT2Tokenizer", "RobertaTokenizer", "PreTrainedTokenizerFast"])
@pytest.mark.parametrize("key", ["vocab_file", "merges_file", "tokenizer_file"])
def test_without_its_own_vocabulary_a_tokenizer_takes_none_from_elsewhere(
    copy: Copy, elsewhere: Path, named: str, key: str
) -> None:
    folder = copy("bert")
    (folder / "tokenizer.json").unlink()
    file = {"merges_file": "merges.txt", "tokenizer_file": "tokenizer.json"}.get(key, "vocab.txt")
    edit(folder / CONFIG, **{key: str(elsewhere / file), "tokenizer_class": named})
    OPENED.clear()
    with pytest.raises(UserError, match="tokenizer"):
        tokenizer_and_start(str(folder), "classification")
    assert not opened_in(elsewhere)


@pytest.mark.parametrize("file", [CONFIG, "config.json"])
@pytest.mark.parametrize(
    "named",
    ["RagTokenizer", "RagTokenizerFast", "AutoTokenizer", "AutoTokenizerFast", "AutoProcessor", "BertModel",
     "BertForSequenceClassification", "AutoModelForCausalLM", "pipeline", "models", "AddedToken", 7, ["BertTokenizer"]],
    ids=str,
)  # fmt: skip
def test_what_is_not_one_tokenizer_is_refused_before_it_loads(copy: Copy, file: str, named: Any) -> None:
    """Transformers takes any class of its own: a network reads pickles, and AutoTokenizer asks whether code may run."""
    folder = copy("bert")
    edit(folder / file, tokenizer_class=named)
    with pytest.raises(UserError, match=rf"as its tokenizer_class in {file}"):
        tokenizer_and_start(str(folder), "classification")


def replacing(depth: int, to: str, pattern: dict[str, str]) -> dict[str, Any]:
    step = {"type": "Replace", "pattern": pattern, "content": to}
    return {"type": "Sequence", "normalizers": [step, {"type": "Sequence", "normalizers": [step] * (depth - 1)}]}


BOMBS = {
    "regex": replacing(9, "a" * 16, {"Regex": "[^ ]"}),
    "text": replacing(9, "a" * 16, {"String": "a"}),
    "two long ones": replacing(2, "a" * 5000, {"String": "a"}),
    "many": replacing(100_000, "aa", {"String": "a"}),
    "prepend": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "a" * 5000}]},
}


@pytest.mark.parametrize("part", ["normalizer", "decoder"])
@pytest.mark.parametrize("bomb", BOMBS)
def test_replacements_that_multiply_texts_are_refused_before_any_is_read(copy: Copy, part: str, bomb: str) -> None:
    folder = copy("bert")
    edit(folder / "tokenizer.json", **{part: BOMBS[bomb]})
    with pytest.raises(UserError, match=r"may make texts more than 1,000 times as long"):
        tokenizer_and_start(str(folder), "classification")


@pytest.mark.parametrize("pattern", [{"Regex": "[^ ]"}, {"String": "  "}], ids=str)
def test_replacements_by_a_few_characters_load(copy: Copy, pattern: dict[str, str]) -> None:
    folder = copy("bert")
    edit(folder / "tokenizer.json", normalizer=replacing(9, "ab", pattern))
    tokenizer_and_start(str(folder), "classification")
