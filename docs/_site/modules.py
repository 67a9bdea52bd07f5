"""Which modules are public, and which of them the API's pages name: the others stand in the table of ``api/modules.md``."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
API = ROOT / "docs" / "api"
MARK = "<!-- all other modules -->"
_INSTALLED_AS = {"dstee": "dstee", "kernels": "dstee.kernels", "bench": "dstee.bench"}


def public_modules(root: Path = ROOT) -> dict[str, str]:
    """The first sentence of each docstring, by the name under which the module is imported where dstee is installed."""
    found = {}
    for folder, package in _INSTALLED_AS.items():
        for file in sorted((root / folder).rglob("*.py")):
            parts = file.relative_to(root / folder).with_suffix("").parts
            name = ".".join((package, *(part for part in parts if part != "__init__")))
            if not any(part.startswith("_") for part in name.split(".")):
                found[name] = _first_sentence(ast.get_docstring(ast.parse(file.read_text())) or "")
    return found


def _first_sentence(docstring: str) -> str:
    paragraph = " ".join(docstring.split("\n\n")[0].split())
    return re.split(r"(?<=\.)\s", paragraph)[0].rstrip(".:;")


def named(root: Path = ROOT) -> set[str]:
    """What the API's pages render: the names behind ``:::``."""
    return {
        name for page in (root / "docs" / "api").glob("*.md") for name in re.findall(r"^::: (\S+)$", page.read_text(), re.M)
    }


def table(root: Path = ROOT) -> str:
    """Markdown for :data:`MARK`: a section for each package, a row for each module that no page names."""
    return "\n".join(_lines({name: text for name, text in public_modules(root).items() if name not in named(root)}))


def _lines(modules: dict[str, str]) -> Iterator[str]:
    section = None
    for name, text in sorted(modules.items(), key=lambda row: (_section(row[0]), row[0])):
        if _section(name) != section:
            section = _section(name)
            yield from ("", f"## {section}", "", "| module | |", "|---|---|")
        plain = re.sub(r":\w+:`~?([^`]*)`", r"`\1`", text).replace("``", "`").replace("|", "\\|")
        yield f"| `{name}` | {plain} |"


def _section(name: str) -> str:
    parts = name.split(".")
    return ".".join(parts[:2]) if parts[1:2] and parts[1] in ("experiments", "kernels", "bench") else "dstee"
