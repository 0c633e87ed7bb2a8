"""A hook of mkdocs.yml: pages in docs/ link to files of the repository, which are no pages of the site.

Images from elsewhere in the repository are copied into the site. Other links become the text and the file's path.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = re.compile(r"(!?)\[([^\]]*)\]\(\.\./([^)\s]+)\)")
IMAGES = (".png", ".svg")


def on_files(files: Files, config: Any) -> Files:
    """Add the images that pages show from outside docs/."""
    for page in files.documentation_pages():
        for _, _, target in OUTSIDE.findall(page.content_string):
            if target.endswith(IMAGES) and files.get_file_from_path(target) is None:
                files.append(File.generated(config, target, abs_src_path=str(ROOT / target)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Write a page of docs/ so that it needs nothing but the site."""

    def written(found: re.Match[str]) -> str:
        image, text, target = found.groups()
        if target.endswith(IMAGES):
            return f"{image}[{text}]({target})"
        path = target.partition("#")[0]
        return text if path in text else f"{text} (`{path}`)"

    return OUTSIDE.sub(written, markdown) if PurePosixPath(page.file.src_uri).parent == PurePosixPath() else markdown
