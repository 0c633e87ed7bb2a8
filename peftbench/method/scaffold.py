"""Copy the method template with the names filled in (`new-method`)."""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterable
from pathlib import Path

from peftbench.cache import method_folder
from peftbench.errors import UserError


def new_method(name: str, known: Iterable[str], here: Path) -> Path:
    """Write a new method file from the template.

    Args:
        name: Name of the method.
        known: Names of the methods that exist.
        here: Working directory. In a checkout of peftbench the file goes to `methods/`, else into `here`.

    Returns:
        Path of the file.

    Raises:
        UserError: The name is not a Python identifier, is taken, or its file exists or cannot be written.
    """
    if not name.isidentifier() or keyword.iskeyword(name) or name.startswith("_") or not name.isascii():
        raise UserError(
            f"{name!r} cannot name a method: it names a file and appears in experiments. Use ASCII letters, digits and "
            "underscores, beginning with a letter, e.g. lora_fa"
        )
    if name in set(known):
        raise UserError(f"there is a method {name!r} already (see `peftbench methods {name}`); choose another name")
    template = method_folder() / "_template.py"
    if not template.is_file():
        raise UserError("the template methods/_template.py is missing; restore it, or install peftbench again")
    folder = template.parent if _is_checkout(template.parent.parent, here) else here
    path = folder / f"{name}.py"
    text = filled_in(template.read_text(encoding="utf-8"), name)
    try:
        with open(path, "x", encoding="utf-8") as f:
            f.write(text)
    except FileExistsError as e:
        raise UserError(f"{path} exists and is not overwritten; choose another name, or move the file away") from e
    except OSError as e:
        raise UserError(f"{path} cannot be written ({e.strerror}); go to a directory that you may write to") from e
    return path


def filled_in(template: str, name: str) -> str:
    """Return the template's text with `template` and `Template...` replaced by the method's name in both spellings."""
    camel = "".join(part[:1].upper() + part[1:] for part in name.split("_"))
    text = re.sub(r"\bTemplate(?=[A-Z]\w*|\b)", camel, template)
    return re.sub(r'\bname = "template"', f'name = "{name}"', text)


def _is_checkout(root: Path, here: Path) -> bool:
    project = root / "pyproject.toml"
    inside = here.resolve().is_relative_to(root.resolve())
    return inside and project.is_file() and 'name = "peftbench"' in project.read_text(encoding="utf-8")
