"""Result files: verdicts of a comparison, the form of the JSON, tables, and an HTML page that nothing can break out of."""

from __future__ import annotations

import copy
import html.parser
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import compare, environment, readme_table, report, results_file, scaling
from bench.layers import UsageError

pytest.importorskip("matplotlib")
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\"'&$x$"


def contender(samples: list[float], **more: Any) -> dict[str, Any]:
    middle = float(np.median(samples))
    return {
        "status": "ok", "ours": True, "rule": "a rule", "step": "", "samples_ms": samples, "median_ms": middle,
        "p20_ms": middle, "p80_ms": middle * 1.1, "repeats": len(samples), "noisy": False, "digest": "00",
        "digests_equal": True, "gb_s": 1.0,
        "share_of_roof": 0.5, "first_call_ms": 2.0, "peak_extra_bytes": 10**6, **more,
    }  # fmt: skip


def samples(median: float, n: int = 31, noise: float = 0.01, seed: int = 0) -> list[float]:
    return [float(x) for x in median * np.exp(noise * np.random.default_rng(seed).standard_normal(n))]


def a_document(contenders: dict[str, Any], copy_gb_s: float = 20.0, **key: Any) -> dict[str, Any]:
    row = {
        "key": {"op": "drop_grow", "case": "tiny", "density": 0.1, "threads": 2, **key}, "n": 1000, "layers": 1, "bytes": 9000,
        "roof_ms": 0.5, "roof": {"copy_gb_s": copy_gb_s, "read_gb_s": 20.0, "samples_ms": {}}, "contenders": contenders,
    }  # fmt: skip
    return results_file.new({"commit": "c", "dirty": False, "cpu": "x", "torch": "2"}, {"every": 100}) | {"rows": [row]}


# --- compare -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("factor", "noise", "n", "machine", "verdict", "status"),
    [
        (1.0, 0.01, 31, 1.0, "same", 0),
        (1.02, 0.01, 31, 1.0, "same", 0),
        (1.2, 0.01, 31, 1.0, "slower", 1),
        (0.8, 0.01, 31, 1.0, "faster", 0),
        (1.2, 0.5, 31, 1.0, "cannot tell", 2),  # drowned in noise
        (1.5, 0.01, 3, 1.0, "cannot tell", 2),  # three samples prove nothing
        (1.2, 0.01, 31, 1.2, "cannot tell", 2),  # the machine itself got slower
        (1.2, 0.01, 31, 0.8, "slower", 1),  # the machine got faster, this did not
        (1.045, 0.03, 31, 1.0, "cannot tell", 2),
    ],
)
def test_verdicts(factor: float, noise: float, n: int, machine: float, verdict: str, status: int) -> None:
    a = a_document({"native": contender(samples(10, n, noise, 1))})
    b = a_document({"native": contender(samples(10 * factor, n, noise, 2))}, copy_gb_s=20 / machine)
    found = compare.compare(a, b)
    assert [v.verdict for v in found] == [verdict] and compare.exit_status(found) == status


def test_a_run_compares_as_same_with_itself_and_the_interval_holds_the_truth() -> None:
    hits = 0
    for seed in range(200):
        r = compare.ratio(samples(10, 31, 0.1, seed), samples(11, 31, 0.1, seed + 1000))
        hits += r.low <= 1.1 <= r.high
    assert hits >= 194, "a 99 % interval"
    same = samples(5)
    assert compare.judge(compare.ratio(same, same), 0.05) == "same"


def test_who_counts_for_the_exit_status() -> None:
    a = a_document({"native": contender(samples(1)), "peer": contender(samples(1), ours=False)})
    b = a_document({"native": contender(samples(1)), "peer": contender(samples(2), ours=False)})
    found = compare.compare(a, b)
    assert compare.exit_status(found) == 0 and compare.exit_status(found, everyone=True) == 1
    b["rows"][0]["contenders"]["native"] = {"status": "wrong", "reason": "x", "ours": True}
    assert compare.exit_status(compare.compare(a, b)) == 2, "a figure that is gone is no 'same'"
    assert compare.exit_status([]) == 2
    b["rows"][0]["key"]["density"] = 0.2
    assert compare.compare(a, b) == []


def test_compare_prints_and_returns(tmp_path: Path) -> None:
    paths = [tmp_path / "a.json", tmp_path / "b.json"]
    for path, middle in zip(paths, (10, 13), strict=True):
        results_file.write(path, a_document({"native": contender(samples(middle))}))
    out = io.StringIO()
    assert compare.run(*paths, 0.05, False, out) == 1
    text = out.getvalue()
    assert "slower" in text and "1.3" in text and text.strip().endswith("slower (dstee's backends; margin 5%)")


# --- JSON --------------------------------------------------------------------------------------------------------------------


def test_a_document_comes_back_as_it_went(tmp_path: Path) -> None:
    made = a_document({"native": contender(samples(1)), "peer": {"status": "skipped", "reason": "absent"}})
    made["stamp"] = environment.describe()
    results_file.write(tmp_path / "x" / "a.json", made)
    assert results_file.read(tmp_path / "x" / "a.json") == json.loads(json.dumps(made))
    assert {"commit", "dirty", "cpu", "torch", "date", "build"} <= made["stamp"].keys()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda d: d.update(schema_version=2), "schema_version is 2"),
        (lambda d: d.pop("rows"), "rows is missing"),
        (lambda d: d["rows"].append({}), "row 1 has no key"),
        (lambda d: d["rows"][0]["contenders"]["native"].pop("samples_ms"), "samples_ms"),
        (lambda d: d["rows"][0]["contenders"]["native"].update(status="great"), "no status"),
        (lambda d: d["rows"][0]["contenders"].update(x={"status": "wrong"}), "no reason"),
    ],
)
def test_a_document_of_another_form_is_refused(tmp_path: Path, change: Any, told: str) -> None:
    made = a_document({"native": contender(samples(1))})
    change(made)
    (tmp_path / "a.json").write_text(json.dumps(made))
    with pytest.raises(UsageError, match=told):
        results_file.read(tmp_path / "a.json")


@pytest.mark.parametrize("text", ["", "{", '{"a": 1, "a": 2}', "[NaN]", "[" * 100_000])
def test_what_is_no_json_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UsageError, match="proper JSON"):
        results_file.read(tmp_path / "a.json")


def test_cost_per_step() -> None:
    made = a_document({"native": contender([10.0]), "topk": contender([300.0], step="by hand")})
    step = copy.deepcopy(made["rows"][0])
    step["key"]["op"], step["contenders"] = "masked_sgd", {"native": contender([2.0]), "by hand": contender([5.0])}
    made["rows"].append(step)
    results_file.amortised(made, 100)
    found = made["rows"][0]["contenders"]
    assert math.isclose(found["native"]["amortised_ms"], 2.1) and math.isclose(found["topk"]["amortised_ms"], 8.0)


# --- HTML --------------------------------------------------------------------------------------------------------------------


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
    made = a_document({
        "native": contender(samples(1)), HOSTILE: contender(samples(2), ours=False, rule=HOSTILE),
        "bad": {"status": "failed", "reason": HOSTILE},
    }, case=HOSTILE)  # fmt: skip
    second = copy.deepcopy(made["rows"][0])
    second["n"] = 5000
    phases = {"forward": 1.0, "backward": 2.0, "optimizer": 0.5, "masks": 0.1}
    step = {"key": {"op": "step", "case": HOSTILE}, "contenders": {HOSTILE: contender([4.0], phases_ms=phases, update_ms=0.1)}}
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


def test_growth_is_fitted(hostile: tuple[dict[str, Any], str]) -> None:
    assert math.isclose(scaling.slope([1, 10, 100], [3, 30, 300]), 1)
    assert any(line.startswith("drop_grow  native") for line in scaling.lines(hostile[0]))


def test_an_unfinished_sweep_says_so(hostile: tuple[dict[str, Any], str]) -> None:
    assert "did not finish" in hostile[1] and "did not finish" not in report.render(hostile[0] | {"complete": True})


# --- README ------------------------------------------------------------------------------------------------------------------


def test_the_readme_table_is_made_of_the_document(tmp_path: Path) -> None:
    made = a_document({"native": contender([10.0]), "torch.topk": contender([305.0], ours=False)})
    results_file.write(tmp_path / "cpu.json", made)
    text = readme_table.table(tmp_path)
    assert "| 10% | 10.0 ms | 50% | 30x |" in text and "torch.topk" in text
