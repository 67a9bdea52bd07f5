"""Predicted times against arithmetic by hand, and measured ones beside them."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.bench_rows import document, result

from bench import cli, cuda_counts, cuda_traffic, options, predict, predict_report
from bench.cuda_counts import Count, Counts
from bench.predict import GAP, GPUS, SASS, SWAP, Kernel, kernels
from bench.shapes import resnet50
from dstee._console import UsageError

PLAIN = Count("masked_sgd", 0.05, "masked_sgd", 1, instructions=4.0, sectors=0.5, wavefronts=0.25)
UPDATE = [replace(PLAIN, op="drop_grow", kernel=name) for name in ("sample", "sweep", "select_drop", "commit", "select_grow")]
COUNTS = Counts(1000, 2, "figures of a test", [PLAIN, *UPDATE, *(replace(c, op="drop_grow with SGD") for c in UPDATE)])
SIZES = [math.prod(shape) for shape in resnet50().values()]
GPU = predict.Gpu("spam", processors=10, clock=1.0, bandwidth=1.0)


def test_a_kernel_is_bound_by_its_most_loaded_part() -> None:
    (one,) = kernels(COUNTS, GPU, "masked_sgd", [600_000, 400_000], 0.05)
    assert one.issue == pytest.approx(4.0 * SASS * 1e6 / (10 * 4 * 1e9))
    assert one.units == pytest.approx((0.5 / 2 + 0.25) * 1e6 / (10 * 1e9))
    layers = [cuda_traffic.scattered(n, 0.05, SWAP) for n in (600_000, 400_000)]
    assert one.memory == pytest.approx(cuda_traffic.masked_sgd(layers).moved / 0.9e12)
    assert (one.name, one.bound, one.gap) == ("masked_sgd", "issue", GAP)
    assert one.best == one.issue + GAP and one.worst == pytest.approx(one.issue + one.memory + one.units + GAP)


@pytest.mark.parametrize(
    ("times", "bound"), [((9, 1, 1), "issue"), ((1, 9, 1), "memory"), ((1, 1, 9), "load/store"), ((0, 0, 0), "launch")]
)
def test_the_bound_is_named(times: tuple[float, float, float], bound: str) -> None:
    assert Kernel("spam", 1, *times).bound == bound


def test_a_block_a_layer_does_not_share_its_work() -> None:
    """500 weights were counted a layer: as much for any size of layer, on as many multiprocessors as there are layers."""

    def sample(layers: int, n: int = 10**6) -> float:
        return kernels(COUNTS, GPU, "drop_grow", [n] * layers, 0.05)[0].issue

    assert sample(1) == pytest.approx(4.0 * SASS * 500 / (16 / 6 * 1e9)) and sample(1, 10**7) == sample(1)
    assert sample(10) == pytest.approx(sample(1))
    assert sample(1000) == pytest.approx(4.0 * SASS * 500 * 1000 / (10 * 4 * 1e9))


def test_the_fused_step_moves_more_than_the_update_alone() -> None:
    plain, fused = (kernels(COUNTS, GPU, op, [10**6], 0.05) for op in ("drop_grow", "drop_grow with SGD"))
    assert [k.name for k in plain] == [k.name for k in fused] == [c.kernel for c in UPDATE]
    assert fused[1].memory > 1.2 * plain[1].memory


def test_densities_that_nobody_counted_are_refused() -> None:
    with pytest.raises(UsageError, match=r"--density 0\.3: instructions were counted at 0\.05 only"):
        kernels(COUNTS, GPU, "masked_sgd", [10**6], 0.3)


# --- the command ---------------------------------------------------------------------------------------------------------


def test_the_command_predicts_from_the_committed_counts(capsys: pytest.CaptureFixture[str]) -> None:
    assert set(options.GPUS) == set(GPUS)
    words = ["model", "--gpu", "h100", "h200", "--shapes", "resnet50", "1e9", "--density", "0.05"]
    assert cli.main(words) == 0
    said = capsys.readouterr().out
    assert said.startswith("PREDICTED, not measured")
    assert all(line in said for line in predict.ASSUMPTIONS.splitlines())
    assert said.count("resnet50 (54)") == 6 and said.count("1e9 (1)") == 6 and "; measured: " not in said
    assert cli.main(["model", "--density", "0.3"]) == 2 and "counted at" in capsys.readouterr().err


def test_kernels_that_are_counted_are_those_that_are_planned() -> None:
    counts = cuda_counts.read()
    for density in {entry.density for entry in counts.entries}:
        for op in predict.OPS:
            found = kernels(counts, GPUS["h100"], op, [10**6, 10**5], density)
            assert all(0 < k.best <= k.worst for k in found), found


@pytest.fixture
def figures() -> dict[str, Any]:
    """As `make gpu` writes them: two benchmarks, and profiled launches."""

    def bench(op: str, case: str, ms: float) -> dict[str, Any]:
        found = document({"native": result([ms])}, op=op, case=case, density=0.05, dtype="float32")
        found["stamp"]["gpu"] = "NVIDIA H100 80GB HBM3"
        return found

    def launch(name: str, ns: float) -> dict[str, Any]:
        return {"kernel": name, "grid": "", "block": "", "metrics": {"Duration": ns}}

    names = ["masked_sgd_kernel", *(2 * [f"{c.kernel}_kernel" for c in UPDATE])]
    return {
        "machine": {"gpu": "NVIDIA H100 80GB HBM3"}, "stages": {}, "bench": bench("drop_grow", "resnet50", 0.25),
        "bench 100m": bench("masked_sgd", "100m", 0.5), "ncu": [launch(name, 1e3 * (i + 1)) for i, name in enumerate(names)],
    }  # fmt: skip


def test_measured_figures_are_read(figures: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "h100.json"
    path.write_text(json.dumps(figures))
    found = predict_report.read_measured(path)
    assert found.gpu == "NVIDIA H100 80GB HBM3"
    assert found.ops == {("drop_grow", "resnet50", 0.05): 0.25e-3, ("masked_sgd", "100m", 0.05): 0.5e-3}
    assert found.kernels["masked_sgd", "masked_sgd"] == pytest.approx(1e-6)
    assert found.kernels["drop_grow", "sweep"] == pytest.approx(3e-6)
    assert found.kernels["drop_grow with SGD", "select_grow"] == pytest.approx(11e-6)
    path.write_text(json.dumps(figures["bench"]))
    assert predict_report.read_measured(path).ops == {("drop_grow", "resnet50", 0.05): 0.25e-3}


def test_measured_figures_stand_beside_the_predicted(figures: dict[str, Any], monkeypatch: pytest.MonkeyPatch,
                                                     tmp_path: Path) -> None:  # fmt: skip
    monkeypatch.setattr(cuda_counts, "read", lambda: COUNTS)
    path = tmp_path / "h100.json"
    path.write_text(json.dumps(figures))
    said = predict_report.text(["h100", "h200"], ["resnet50"], [0.05], predict_report.read_measured(path))
    h100, h200 = said.split("\nH200:")
    assert "measured: NVIDIA H100 80GB HBM3" in h100 and "measured" not in h200
    (total,) = [line.split() for line in h100.splitlines() if line.startswith("resnet50 (54)") and "drop_grow " in line
                and "SGD" not in line]  # fmt: skip
    predicted = sum(k.best for k in kernels(COUNTS, GPUS["h100"], "drop_grow", SIZES, 0.05))
    assert total[-3:-1] == ["0.25", "ms"] and float(total[-1].rstrip("x")) == pytest.approx(0.25e-3 / predicted, rel=0.06)
    sweep = [line for line in h100.splitlines() if line.startswith("sweep")]
    assert [line.split()[-2:] for line in sweep] == [["3.0", "us"], ["8.0", "us"]]


def test_figures_that_do_not_fit_are_refused(figures: dict[str, Any], tmp_path: Path) -> None:
    measured = predict_report.Measured("NVIDIA H200", {}, {})
    with pytest.raises(UsageError, match="those of NVIDIA H200: name it by --gpu"):
        predict_report.text(["h100"], ["resnet50"], [0.05], measured)
    path = tmp_path / "cpu.json"
    for wrong, text in ((json.dumps(document({})), "found no figures of a GPU"), ("{", "cannot be read")):
        path.write_text(wrong)
        with pytest.raises(UsageError, match=text):
            predict_report.read_measured(path)
