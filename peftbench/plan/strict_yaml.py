"""Read YAML strictly and keep the line of each value for error messages.

PyYAML reads YAML 1.1, forgets the lines, and lets the last of two equal keys win. Here one rule holds: a value without
quotes is what the core schema of YAML 1.2 says, and whole numbers may group their digits (75_000). So ``1e-3`` is a
number, ``010`` is ten, and ``yes``, ``1:30`` and ``2024-01-31`` are texts. A repeated key is an error, and so are a key
that is no text and a tag of another type. Merge keys (``<<``) are read.

A file is small, flat, and costs little, whatever it holds: see the limits.
"""

from __future__ import annotations

import codecs
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from peftbench.errors import UserError, shown
from peftbench.records import user_file

Place = tuple[str | int, ...]  # ("methods", 2, "lora", "rank")
LARGEST_FILE = 1 << 20  # bytes
MAX_NODES = 50_000  # nested aliases can stand for billions of values and would exhaust the memory
MAX_DEPTH = 50  # values inside values; an experiment has six
MAX_DIGITS = 300  # of a whole number, so that a float can hold it
_FIX = "give the YAML file of an experiment"

_TAG = "tag:yaml.org,2002:"
_INT = r"[-+]?[0-9]+(?:_[0-9]+)*|0o[0-7]+|0x[0-9a-fA-F]+"
_FORMS = {  # of values without quotes, by their type in the core schema
    "null": re.compile(r"~|null|Null|NULL|"),
    "bool": re.compile(r"true|True|TRUE|false|False|FALSE"),
    "int": re.compile(_INT),
    "float": re.compile(
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:_[0-9]+)*(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
    ),
    "merge": re.compile("<<"),
}


class _Loader(yaml.SafeLoader):
    """A SafeLoader that knows the types of the core schema only, and refuses a file that is too deep or too long."""

    yaml_implicit_resolvers: dict[str, Any] = {}

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.depth = self.nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Compose a node as PyYAML does, within the limits."""
        self.depth, self.nodes = self.depth + 1, self.nodes + 1
        if self.depth > MAX_DEPTH or self.nodes > MAX_NODES:
            raise yaml.composer.ComposerError(None, None, _beyond(self.depth), self.peek_event().start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


for _name, _form in _FORMS.items():
    _Loader.add_implicit_resolver(f"{_TAG}{_name}", re.compile(f"(?:{_form.pattern})$"), None)


def _beyond(depth: int) -> str:
    if depth > MAX_DEPTH:
        return f"more than {MAX_DEPTH} lists and mappings inside each other"
    return f"more than {MAX_NODES:,} values with its aliases written out"


@dataclass(frozen=True)
class Document:
    """The content of a file, with what error messages say about its values.

    Attributes:
        path: the path of the file.
        value: the content as plain Python values.
        lines: the line of each value, counted from 1, by its place.
        origins: the command-line option that set a value, by the value's place.
    """

    path: Path
    value: Any
    lines: dict[Place, int] = field(repr=False)
    origins: dict[Place, str] = field(default_factory=dict, repr=False)

    def where(self, place: Place) -> str:
        """Describe where a value is, to begin a message with: file, place and line, or the option that set it."""
        option = next((self.origins[place[:n]] for n in range(len(place), 0, -1) if place[:n] in self.origins), None)
        if option is not None:
            return f"{option}: {spell(place)}"
        line = next((self.lines[place[:n]] for n in range(len(place), -1, -1) if place[:n] in self.lines), None)
        return f"{self.path}: {spell(place) or 'the file'}{f' (line {line})' if line else ''}"

    def error(self, place: Place, message: str) -> UserError:
        """Return the error for the value at a place."""
        return UserError(f"{self.where(place)}: {message}")


def spell(place: Place) -> str:
    """Write a place as people do.

    >>> spell(("methods", 2, "lora", "rank"))
    'methods[2].lora.rank'
    """
    return "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in place).removeprefix(".")


def load(path: Path) -> Document:
    """Read a YAML file.

    Raises:
        UserError: the file cannot be read or is not well-formed; the message names the line.
    """
    text = _decoded(path, user_file.read(path, LARGEST_FILE, _FIX))
    document = Document(path, None, {})
    try:
        value = _parsed(text, document)
    except yaml.YAMLError as e:
        raise UserError(f"{path}: {_malformed(e, text)}") from e
    return Document(path, value, document.lines)


def _decoded(path: Path, content: bytes) -> str:
    for mark in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        if content.startswith(mark):
            raise UserError(f"{path}: UTF-16 text; save the file as UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise UserError(f"{path}: not UTF-8 text (byte {e.start}); save the file as UTF-8") from e


def scalar(text: str) -> Any:
    """Parse a text as the value of a key in a YAML file.

    Raises:
        UserError: the text is not YAML, or gives a key twice.

    >>> scalar("1e-3"), scalar("q v"), scalar("null")
    (0.001, 'q v', None)
    >>> scalar("010"), scalar("yes"), scalar("1:30")
    (10, 'yes', '1:30')
    """
    if len(text) > LARGEST_FILE:
        raise UserError(f"{shown(text)} is too long for a value; give at most {LARGEST_FILE:,} characters")
    try:
        return _parsed(text, Document(Path(shown(text)), None, {}))
    except yaml.YAMLError as e:
        reason = _malformed(e, text)
        raise UserError(f"{shown(text)} cannot be read as a YAML value ({reason}); put it in quotes") from e


def _parsed(text: str, document: Document) -> Any:
    """Return the value of a text, and note the lines of its values in the document."""
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        return None if node is None else _Reader(document).read(node, ())
    finally:
        loader.dispose()


class _Reader:
    """Builds plain values from YAML nodes and notes the line of each in the document."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.open: list[yaml.Node] = []  # the nodes that contain the current one
        self.nodes = 0

    def read(self, node: yaml.Node, place: Place) -> Any:
        """Return the value of a node at a place. Raises UserError for an alias inside its own value."""
        self.document.lines.setdefault(place, node.start_mark.line + 1)
        self.nodes += 1
        if any(node is parent for parent in self.open):
            raise self.document.error(place, "an alias (*) inside the value that it stands for; write the value out")
        if self.nodes > MAX_NODES or len(self.open) >= MAX_DEPTH:
            raise self.document.error(place, f"the file has {_beyond(len(self.open) + 1)}")
        self.open.append(node)
        try:
            if isinstance(node, yaml.MappingNode):
                self._check_tag(node, place, "map")
                return self._mapping(node, place)
            if isinstance(node, yaml.SequenceNode):
                self._check_tag(node, place, "seq")
                return [self.read(child, (*place, i)) for i, child in enumerate(node.value)]
            assert isinstance(node, yaml.ScalarNode)  # the third kind of node
            return self._scalar(node, place)
        finally:
            self.open.pop()

    def _mapping(self, node: yaml.MappingNode, place: Place) -> dict[str, Any]:
        """Return the mapping of a node. Its own values replace those that merge keys (<<) bring from other mappings."""
        own, merged = dict[str, Any](), dict[str, Any]()
        lines: dict[str, int] = {}
        for key, child in node.value:
            line = key.start_mark.line + 1
            if key.tag == f"{_TAG}merge":
                for source in self._merged(child, place, line):
                    merged |= self.read(source, place)
                continue
            name = self._key(key, place, line)
            if name in lines:
                where = f" in {spell(place)}" if place else ""
                raise UserError(
                    f"{self.document.path}: line {line}: the key {shown(name)}{where} is given twice (first in line "
                    f"{lines[name]}); keep one of them"
                )
            lines[name] = line
            self.document.lines[*place, name] = line
            own[name] = self.read(child, (*place, name))
        for name, line in lines.items():
            self.document.lines[*place, name] = line  # a merge key that follows may have noted another
        return merged | own

    def _merged(self, node: yaml.Node, place: Place, line: int) -> Iterator[yaml.MappingNode]:
        """Yield the mappings of a merge key; the first of a list comes last, because it replaces the others."""
        for source in reversed(node.value) if isinstance(node, yaml.SequenceNode) else [node]:
            if not isinstance(source, yaml.MappingNode):
                raise UserError(f"{self.document.path}: line {line}: << takes a mapping or a list of mappings")
            yield source

    def _key(self, node: yaml.Node, place: Place, line: int) -> str:
        name = self._scalar(node, place) if isinstance(node, yaml.ScalarNode) else None
        if not isinstance(name, str):
            given = "a list or mapping" if not isinstance(node, yaml.ScalarNode) else shown(name)
            raise UserError(f"{self.document.path}: line {line}: a key must be a word, not {given}; put it in quotes")
        return name

    def _scalar(self, node: yaml.ScalarNode, place: Place) -> Any:
        kind, text = self._check_tag(node, place, "null", "bool", "int", "float", "str", "merge"), node.value
        if kind in ("str", "merge"):
            return self._text(text, place)
        if not (_FORMS[kind].fullmatch(text) or (kind == "float" and _FORMS["int"].fullmatch(text))):
            raise self.document.error(place, f"given {shown(text)}, which is no {kind}; remove the tag")
        if kind == "int" and len(text) > MAX_DIGITS:
            raise self.document.error(place, f"a whole number of {len(text):,} digits; give at most {MAX_DIGITS}")
        value = _READERS[kind](text)
        if kind == "float" and math.isinf(value) != ("inf" in text.lower()):
            raise self.document.error(place, f"given {shown(text)}; a number is at most about 1.8e308")
        if kind == "float" and value == 0 and re.search("[1-9]", re.split("[eE]", text)[0]):
            raise self.document.error(place, f"given {shown(text)}; a number other than 0 is at least about 5e-324")
        return value

    def _text(self, text: str, place: Place) -> str:
        """Return a text, or refuse characters that only an escape such as \\0 can bring and nothing can store."""
        bad = next((c for c in text if c == "\0" or 0xD800 <= ord(c) < 0xE000), None) if text else None
        if bad is not None:
            raise self.document.error(place, f"the text has the character U+{ord(bad):04X}, which no text may have")
        return text

    def _check_tag(self, node: yaml.Node, place: Place, *valid: str) -> str:
        """Return the type that a node's tag names, or refuse it."""
        kind = str(node.tag).removeprefix(_TAG)
        if kind not in valid:
            written = f"!!{kind}" if str(node.tag).startswith(_TAG) else str(node.tag)
            only = "an experiment holds plain text, numbers, lists and mappings only"
            raise self.document.error(place, f"the tag {shown(written)} is not read; {only}")
        return kind


def _whole(text: str) -> int:
    return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))


def _real(text: str) -> float:
    return float(_whole(text) if text[:2] in ("0o", "0x") else re.sub(r"\.(?=inf|nan)", "", text.lower()))


_READERS: dict[str, Callable[[str], Any]] = {
    "null": lambda _: None,
    "bool": lambda text: text.lower() == "true",
    "int": _whole,
    "float": _real,
}


def _malformed(error: yaml.YAMLError, text: str) -> str:
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        line = text.count("\n", 0, getattr(error, "position", 0)) + 1
        character = getattr(error, "character", None)
        which = f" (U+{character:04X})" if isinstance(character, int) else ""
        return f"line {line}: not YAML: {getattr(error, 'reason', error)}{which}"
    problem = f"{getattr(error, 'context', None) or ''} {getattr(error, 'problem', None) or ''}".strip()
    hint = ""
    if "\\t" in problem:
        hint = "; indent with spaces, not tabs"
    elif "undefined alias" in problem:
        hint = "; a text that starts with * must be quoted"
    return f"line {mark.line + 1}, column {mark.column + 1}: not well-formed YAML: {problem}{hint}"
