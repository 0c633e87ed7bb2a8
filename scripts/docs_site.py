"""A hook of mkdocs.yml: pages in docs/ link to files of the repository, which are no pages of the site.

Images from elsewhere in the repository are copied into the site, and so are the pages of `PAGES`. Other links become
the text and the file's path. The schematics of methods are written into their pages, so that they follow the palette.
The calculator and the pages of the committed result sets are made and laid beside the site's own.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.structure.files import File, Files

from peftbench.estimate.calculator import page as calculator_page
from peftbench.report import site

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
FIGURE = re.compile(r'<p><img alt="[^"]*" src="figures/([\w-]+)\.svg"[^>]*></p>')
IMAGES = (".png", ".svg")
PAGES = {"CHANGELOG.md": "changelog.md", "results/README.md": "results.md"}  # file of the repository: page of the site
WHERE, WHAT = "0 0 276 372", "284 14 276 262"  # the halves of a schematic; see scripts/gallery/figures.py
SETS = ROOT / "results" / "reference"
BESIDE = {  # page of the site: what lies beside it, what leads there
    "calculator.md": ("calculator-page.html", "Open the calculator"),
    "results.md": ("pages/index.html", "Look at the committed sets: verdicts, side by side, and a page each"),
}
HIDDEN = {"index.md": ["navigation", "toc"], "start.md": ["navigation"]}  # sidebars


def on_config(config: Any) -> Any:
    """Add the card of each method to the navigation."""
    (methods,) = [section["Methods"] for section in config.nav if "Methods" in section]
    cards = sorted((ROOT / "docs" / "methods").glob("*.md"))
    methods += [{path.stem: f"methods/{path.name}"} for path in cards if path.stem != "index"]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages and the images from outside docs/."""
    for path, uri in PAGES.items():
        files.append(File.generated(config, uri, content=_inside_docs(path)))
    for page in list(files.documentation_pages()):
        for _, _, target in LINK.findall(page.content_string):
            outside = _outside(target, page.src_uri)
            if outside and outside.endswith(IMAGES) and files.get_file_from_path(outside) is None:
                files.append(File.generated(config, outside, abs_src_path=str(ROOT / outside)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Write a page of docs/ so that it needs nothing but the site."""
    uri = page.file.src_uri
    page.meta.setdefault("hide", HIDDEN.get(uri, []))

    def written(found: re.Match[str]) -> str:
        image, text, target = found.groups()
        outside = _outside(target, uri)
        if outside is None:
            return found.group()
        if outside in PAGES or outside.endswith(IMAGES):
            inside = posixpath.relpath(PAGES.get(outside, outside), posixpath.dirname(uri) or ".")
            return f"{image}[{text}]({inside}{target[len(target.partition('#')[0]) :]})"
        return text if outside in text else f"{text} (`{outside}`)"

    text = LINK.sub(written, markdown)
    if uri not in BESIDE:
        return text
    file, said = BESIDE[uri]
    head, _, rest = text.partition("\n")
    return f'{head}\n\n<a class="md-button md-button--primary" href="{file}">{said}</a>\n{rest}'


def on_post_build(config: Any) -> None:
    """Write the calculator and the pages of the committed result sets."""
    place = Path(config.site_dir)
    (place / BESIDE["calculator.md"][0]).write_text(calculator_page.html(), encoding="utf-8")
    sets = sorted(path.parent for path in SETS.glob("*/runs"))
    site.write(sets, place / Path(BESIDE["results.md"][0]).parent, linked=False)


def on_page_content(html: str, page: Any, **_: Any) -> str:
    """Write the schematics into the pages of methods; the gallery shows what stands at a site, a card also where."""
    if not page.file.src_uri.startswith("methods/"):
        return html
    return FIGURE.sub(lambda found: _inlined(found[1], is_card=not page.file.src_uri.endswith("index.md")), html)


def on_post_page(output: str, **_: Any) -> str:
    """Name the search dialog, which the theme leaves without a name for screen readers."""
    return output.replace('"search" role="dialog"', '"search" role="dialog" aria-label="Search"')


def _outside(target: str, uri: str) -> str | None:
    """Return the path from the root of what a page links to, if it lies outside docs/."""
    if "://" in target or target.startswith(("#", "mailto:")):
        return None
    path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(uri), target.partition("#")[0]))
    return None if PurePosixPath(path).is_relative_to("docs") else path


def _inside_docs(path: str) -> str:
    """Return the text of a page from elsewhere, with its links as a page of docs/ would have them."""

    def written(found: re.Match[str]) -> str:
        image, text, target = found.groups()
        if "://" in target or target.startswith("#"):
            return found.group()
        from_root = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
        return f"{image}[{text}]({posixpath.relpath(from_root, 'docs')})"

    return LINK.sub(written, (ROOT / path).read_text(encoding="utf-8"))


def _inlined(name: str, is_card: bool) -> str:
    """Return a schematic as two drawings side by side, which a narrow screen stacks.

    Args:
        name: Name of the method.
        is_card: Whether it shows where the method acts. The drawing is there in any case: the other one refers to it.
    """
    svg = (ROOT / "docs" / "methods" / "figures" / f"{name}.svg").read_text(encoding="utf-8")
    where = svg.replace('viewBox="0 0 560 372"', f'viewBox="{WHERE}" class="{"where" if is_card else "unseen"}"')
    what = f'<svg viewBox="{WHAT}" class="what" aria-hidden="true"><use href="#{name.replace("_", "-")}-what"/></svg>'
    return f'<div class="method-figure" data-search-exclude>{" ".join(where.split())}{what}</div>'
