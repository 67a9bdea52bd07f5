"""The HTML page: a picture, one table, the rest folded; and nothing in a result file can break out of it."""

from __future__ import annotations

import html.parser
import importlib.util
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from support.bench_pages import every_kind, hostile
from support.bench_rows import document, result

from bench import cli, overview, report, results_file, scaling_report

pytestmark = pytest.mark.long

pytest.importorskip("matplotlib")
markupsafe = pytest.importorskip("markupsafe")
RESULTS = sorted((Path(__file__).resolve().parents[2] / "bench" / "results").glob("*.json"))
PAGES = {**every_kind(), **{path.name: results_file.read(path) for path in RESULTS}, "hostile": hostile()}


class Page(html.parser.HTMLParser):
    """Collects elements, attributes and the text of each script; ``outside``: the elements that are in no ``<details>``."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.outside: list[str] = []
        self.scripts: list[str] = []
        self.inside = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.inside += tag == "details"
        if not self.inside:
            self.outside.append(tag)
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self.inside -= tag == "details"

    def handle_data(self, data: str) -> None:
        if self.lasttag == "script" and self.scripts:
            self.scripts[-1] += data


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return {name: report.render(made) for name, made in PAGES.items()}


# --- what is seen first --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PAGES)
def test_a_picture_comes_first_then_one_table_and_the_rest_is_folded(name: str, pages: dict[str, str]) -> None:
    page = Page(pages[name])
    assert page.inside == 0 and page.outside.count("table") == 1, "more than one table to read, or none"
    order = [tag for tag in page.outside if tag in ("svg", "table")]
    assert order == ["svg"] * order.count("svg") + ["table"], "pictures, then the table"
    assert (order == ["table"]) == (name == "nothing") == ("No picture: no contender has a figure." in pages[name])
    assert not [attributes for tag, attributes in page.tags if tag == "details" and "open" in attributes]
    assert [tag for tag, _ in page.tags].count("details") >= 3


@pytest.mark.parametrize("name", PAGES)
def test_the_table_answers_for_every_case(name: str) -> None:
    rows = [row for row in PAGES[name]["rows"] if row["key"]["op"] in overview.WHAT]
    found = [line for line in overview.lines(PAGES[name]) if not line.what.endswith("growth")]
    assert len(found) == len(rows)
    for row in rows:
        for one, figures in row.get("contenders", {}).items():
            told = [line for line in found if one in dict(line.others) or f"{one}: no figure, {figures['status']}" in line.lost]
            assert told or figures["status"] == "skipped" or figures.get("ours"), one


def test_what_the_table_says() -> None:
    found = {(line.what, line.case): line for line in overview.lines(PAGES["update"])}
    line = found["mask update", "resnet50, 5 % active"]
    assert line.dstee == "13.2 ms" and line.others[-2] == ("dstee's reference", "242x")
    assert line.others[:3] == [
        ("ITOP Masking, dstee's", "1.52x"),
        ("native 3c21e1c", "2.0x"),
        ("sparsimony, accelerated", "7.5x"),
    ]
    assert line.lost == ["sparsimony: no figure, wrong"]
    (line,) = overview.lines(PAGES["nothing"])
    assert (line.dstee, line.others) == ("no figure", [])
    growth = [line for line in overview.lines(PAGES["scaling"]) if line.what == "mask update, growth"]
    assert [line.case for line in growth] == [
        "weights from 1,000 to 100,000, float32, 2 threads", "layers from 1 to 5,000, float32, 2 threads",
        "odd and ordinary data, float32, 2 threads",
    ]  # fmt: skip
    assert growth[0].dstee == "251 ms to 15.8 s" and growth[0].others == [("torch.topk", "5.7x to 9.0x")]


def test_cases_are_told_apart() -> None:
    made = document({"native": result([1.0])}, dtype="float32", swap=0.3)
    keys: list[dict[str, Any]] = [
        {},
        {"density": 0.05},
        {"dtype": "bfloat16"},
        {"swap": 0.1},
        {"threads": 1},
        {"device": "cuda"},
    ]
    rows = [{**made["rows"][0], "key": {**made["rows"][0]["key"], **key}} for key in keys]
    names = overview.case_names(rows)
    assert len(set(names)) == len(keys) and names[0] == "tiny, 10 % active, 30 % swapped, 2 threads"
    assert overview.case_names(rows[:3]) == ["tiny, 10 % active", "tiny, 5 % active", "tiny, 10 % active, bfloat16"]


@pytest.mark.parametrize("name", PAGES)
def test_all_that_was_measured_is_on_the_page(name: str, pages: dict[str, str]) -> None:
    text = re.sub(r"<script.*?</script>", "", pages[name], flags=re.DOTALL)
    for row in PAGES[name]["rows"]:
        for one in row.get("contenders", {}):
            assert str(markupsafe.escape(one)) in text


# --- nothing breaks out ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PAGES)
def test_the_page_loads_and_runs_nothing(name: str, pages: dict[str, str]) -> None:
    page = Page(pages[name])
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"img", "link", "iframe", "object", "embed", "base", "form", "image", "foreignobject", "a"}
    assert [a.get("type") for tag, a in page.tags if tag == "script"] == ["application/json"]
    for _, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on") or name in ("src", "srcset", "action")]
        assert all((attributes.get(name) or "#").startswith("#") for name in ("href", "xlink:href"))
    policy = [a.get("content") for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'"]
    outside = pages[name].replace("http-equiv", "")
    assert "http:" not in outside and "https:" not in outside and "@import" not in outside and "url(http" not in outside
    assert "alert(1)</script>" not in outside


@pytest.mark.parametrize("name", PAGES)
def test_the_page_holds_the_document(name: str, pages: dict[str, str]) -> None:
    assert json.loads(Page(pages[name]).scripts[0]) == json.loads(json.dumps(PAGES[name]))
    assert pages[name].count("<svg") == pages[name].count("</svg>")


def test_values_are_escaped(pages: dict[str, str]) -> None:
    assert "&lt;/script&gt;&lt;script&gt;alert(1)" in pages["hostile"] and "<img" not in pages["hostile"]
    assert pages["hostile"].count("<svg") >= 6


@pytest.mark.parametrize("absent", ["jinja2", "matplotlib"])
def test_a_missing_library_is_told_before_anything_is_measured(
    absent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *more: None if name == absent else find(name, *more))
    assert cli.main(["--shapes", "mlp", "--html", str(tmp_path / "a.html"), "--json", str(tmp_path / "a.json")]) == 2
    assert capsys.readouterr().err == f'dstee: error: --html needs {absent}: pip install "dstee[report]"\n'
    assert not list(tmp_path.iterdir())


def test_growth_is_fitted() -> None:
    assert math.isclose(scaling_report.slope([1, 10, 100], [3, 30, 300]), 1)
    assert any(line.startswith("drop_grow  native") for line in scaling_report.lines(PAGES["hostile"]))


def test_an_unfinished_sweep_says_so(pages: dict[str, str]) -> None:
    assert "did not finish" in pages["hostile"]
    assert "did not finish" not in pages["cpu.json"]
