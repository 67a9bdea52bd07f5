"""Small rows of the benchmark: a task for a worker, and results as they stand in a result file."""

from __future__ import annotations

from typing import Any

import numpy as np

from bench import results_file


def task(op: str, contenders: list[str], **extra: Any) -> dict[str, Any]:
    """A small row; the buffers that empty the cache and measure the bandwidth are small too."""
    return {
        "key": {"op": op, "case": "tiny", "density": 0.2, "dtype": "float32", "threads": 1, "device": "cpu"},
        "op": op, "shapes": [[30, 20], [7, 3]], "density": 0.2, "dtype": "float32", "swap": 0.3, "device": "cpu",
        "threads": 1, "contenders": contenders, "skipped": {}, "flush_bytes": 1 << 16, "roof_bytes": 1 << 22,
        "plugins": ["support.bench_plugin"], "plan": {"repeats": 6, "budget": 5.0, "least": 3}, **extra,
    }  # fmt: skip


def samples(median: float, n: int = 31, noise: float = 0.01, seed: int = 0) -> list[float]:
    return [float(x) for x in median * np.exp(noise * np.random.default_rng(seed).standard_normal(n))]


def result(samples: list[float], **more: Any) -> dict[str, Any]:
    """Of a contender that was right."""
    middle = float(np.median(samples))
    return {
        "status": "ok", "ours": True, "rule": "a rule", "step": "", "samples_ms": samples, "median_ms": middle,
        "p20_ms": middle, "p80_ms": middle * 1.1, "repeats": len(samples), "noisy": False, "digest": "00",
        "digests_equal": True, "gb_s": 1.0,
        "share_of_roof": 0.5, "first_call_ms": 2.0, "peak_extra_bytes": 10**6, **more,
    }  # fmt: skip


def document(contenders: dict[str, Any], copy_gb_s: float = 20.0, **key: Any) -> dict[str, Any]:
    """A result file with one row."""
    row = {
        "key": {"op": "drop_grow", "case": "tiny", "density": 0.1, "threads": 2, **key}, "n": 1000, "layers": 1, "bytes": 9000,
        "roof_ms": 0.5, "roof": {"copy_gb_s": copy_gb_s, "read_gb_s": 20.0, "samples_ms": {}}, "contenders": contenders,
    }  # fmt: skip
    return results_file.new({"commit": "c", "dirty": False, "cpu": "x", "torch": "2"}, {"every": 100}) | {"rows": [row]}
