"""Files that no author means to write: each is refused with one short message, soon, and without filling the memory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from peftbench.errors import LONGEST_MESSAGE, UserError
from peftbench.plan import strict_yaml
from peftbench.plan.read import find, load

BASE = "name: small\nbackbone: tiny-encoder\ntasks: [synthetic/classification]\nmethods: [full]\n"


def refusal(tmp_path: Path, content: str | bytes) -> str:
    path = tmp_path / "e.yaml"
    path.write_bytes(content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content)
    with pytest.raises(UserError) as caught:
        load(path)
    assert len(str(caught.value)) <= LONGEST_MESSAGE
    return str(caught.value)


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("010", 10),
        ("0o10", 8),
        ("0x10", 16),
        ("-7", -7),
        ("1_000", 1000),
        ("1_", "1_"),
        ("_1", "_1"),
        ("1:30", "1:30"),
        ("190:20:30.15", "190:20:30.15"),
        ("0b11", "0b11"),
        ("yes", "yes"),
        ("No", "No"),
        ("on", "on"),
        ("OFF", "OFF"),
        ("y", "y"),
        ("true", True),
        ("False", False),
        ("tRue", "tRue"),
        ("2024-01-31", "2024-01-31"),
        ("2024-13-45", "2024-13-45"),
        ("=", "="),
        ("<<", "<<"),
        (".5", 0.5),
        ("1.", 1.0),
        ("1e3", 1000.0),
        ("-.inf", float("-inf")),
        ("+.INF", float("inf")),
        (".", "."),
        ("1e", "1e"),
        ("~", None),
        ("Null", None),
        ("", None),
        ("'yes'", "yes"),
        ("!!str 12", "12"),
        ("!!float 1", 1.0),
        ("!!float 0x10", 16.0),
        ("!!int '12'", 12),
    ],
)
def test_values_are_read_as_the_core_schema_of_yaml_1_2_reads_them(written: str, value: object) -> None:
    read = strict_yaml.scalar(written)
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("added", "said"),
    [
        ("description: !!python/name:os.system x", ["line 5", "!!python/name:os.system", "plain text"]),
        ("description: !!timestamp 2024-01-31", ["description (line 5)", "!!timestamp"]),
        ("description: !!binary aGFsbG8=", ["!!binary"]),
        ("budget: !!set {a, b}", ["budget (line 5)", "!!set"]),
        ("budget: !!omap [a: 1]", ["!!omap"]),
        ("description: !mine x", ["!mine"]),
        ("jobs: !!int 1:30", ["jobs", "'1:30'", "no int"]),
        ("compile: !!bool yes", ["compile", "'yes'", "no bool"]),
        ("jobs: !!float 'x'", ["'x'", "no float"]),
        ('description: "a\\0b"', ["description (line 5)", "U+0000"]),
        ('description: "\\uD800"', ["description (line 5)", "U+D800"]),
        ("description: a\0b", ["line 5", "not YAML", "U+0000"]),
        ("description: \ud800", ["not UTF-8"]),
        ("description: \ufffe", ["line 5", "not YAML", "U+FFFE"]),
        ("jobs: 1" + "0" * 400, ["jobs", "401 digits", "at most 300"]),
        ("jobs: 1" + "0" * 5000, ["jobs", "5,001 digits"]),
        ("jobs: 0x" + "f" * 5000, ["jobs", "5,002 digits"]),
        ("train: {head_lr: 1e400}", ["train.head_lr", "'1e400'", "1.8e308"]),
        ("train: {head_lr: 1e-400}", ["train.head_lr", "'1e-400'", "5e-324"]),
        ("a" * 1000 + ": 1", ["unknown key", "1,000 characters"]),
        ("? " + "a" * 5000 + "\n: 1", ["unknown key", "characters]"]),
        ("? " + "a b" * 5000 + "\n: 1", ["unknown key", "characters]"]),
        ("null: 1", ["line 5", "a key must be a word", "None"]),
        ("1.5: 1", ["line 5", "a key must be a word", "1.5"]),
        ("true: 1", ["line 5", "a key must be a word", "True"]),
        (": 1", ["line 5", "not well-formed"]),
        ("budget: {? : 1}", ["line 5", "a key must be a word", "None"]),
        ("[a]: 1", ["line 5", "a key must be a word", "list"]),
        ("yes: 1", ["unknown key 'yes'"]),
        ("budget: {<<: 3}", ["line 5", "<<", "mapping"]),
        ("budget: {<<: [{steps: 3}, 4]}", ["line 5", "<<", "mapping"]),
        ("budget: {'<<': {steps: 3}}", ["unknown key '<<'"]),
        ("---\nname: second", ["line 5", "another document"]),
        ("description: " + "[" * 100_000, ["line 5", "more than 50"]),
        ("description: " + "{a: " * 100_000, ["line 5", "more than 50"]),
        ("description:\n  " + "- " * 20_000 + "x", ["more than 50"]),
        ("methods: [" + "full," * 200_000 + "]", ["more than 50,000 values"]),
        ("description: " + "x" * 2**20, ["1,048,", "at most 1,048,576"]),
    ],
)
def test_what_no_experiment_holds_is_refused_with_its_place(tmp_path: Path, added: str, said: list[str]) -> None:
    message = refusal(tmp_path, f"{BASE}{added}\n")
    for part in said:
        assert part in message


def test_merge_keys_count_as_what_they_stand_for(tmp_path: Path) -> None:
    lines = ["a0: &a0 {x: 1}"]
    lines += [f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}" for i in range(1, 12)]
    assert "aliases" in refusal(tmp_path, "\n".join(lines))


def test_a_merge_key_inside_its_own_mapping_is_refused(tmp_path: Path) -> None:
    assert "an alias" in refusal(tmp_path, "a: &a {<<: *a}\n")


def test_a_chain_of_aliases_is_as_deep_as_what_it_stands_for(tmp_path: Path) -> None:
    chain = "\n".join(f"a{i}: &a{i} [{f'*a{i - 1}' if i else 1}]" for i in range(2_000))
    assert "more than 50" in refusal(tmp_path, chain)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("{<<: {a: 1, b: 2}, a: 3}", {"a": 3, "b": 2}),
        ("{a: 3, <<: {a: 1, b: 2}}", {"a": 3, "b": 2}),
        ("{<<: [{a: 1}, {a: 2, b: 2}]}", {"a": 1, "b": 2}),
        ("{<<: {<<: {a: 1}, b: 2}}", {"a": 1, "b": 2}),
        ("{<<: &b {a: 1}, c: *b}", {"a": 1, "c": {"a": 1}}),
    ],
)
def test_a_merge_key_brings_what_the_mapping_itself_does_not_say(text: str, value: object) -> None:
    assert strict_yaml.scalar(text) == value


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-32"])
def test_another_encoding_is_named_or_refused(tmp_path: Path, encoding: str) -> None:
    assert "UTF-" in refusal(tmp_path, BASE.encode(encoding)) or encoding == "utf-16-be"


def test_a_byte_order_mark_is_no_content(tmp_path: Path) -> None:
    (tmp_path / "e.yaml").write_bytes(b"\xef\xbb\xbf" + BASE.encode())
    assert load(tmp_path / "e.yaml").name == "small"


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.yaml"
    os.mkfifo(pipe)
    for path, kind in ((pipe, "a pipe"), (Path("/dev/zero"), "a device"), (tmp_path, "a directory")):
        with pytest.raises(UserError, match=f"is {kind}, not a file; give the YAML file"):
            load(path)


def test_a_file_of_a_gigabyte_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "e.yaml").open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(UserError, match="1,073,741,824 bytes, and at most 1,048,576"):
        load(tmp_path / "e.yaml")


def test_a_path_that_no_file_can_have_is_one_message(tmp_path: Path) -> None:
    loop = tmp_path / "loop.yaml"
    loop.symlink_to(loop)
    for source in (str(loop), "x" * 100_000, "a\0b", "~no-such-user/e.yaml", "", ".", "e.yaml/e.yaml"):
        with pytest.raises(UserError) as caught:
            load(source)
        assert len(str(caught.value)) <= LONGEST_MESSAGE


def test_a_link_to_a_file_is_followed(tmp_path: Path) -> None:
    (tmp_path / "e.yaml").write_text(BASE)
    (tmp_path / "link.yaml").symlink_to(tmp_path / "e.yaml")
    assert load(find(tmp_path / "link.yaml")).name == "small"


def test_a_mapping_of_python_without_end_is_refused() -> None:
    endless: dict[str, object] = {"name": "small"}
    endless["budget"] = endless
    with pytest.raises(UserError, match="cannot be written as JSON"):
        load(endless)
