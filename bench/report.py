"""The HTML report: one file that loads nothing, runs nothing and can be read without colour. Every value is escaped."""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import Any

from dstee._files import write_atomic

from . import plots, scaling
from .results_file import Document, Row
from .table import caption, cells

STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#111;background:#fff;max-width:72rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.6rem;margin:0 0 .2rem} h2{font-size:1.2rem;margin:2.2rem 0 .3rem;border-bottom:1px solid #999}
h3{font-size:1rem;margin:1.4rem 0 .3rem} p{margin:.3rem 0} .wide{overflow-x:auto}
table{border-collapse:collapse;margin:.4rem 0} th,td{padding:.15rem .6rem;text-align:right;white-space:nowrap;
border-bottom:1px solid #ddd} th{border-bottom:2px solid #333} th:first-child,td:first-child,td.text,th.text{text-align:left}
td.why{text-align:left;white-space:normal;max-width:44rem} tr.ours td:first-child{font-weight:700}
.lost td{color:#555;font-style:italic}
svg{max-width:100%;height:auto} dt{font-weight:600} dl{display:grid;grid-template-columns:max-content auto;gap:.1rem 1rem}
dd{margin:0;overflow-wrap:anywhere} .note{color:#444;font-size:.92rem}
"""
POLICY = "default-src 'none'; style-src 'unsafe-inline'"
HOW_TO_READ = (
    "A contender has a number only if its result was right after the timed calls. Median of repeats in turns (ABBA), cold "
    "cache; ratio to the fastest backend of dstee. GB/s counts the bytes that the result needs, whoever computes it; the roof "
    "is a parallel copy measured in the same turns. Per step: the update over the steps between two updates, plus the masked "
    "step that goes with it."
)


def text(value: object) -> str:
    return html.escape(str(value), quote=True)


def data_block(document: Document) -> str:
    """The whole document inside a script element that no browser runs and that no string in it can end."""
    raw = json.dumps(document, allow_nan=False).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    return f'<script type="application/json" id="data">{raw}</script>'


def _table(row: Row) -> str:
    head, lines = cells(row)
    out = ['<div class="wide"><table><thead><tr>']
    out += [f'<th class="text">{text(h)}</th>' if h == "notes" else f"<th>{text(h)}</th>" for h in head]
    out.append("</tr></thead><tbody>")
    for line in lines:
        one = row["contenders"][line[0]]
        if one["status"] != "ok":
            out.append(f'<tr class="lost"><td>{text(line[0])}</td><td class="why" colspan="{len(head) - 1}">'
                       f"{text(one['status'])}: {text(one['reason'])}</td></tr>")  # fmt: skip
            continue
        marks = ' class="ours"' if one.get("ours") else ""
        tds = "".join(
            f'<td class="text">{text(c)}</td>' if h == "notes" else f"<td>{text(c)}</td>"
            for h, c in zip(head, line, strict=True)
        )
        out.append(f"<tr{marks}>{tds}</tr>")
    out.append("</tbody></table></div>")
    return "".join(out)


def _rules(document: Document) -> str:
    rules: dict[tuple[str, str], str] = {}
    for row in document["rows"]:
        op = row["key"]["op"] if row["key"]["op"] != "scaling" else row["key"]["of"]
        for name, one in row.get("contenders", {}).items():
            if "rule" in one:
                rules[op, name] = one["rule"]
    cells = "".join(
        f"<tr><td>{text(n)}</td><td class=text>{text(o)}</td><td class=why>{text(r)}</td></tr>" for (o, n), r in rules.items()
    )
    head = "<tr><th>contender</th><th class=text>op</th><th class=text>what it computes</th></tr>"
    return f"<table><thead>{head}</thead><tbody>{cells}</tbody></table>"


def _stamp(stamp: dict[str, Any]) -> str:
    items = []
    for key, value in stamp.items():
        if isinstance(value, dict):
            value = ", ".join(f"{k} {v}" for k, v in value.items()) or "none"
        items.append(f"<dt>{text(key)}</dt><dd>{text(value)}</dd>")
    return f"<dl>{''.join(items)}</dl>"


def render(document: Document) -> str:
    """The page."""
    stamp = document["stamp"]
    out = [
        "<!doctype html><html lang=en><head><meta charset=utf-8>",
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
        '<meta name="viewport" content="width=device-width"><title>dstee bench</title>',
        f"<style>{STYLE}</style></head><body><h1>dstee bench</h1>",
        f"<p>{text(stamp.get('cpu'))}, {text(stamp.get('threads'))} threads, torch {text(stamp.get('torch'))}, "
        f"{text(stamp.get('date'))}, commit {text(str(stamp.get('commit'))[:12] or 'unknown')}"
        f"{' with changes' if stamp.get('dirty') else ''}</p>",
        f'<p class="note">{text(HOW_TO_READ)}</p>',
    ]
    if not document.get("complete"):
        out.append("<p><strong>This sweep did not finish; what it has is shown.</strong></p>")
    out.append("<h2>Tables</h2>")
    for row in document["rows"]:
        out.append(f"<h3>{text(caption(row))}</h3>")
        out.append(f"<p>no figures: {text(row['error'])}</p>" if "error" in row else _table(row))
    growth = scaling.lines(document)
    if growth:
        out.append("<h2>Growth</h2><p class=note>Slope of log time over log x; 1 over weights is a flat time per weight.</p>")
        out.append("".join(f"<p>{text(line)}</p>" for line in growth))
    out.append("<h2>Plots</h2>")
    for name, picture in plots.pictures(document):
        out.append(f"<h3>{text(name)}</h3>{picture}")
    out.append(f"<h2>What each computes</h2>{_rules(document)}<h2>Machine and versions</h2>{_stamp(stamp)}")
    out.append(f"{data_block(document)}</body></html>\n")
    return "".join(out)


def write(path: Path, document: Document) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, [render(document).encode()])
