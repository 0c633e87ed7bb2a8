"""Read YAML strictly and keep the line of each value for error messages.

PyYAML's `safe_load` differs in three ways that matter to authors of experiments. It reads ``1e-3`` as text (YAML 1.1);
here it is a number. It accepts a repeated key, whose last value wins; here that is an error. It forgets the lines.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from peftbench.errors import UserError

Place = tuple[str | int, ...]  # ("methods", 2, "lora", "rank")
MAX_NODES = 100_000  # nested aliases can stand for billions of values and would exhaust the memory


class _Loader(yaml.SafeLoader):
    """A SafeLoader that reads the numbers of YAML 1.2, such as 1e-3 and 5E4."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9]*)?)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


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
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror}); give the path of an experiment's YAML file") from e
    except UnicodeDecodeError as e:
        raise UserError(f"{path}: not UTF-8 text (byte {e.start}); save the file as UTF-8") from e
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        document = Document(path, None, {})
        value = None if node is None else _Reader(loader, document).read(node, ())
    except yaml.YAMLError as e:
        raise UserError(f"{path}: {_malformed(e, text)}") from e
    finally:
        if loader is not None:
            loader.dispose()
    return Document(path, value, document.lines)


def scalar(text: str) -> Any:
    """Parse a text as the value of a key in a YAML file.

    Raises:
        UserError: the text is not YAML, or gives a key twice.

    >>> scalar("1e-3"), scalar("q v"), scalar("null")
    (0.001, 'q v', None)
    """
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        return None if node is None else _Reader(loader, Document(Path(repr(text)), None, {})).read(node, ())
    except (yaml.YAMLError, ValueError) as e:
        reason = _malformed(e, text) if isinstance(e, yaml.YAMLError) else e
        raise UserError(f"{text!r} cannot be read as a YAML value ({reason}); put it in quotes") from e
    finally:
        if loader is not None:
            loader.dispose()


class _Reader:
    """Builds plain values from YAML nodes and notes the line of each in the document."""

    def __init__(self, loader: _Loader, document: Document) -> None:
        self.loader, self.document = loader, document
        self.open: list[yaml.Node] = []  # the nodes that contain the current one
        self.nodes = 0

    def read(self, node: yaml.Node, place: Place) -> Any:
        """Return the value of a node at a place. Raises UserError for an alias inside its own value."""
        self.document.lines.setdefault(place, node.start_mark.line + 1)
        self.nodes += 1
        if any(node is parent for parent in self.open):
            raise self.document.error(place, "an alias (*) inside the value that it stands for; write the value out")
        if self.nodes > MAX_NODES:
            raise self.document.error(place, f"the file has more than {MAX_NODES} values with its aliases written out")
        self.open.append(node)
        try:
            if isinstance(node, yaml.MappingNode):
                return self._mapping(node, place)
            if isinstance(node, yaml.SequenceNode):
                return [self.read(child, (*place, i)) for i, child in enumerate(node.value)]
            return self._scalar(node, place)
        finally:
            self.open.pop()

    def _mapping(self, node: yaml.MappingNode, place: Place) -> dict[str, Any]:
        self._refuse_repeated(node, place)
        self.loader.flatten_mapping(node)  # resolve merge keys: << inserts the values of another mapping
        value = {}
        for key, child in node.value:
            name = self._scalar(key, place)
            inner = (*place, str(name))
            self.document.lines[inner] = key.start_mark.line + 1
            value[str(name)] = self.read(child, inner)  # the mapping's own values come last and replace merged ones
        return value

    def _refuse_repeated(self, node: yaml.MappingNode, place: Place) -> None:
        seen: dict[Hashable, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            name = key.value
            if not isinstance(key, yaml.ScalarNode):
                raise UserError(f"{self.document.path}: line {line}: a key must be a word, not a list or mapping")
            if name in seen:
                where = f" in {spell(place)}" if place else ""
                raise UserError(
                    f"{self.document.path}: line {line}: the key {name!r}{where} is given twice (first in line "
                    f"{seen[name]}); keep one of them"
                )
            if name != "<<":
                seen[name] = line

    def _scalar(self, node: yaml.Node, place: Place) -> Any:
        try:
            return self.loader.construct_object(node, deep=True)
        except ValueError as e:  # e.g. 2024-13-45, which has the form of a date
            raise self.document.error(
                place, f"given {node.value!r}, which cannot be read ({e}); put it in quotes"
            ) from e


def _malformed(error: yaml.YAMLError, text: str) -> str:
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        line = text.count("\n", 0, getattr(error, "position", 0)) + 1
        return f"line {line}: not YAML: {getattr(error, 'reason', error)}"
    problem = f"{getattr(error, 'context', None) or ''} {getattr(error, 'problem', None) or ''}".strip()
    hint = ""
    if "\\t" in problem:
        hint = "; indent with spaces, not tabs"
    elif "could not determine a constructor" in problem:
        hint = "; an experiment holds plain text, numbers, lists and mappings only"
    elif "undefined alias" in problem:
        hint = "; a text that starts with * must be quoted"
    return f"line {mark.line + 1}, column {mark.column + 1}: not well-formed YAML: {problem}{hint}"
