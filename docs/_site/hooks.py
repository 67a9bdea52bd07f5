"""What the site adds to the pages: the modules that none of them names, and the files of the repository that they link to."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from modules import MARK, ROOT, table

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

_LINK = re.compile(r"(?<=\]\()(\.\./[^)#\s]+)")
_TABLES = "The tables stand in the README.\n<!-- tables of the README -->"


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """A link that leaves docs/ works in the repository; the site carries a copy of that file."""
    from mkdocs.exceptions import PluginError
    from mkdocs.structure.files import File

    folder = Path(page.file.abs_src_path or "").parent

    def inside(match: re.Match[str]) -> str:
        target = (folder / match[1]).resolve()
        if target.is_relative_to(config.docs_dir):
            return match[1]
        if not target.is_file() or target.suffix == ".md":
            raise PluginError(
                f"{page.file.src_uri} links to {match[1]}: beyond docs/ only files that are no pages can be linked"
            )
        uri = f"repository/{target.relative_to(ROOT).as_posix()}"
        if files.get_file_from_path(uri) is None:
            files.append(File.generated(config, uri, abs_src_path=str(target)))
        return os.path.relpath(uri, Path(page.file.src_uri).parent).replace(os.sep, "/")

    for mark, text in ((MARK, table), (_TABLES, _tables_of_readme)):
        markdown = markdown.replace(mark, text()) if mark in markdown else markdown
    return _LINK.sub(inside, markdown)


def _tables_of_readme() -> str:
    """What `python -m bench.readme_table` writes there."""
    return (ROOT / "README.md").read_text().split("<!-- speed -->\n")[1].split("<!-- /speed -->")[0]
