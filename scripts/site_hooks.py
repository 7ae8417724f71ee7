"""mkdocs hooks: pages from outside docs/, their links, and the package's layout for the API pages.

README.md is the site's first page; CHANGELOG.md, CONTRIBUTING.md and benchmarks/README.md are pages, too. None is copied by hand.
"""

from __future__ import annotations

import posixpath
import re
import shutil
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
# The place of the repository's files on the site; files in docs/ keep their paths.
PLACES = {
    "README.md": "index.md",
    "CHANGELOG.md": "CHANGELOG.md",
    "CONTRIBUTING.md": "CONTRIBUTING.md",
    "benchmarks/README.md": "benchmarks/README.md",
}
# Links in Markdown, and the README's picture, which has a width.
LINK = re.compile(r"(?:(?<=\]\()|(?<=<img src=\"))(?!\w+:|#)([^)#\s\"]+)(#[^)\s]*)?(?=[)\"])")
OUTSIDE = re.compile(r"<(?:script|img|iframe)[^>]+src=\"https?:|<link[^>]+(?:stylesheet|preload|preconnect)[^>]+https?:")  # fmt: skip


def on_startup(**_: Any) -> None:
    """Copy the package in its installed layout, which static analysis cannot derive: kernels/ is ptgm_fast.kernels."""
    package = ROOT / "build" / "site-sources" / "ptgm_fast"
    shutil.rmtree(package, ignore_errors=True)
    ignore = shutil.ignore_patterns("kernels", "*.so", "__pycache__", "assets")
    shutil.copytree(ROOT / "ptgm_fast", package, ignore=ignore)
    shutil.copytree(ROOT / "kernels", package / "kernels", ignore=shutil.ignore_patterns("__pycache__"))  # fmt: skip


def on_files(files: Files, config: Any) -> Files:
    """Add the pages from outside docs/, and every other file of the repository that a page links to."""
    for source, place in PLACES.items():
        files.append(File.generated(config, place, abs_src_path=str(ROOT / source)))
    for file in list(files.documentation_pages()):
        for link in LINK.finditer(file.content_string):
            place = site_path(repository_path(file.src_uri), link[1])
            source = repository_path(place)
            if files.get_file_from_path(place) is None and (ROOT / source).is_file():
                files.append(File.generated(config, place, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Rewrite links for the site; mkdocs then reports the broken ones."""
    here = page.file.src_uri

    def moved(link: re.Match[str]) -> str:
        place = site_path(repository_path(here), link[1])
        return posixpath.relpath(place, posixpath.dirname(here) or ".") + (link[2] or "")

    return LINK.sub(moved, markdown)


def on_post_page(output: str, page: Any, **_: Any) -> str:
    if found := OUTSIDE.search(output):
        raise PluginError(f"{page.file.src_uri} fetches from elsewhere: {found[0]}")
    return output


def repository_path(place: str) -> str:
    """The repository's file at a place on the site."""
    for source, taken in PLACES.items():
        if taken == place:
            return source
    return f"docs/{place}" if (ROOT / "docs" / place).exists() else place


def site_path(source: str, link: str) -> str:
    """The place on the site of what a file of the repository links to."""
    target = posixpath.normpath(posixpath.join(posixpath.dirname(source), link))
    return PLACES.get(target, target.removeprefix("docs/"))
