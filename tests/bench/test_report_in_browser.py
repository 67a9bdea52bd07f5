"""The HTML page in headless Chromium: nothing is too wide or clipped, on a screen, half a screen or a telephone."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from support.bench_pages import every_kind, hostile

from bench import report, results_file

pytest.importorskip("matplotlib")
ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SCRIPT = (ROOT / "tests" / "support" / "measure_page.js").read_text()
RESULTS = sorted((ROOT / "bench" / "results").glob("*.json"))
NAMES = [*sorted(every_kind().keys() - {"all"}), *(path.name for path in RESULTS), "hostile"]
WIDTHS = (1280, 800, 400)
POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
PLANTED = {
    "wide": ('<div style="width:5000px">x</div>', "wider than the window: <div> x"),
    "clipped": (
        '<div style="width:30px;overflow:hidden;white-space:nowrap">a long line of text</div>',
        "clipped or scrolled: <div> a long",
    ),
    "folded": (
        '<details><summary>s</summary><p style="width:5000px">far</p></details>',
        "unfolded, wider than the window: <p> far",
    ),
    "picture": (
        '<svg viewBox="0 0 10 10" width="40"><text x="9" y="5">beyond</text></svg>',
        "text beyond its picture: <text> beyond",
    ),
}
HARNESS = """<!doctype html><meta charset="utf-8"><body><script>
const frames = FRAMES, found = {};
addEventListener("message", (event) => {
  found[event.data.name] = event.data;
  if (Object.keys(found).length === frames.length) {
    const out = document.createElement("pre");
    out.id = "out";
    out.textContent = JSON.stringify(found);
    document.body.append(out);
  }
});
for (const [name, src, width] of frames) {
  const frame = document.createElement("iframe");
  Object.assign(frame, {src, width, height: 900, style: "border:0;flex:none"});
  document.body.append(frame);
}
</script>"""

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome: apt-get install chromium (CONTRIBUTING.md)"
)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What every page tells of itself at every width, by "name width"; one start of the browser for all."""
    folder = tmp_path_factory.mktemp("pages")
    made = {**every_kind(), **{path.name: results_file.read(path) for path in RESULTS}, "hostile": hostile()}
    pages = {name: POLICY.sub("", report.render(made[name])) for name in NAMES}
    pages |= {
        name: f'<!doctype html><html lang="en"><body>{body}<table></table></body></html>' for name, (body, _) in PLANTED.items()
    }
    frames = []
    for name, page in pages.items():
        for width in WIDTHS:
            label = f"{name} {width}"
            page_of = page.replace('<html lang="en">', f'<html lang="en" data-name="{label}">', 1)
            (folder / f"{label}.html").write_text(page_of.replace("</body>", f"<script>{SCRIPT}</script></body>"))
            frames.append([label, f"{label}.html", width])
    (folder / "all.html").write_text(HARNESS.replace("FRAMES", json.dumps(frames)))
    assert CHROMIUM is not None
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={folder / 'profile'}",
        "--window-size=1400,1000", "--virtual-time-budget=60000", "--dump-dom", (folder / "all.html").as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    out = re.search(r'<pre id="out">(.*?)</pre>', done.stdout, re.DOTALL)
    assert out, f"not every page was measured: {done.stdout[-500:]} {done.stderr[-2000:]}"
    found: dict[str, Any] = json.loads(html.unescape(out[1]))
    return found


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", NAMES)
def test_everything_fits(name: str, width: int, measured: dict[str, Any]) -> None:
    found = measured[f"{name} {width}"]
    assert found["found"] == [] and found["folded"] >= 3
    assert found["above"], "the first picture ends above the first table"
    assert found["smallest"] >= (11 if width > 560 else 8), "text of a picture, pixels high"


@pytest.mark.parametrize("name", PLANTED)
def test_what_does_not_fit_is_seen(name: str, measured: dict[str, Any]) -> None:
    for width in WIDTHS:
        assert any(PLANTED[name][1] in text for text in measured[f"{name} {width}"]["found"]), measured[f"{name} {width}"]
