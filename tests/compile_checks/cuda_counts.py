"""What the CUDA kernels execute and move for a weight, held against ``bench/cuda_counts.json``: a step of ``make cuda-check``.

Executes their PTX (tests/cuda_ptx) on one layer at three densities and compares the result with the reference's bits. Fails
when warp instructions, sectors, turns of shared memory or launches of a kernel, or of a whole call, are more than 3 % above the
committed ones. ``--write`` commits to what is counted now. The figures have no noise: the same kernels give the same ones.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from compile_checks import cuda_check
from cuda_host import build
from cuda_ptx import backend as ptx
from cuda_ptx import compile as ptx_compile

from bench import commit, cuda_counts
from bench.cuda_counts import Count
from bench.table import aligned
from dstee import backends, ops
from dstee.testing import assert_same_bits

N = 1 << 20
DENSITIES = (0.02, 0.05, 0.1)
SWAP = 0.3
ROUND = 5
MARGIN = 0.03
PROCESSORS = 8  # for 2^20 weights: as many for each as on a whole GPU with 17 million
STAGES = ("masked_sgd", "sample", "sweep", "select_drop", "commit", "select_grow")  # in the order of a call
RULE: dict[str, Any] = {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}
CONDITIONS = ("arch", "dtype", "swap", "weights", "layers", "processors")  # without which figures cannot be compared
FIGURES: dict[str, Callable[[Count], float]] = {
    "warp instructions": lambda c: c.instructions,
    "sectors": lambda c: c.sectors,
    "turns of shared memory": lambda c: c.wavefronts,
    "launches": lambda c: c.launches,
}
ALL = "all launches"
REMEDY = "python tests/compile_checks/cuda_counts.py --write, and commit bench/cuda_counts.json"


# --- counting ------------------------------------------------------------------------------------------------------------


@dataclass
class Layer:
    """Scattered weights, with counters as after five rounds."""

    weight: torch.Tensor
    grad: torch.Tensor
    momentum: torch.Tensor
    bits: torch.Tensor
    counts: torch.Tensor
    k: int

    @classmethod
    def make(cls, density: float) -> Layer:
        g = torch.Generator().manual_seed(0)
        mask = torch.rand(N, generator=g) < density
        rounds = torch.randint(0, ROUND + 1, (N,), generator=g, dtype=torch.int32)
        rounds[~mask & (torch.rand(N, generator=g) < 0.8)] = 0
        rounds += mask
        weight, grad, momentum = (torch.randn(N, generator=g) for _ in range(3))
        return cls(weight * mask * 0.05, grad * 1e-3, momentum * mask * 1e-3, ops.pack_mask(mask),
                   ops.encode_counts(rounds, mask, ROUND), int(SWAP * int(mask.sum())))  # fmt: skip

    def run(self, op: str) -> list[torch.Tensor]:
        """What the op makes of copies."""
        w, m, bits, counts = written = [t.clone() for t in (self.weight, self.momentum, self.bits, self.counts)]
        if op == "masked_sgd":
            ops.masked_sgd_([w], [self.grad], [m], [bits], **RULE)
        else:
            step = op == "drop_grow with SGD"
            ops.drop_grow_(
                [w], [self.grad], [m] if step else None, [bits], [counts], [self.k],
                bonus=ops.bonus_table(1e-4, 1.0, 1000, ROUND), round=ROUND, sgd=ops.SGDRule(**RULE) if step else None,
            )  # fmt: skip
        return written


def count() -> dict[str, Any]:
    """As ``bench/cuda_counts.json`` has it.

    Raises:
        AssertionError: a kernel's result is not the reference's.
    """
    entries = [
        entry
        for density in DENSITIES
        for layer in [Layer.make(density)]
        for op in ("masked_sgd", "drop_grow", "drop_grow with SGD")
        for entry in _count(layer, op, density)
    ]
    changed = " with changes" if commit.is_dirty("csrc") else ""
    return {
        "how": "executed with the lanes of a warp in step; every result equal to the reference's",
        "nvcc": nvcc_release(), "arch": ptx_compile.ARCH, "commit": commit.commit()[:10] + changed,
        "dtype": "float32", "swap": SWAP, "weights": N, "layers": 1, "processors": PROCESSORS, "entries": entries,
    }  # fmt: skip


def _count(layer: Layer, op: str, density: float) -> list[dict[str, Any]]:
    with backends.use_backend("reference"):
        expected = layer.run(op)
    configuration = ptx.PtxConfiguration(seed=1, processors=PROCESSORS, lockstep=True, weak=False, races=False)
    with configuration.active():
        actual = layer.run(op)
        counted = build.load(build.PTX).ptx_counts()
    assert_same_bits(actual, expected, f"{op} at {density:g}")
    return entries_of(counted, op, density)


def entries_of(counted: dict[str, dict[str, Any]], op: str, density: float) -> list[dict[str, Any]]:
    """What the executor counted for one call, by stage: instances of one template are one."""
    found: dict[str, dict[str, Any]] = {}
    for name, c in counted.items():
        stage = re.sub(r"_kernel(<.*)?$", "", name)
        e = found.setdefault(stage, {"launches": 0, "warp_instructions": 0, "sectors": {}, "bytes": {}, "wavefronts": 0})
        for key in ("launches", "warp_instructions", "wavefronts"):
            e[key] += c[key]
        for key in ("sectors", "bytes"):
            e[key] = {kind: e[key].get(kind, 0) + c[key][kind] for kind in c[key]}
    places = {name: i for i, name in enumerate(STAGES)}
    return [
        {
            "op": op, "density": density, "kernel": stage, "launches": e["launches"],
            "warp_instructions": round(e["warp_instructions"] / N, 6),
            **{key: {kind: round(value / N, 6) for kind, value in e[key].items()} for key in ("sectors", "bytes")},
            "wavefronts": round(e["wavefronts"] / N, 6),
        }
        for stage, e in sorted(found.items(), key=lambda item: (places.get(item[0], len(STAGES)), item[0]))
    ]  # fmt: skip


def nvcc_release() -> str:
    said = subprocess.run([str(cuda_check.find_nvcc()), "--version"], capture_output=True, text=True, check=True).stdout
    return re.findall(r"release (\S+),", said)[0]


# --- comparison ----------------------------------------------------------------------------------------------------------


def compare(committed: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """Complaints. Both as ``count`` returns them."""
    other = [f"{key} {committed.get(key)}, now {found[key]}" for key in CONDITIONS if committed.get(key) != found[key]]
    if other:
        return [f"bench/cuda_counts.json was counted with {'; '.join(other)}: {REMEDY}"]
    old, new = ({(c.op, c.density, c.kernel): c for c in cuda_counts.parse(data).entries} for data in (committed, found))
    complaints = [f"{_call(key)}: {key[2]} is not launched any more: {REMEDY}" for key in old if key not in new]
    complaints += [f"{_call(key)}: {key[2]} is not in bench/cuda_counts.json: {REMEDY}" for key in new if key not in old]
    return complaints + [
        f"{_call(key)}: {figure} of {key[2]} rose from {was:g} to {now:g}{_percent(was, now)}"
        for key, figure, was, now in _pairs(committed, found)
        if now > was * (1 + MARGIN)
    ]


def fallen(committed: dict[str, Any], found: dict[str, Any]) -> int:
    """How many figures have fallen by more than the margin."""
    return sum(now < was * (1 - MARGIN) for _, _, was, now in _pairs(committed, found))


def _pairs(committed: dict[str, Any], found: dict[str, Any]) -> Iterator[tuple[tuple[str, float, str], str, float, float]]:
    """Every figure of the kernels that are in both, and of all of a call, old and new."""
    for figure in FIGURES:
        old, new = (_figures(data, figure) for data in (committed, found))
        yield from ((key, figure, old[key], new[key]) for key in old if key in new)


def _figures(data: dict[str, Any], figure: str) -> dict[tuple[str, float, str], float]:
    """By call and kernel; at the end those of all of a call."""
    kernels = {(c.op, c.density, c.kernel): FIGURES[figure](c) for c in cuda_counts.parse(data).entries}
    totals: dict[tuple[str, float, str], float] = {}
    for (op, density, _), value in kernels.items():
        totals[op, density, ALL] = totals.get((op, density, ALL), 0.0) + value
    return kernels | totals


def _call(key: tuple[str, float, str]) -> str:
    return f"{key[0]} at density {key[1]:g}"


def _percent(was: float, now: float) -> str:
    return f" (+{now / was - 1:.1%})" if was else ""


# --- what is printed and written -------------------------------------------------------------------------------------------


def table(found: dict[str, Any]) -> str:
    """Warp instructions a weight."""
    values = _figures(found, "warp instructions")
    densities = sorted({density for _, density, _ in values})
    calls = list(dict.fromkeys(op for op, _, _ in values))
    rows = sorted(dict.fromkeys((op, kernel) for op, _, kernel in values), key=lambda row: calls.index(row[0]))
    lines = [
        (f"{op}: {kernel}", *(f"{values[op, d, kernel]:.4f}" if (op, d, kernel) in values else "" for d in densities))
        for op, kernel in rows
    ]
    return "\n".join(aligned(("warp instructions a weight, by density", *(f"{d:.0%}" for d in densities)), lines))


def text(data: dict[str, Any]) -> str:
    """A line an entry, so that a difference shows what changed."""
    head = "".join(f" {json.dumps(key)}: {json.dumps(value)},\n" for key, value in data.items() if key != "entries")
    return "{\n" + head + ' "entries": [\n' + ",\n".join(f"  {json.dumps(e)}" for e in data["entries"]) + "\n ]\n}\n"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write bench/cuda_counts.json instead of comparing with it")
    options = parser.parse_args(arguments)
    reason = ptx.why_not()
    if reason:
        print(f"cuda-counts: skipped, {reason}: warp instructions were not counted")
        return 1 if options.write else 0
    try:
        found = count()
    except AssertionError as error:
        print(f"cuda-counts: FAILED, not the reference's bits: {error}")
        return 1
    print(table(found))
    if options.write:
        cuda_counts.FILE.write_text(text(found))
        print(f"cuda-counts: wrote {cuda_counts.FILE}")
        return 0
    committed = json.loads(cuda_counts.FILE.read_text())
    if committed.get("nvcc") != found["nvcc"]:
        print(f"cuda-counts: not compared, nvcc is {found['nvcc']} here and {committed.get('nvcc')} in bench/cuda_counts.json")
        return 0
    complaints = compare(committed, found)
    for complaint in complaints:
        print(f"cuda-counts: {complaint}")
    falls = fallen(committed, found)
    verdict = f"FAILED; where that is wanted, {REMEDY}" if complaints else f"nothing rose by more than {MARGIN:.0%}"
    print(f"cuda-counts: {len(found['entries'])} kernels, the reference's bits, {verdict}")
    if falls and not complaints:
        print(f"cuda-counts: {falls} figures fell; to hold them there, {REMEDY}")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
