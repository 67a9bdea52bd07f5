"""The HTML page, which nothing in a result file can break out of."""

from __future__ import annotations

import copy
import html.parser
import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import pytest
from support.bench_rows import document, result, samples

from bench import cli, report, scaling_report

pytest.importorskip("matplotlib")
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\"'&$x$"


class Page(html.parser.HTMLParser):
    """Collects elements, attributes and the text of each script."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.lasttag == "script" and self.scripts:
            self.scripts[-1] += data


@pytest.fixture(scope="module")
def hostile() -> tuple[dict[str, Any], str]:
    made = document({
        "native": result(samples(1)), HOSTILE: result(samples(2), ours=False, rule=HOSTILE),
        "bad": {"status": "failed", "reason": HOSTILE},
    }, case=HOSTILE)  # fmt: skip
    second = copy.deepcopy(made["rows"][0])
    second["n"] = 5000
    phases = {"forward": 1.0, "backward": 2.0, "optimizer": 0.5, "masks": 0.1}
    step = {"key": {"op": "step", "case": HOSTILE}, "contenders": {HOSTILE: result([4.0], phases_ms=phases, update_ms=0.1)}}
    grow = [
        {
            **second,
            "key": {"op": "scaling", "of": "drop_grow", "sweep": "n", "x": 10.0**i, "case": HOSTILE, "density": 0.1},
            "n": 10**i,
        }
        for i in (3, 4, 5)
    ]
    made["rows"] += [second, step, {"key": {"op": "drop_grow"}, "error": HOSTILE}, *grow]
    made["stamp"] = {"cpu": HOSTILE, "commit": HOSTILE, "build": {"flags": HOSTILE}}
    return made, report.render(made)


def test_the_page_loads_and_runs_nothing(hostile: tuple[dict[str, Any], str]) -> None:
    page = Page(hostile[1])
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"img", "link", "iframe", "object", "embed", "base", "form", "image", "foreignobject", "a"}
    assert [a.get("type") for tag, a in page.tags if tag == "script"] == ["application/json"]
    for _, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on") or name in ("src", "srcset", "action")]
        assert all((attributes.get(name) or "#").startswith("#") for name in ("href", "xlink:href"))
    policy = [a.get("content") for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'"]
    outside = hostile[1].replace("http-equiv", "")
    assert (
        "http:" not in outside and "https:" not in outside and "@import" not in outside and "alert(1)</script>" not in outside
    )


def test_the_page_holds_the_document(hostile: tuple[dict[str, Any], str]) -> None:
    made, text = hostile
    assert json.loads(Page(text).scripts[0]) == json.loads(json.dumps(made))
    assert text.count("<svg") == text.count("</svg>") >= 4


def test_values_are_escaped(hostile: tuple[dict[str, Any], str]) -> None:
    assert "&lt;/script&gt;&lt;script&gt;alert(1)" in hostile[1] and "<img" not in hostile[1]


@pytest.mark.parametrize("absent", ["jinja2", "matplotlib"])
def test_a_missing_library_is_told_before_anything_is_measured(
    absent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *more: None if name == absent else find(name, *more))
    assert cli.main(["--shapes", "mlp", "--html", str(tmp_path / "a.html"), "--json", str(tmp_path / "a.json")]) == 2
    assert capsys.readouterr().err == f'dstee: error: --html needs {absent}: pip install "dstee[report]"\n'
    assert not list(tmp_path.iterdir())


def test_growth_is_fitted(hostile: tuple[dict[str, Any], str]) -> None:
    assert math.isclose(scaling_report.slope([1, 10, 100], [3, 30, 300]), 1)
    assert any(line.startswith("drop_grow  native") for line in scaling_report.lines(hostile[0]))


def test_an_unfinished_sweep_says_so(hostile: tuple[dict[str, Any], str]) -> None:
    assert "did not finish" in hostile[1] and "did not finish" not in report.render(hostile[0] | {"complete": True})
