"""``bench compare A B``: is B slower than A?  Per contender a verdict from the stored samples.

The ratio of a sample of B to one of A has a distribution; its median over all pairs is the estimate (Hodges and Lehmann), and
order statistics of the pairs, at the ranks that the distribution of the Mann-Whitney statistic gives, are a confidence interval
that assumes nothing about the shape of the noise. With a margin m for what matters:

  slower, faster   the interval lies wholly beyond 1, and the estimate beyond 1 + m or 1/(1 + m)
  same             the whole interval lies within 1/(1 + m) .. 1 + m
  cannot tell      anything else: too few samples, too much noise, or a change of the machine (its copy bandwidth moved by about
                   as much, in the same direction)

dstee's own backends decide the exit status; what changed for others is told.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np

from dstee._console import UsageError, one_line

from . import results_file
from .results_file import Document, Result, Row

__all__ = ["Ratio", "Verdict", "compare", "deciding", "drift", "exit_status", "judge", "ratio", "run", "verdict"]

Z = 2.5758  # two-sided 99 %
SAME, FASTER, SLOWER, UNKNOWN = "same", "faster", "slower", "cannot tell"


@dataclass(frozen=True)
class Ratio:
    """B over A: estimate and 99 % interval; the interval is unbounded where the samples are too few."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True)
class Verdict:
    """On one contender of a row; whether it ``decides`` the exit status."""

    row: str
    contender: str
    decides: bool
    verdict: str
    ratio: Ratio | None
    why: str = ""


def ratio(a: Sequence[float], b: Sequence[float]) -> Ratio:
    """B over A from two lists of times.

    Raises:
        ValueError: a list is empty or holds a time that is not positive.
    """
    if not a or not b or min(a) <= 0 or min(b) <= 0:
        raise ValueError("times must be positive, and there must be some")
    pairs = np.sort(np.log(np.asarray(b, float))[:, None] - np.log(np.asarray(a, float))[None, :], axis=None)
    n, m = len(a), len(b)
    below = math.floor(n * m / 2 - Z * math.sqrt(n * m * (n + m + 1) / 12))
    estimate = float(np.exp(np.median(pairs)))
    if below < 1:  # not even the extremes bound it at this level
        return Ratio(estimate, 0.0, math.inf)
    return Ratio(estimate, float(np.exp(pairs[below - 1])), float(np.exp(pairs[n * m - below])))


def judge(r: Ratio, margin: float) -> str:
    if r.low > 1 and r.estimate > 1 + margin:
        return SLOWER
    if r.high < 1 and r.estimate < 1 / (1 + margin):
        return FASTER
    if r.low >= 1 / (1 + margin) and r.high <= 1 + margin:
        return SAME
    return UNKNOWN


def drift(a: Row, b: Row) -> float:
    """How much longer the copy of the roof took in B than in A: 1.0 is no change."""
    try:
        return float(a["roof"]["copy_gb_s"] / b["roof"]["copy_gb_s"])
    except (KeyError, TypeError, ZeroDivisionError):
        return 1.0


def verdict(a: Result, b: Result, machine: float, margin: float) -> tuple[str, Ratio | None, str]:
    """Verdict on one contender's two results; ``machine`` is the :func:`drift`."""
    for which, one in (("A", a), ("B", b)):
        if one["status"] != "ok":
            return UNKNOWN, None, f"{one['status']} in {which}"
    r = ratio(a["samples_ms"], b["samples_ms"])
    if a["samples_ms"] == b["samples_ms"]:
        return SAME, r, "the very same samples"
    found = judge(r, margin)
    if found in (SLOWER, FASTER) and abs(math.log(machine)) > math.log(1 + margin):
        explained = math.log(machine) / math.log(r.estimate)
        if explained > 0.5:
            return UNKNOWN, r, f"the machine's copy changed too, {machine:.2f} times as long"
    if found == UNKNOWN:
        return found, r, "too few samples" if math.isinf(r.high) else "the interval spans the margin"
    return found, r, ""


def deciding(a: Row, b: Row) -> set[str]:
    """Names of dstee's own backends; the reference, which is the specification and slow, where there is no other."""
    both = [*a.get("contenders", {}).items(), *b.get("contenders", {}).items()]
    ours = {name for name, one in both if one.get("ours")}
    return ours - {"reference"} or ours


def compare(a: Document, b: Document, margin: float = 0.05) -> list[Verdict]:
    """Every contender that A has measured, row by row; rows with other keys are left out. A deciding one that B has not
    measured cannot be told."""
    found = []
    for row in b["rows"]:
        for old in a["rows"]:
            if not results_file.same_key(old, row):
                continue
            machine, judges, title = drift(old, row), deciding(old, row), results_file.title(row)
            for name, other in old.get("contenders", {}).items():
                one = row.get("contenders", {}).get(name)
                if other["status"] == "skipped":
                    continue
                if one is not None and one["status"] != "skipped":
                    found.append(Verdict(title, name, name in judges, *verdict(other, one, machine, margin)))
                elif name in judges:
                    found.append(Verdict(title, name, True, UNKNOWN, None, "not measured in B"))
    return found


def exit_status(verdicts: Sequence[Verdict], everyone: bool = False) -> int:
    """0: all same or faster; 1: one is slower; 3: nothing slower, but one that cannot be told, or nothing to compare."""
    counted = [v.verdict for v in verdicts if v.decides or everyone]
    if SLOWER in counted:
        return 1
    return 3 if UNKNOWN in counted or not counted else 0


def differences(a: Document, b: Document) -> list[str]:
    """What else differs between the runs."""
    found = []
    for name in ("cpu", "gpu", "cores", "torch", "python", "dstee"):
        x, y = a["stamp"].get(name), b["stamp"].get(name)
        if x != y:
            found.append(f"{name}: {x} / {y}")
    for document, which in ((a, "A"), (b, "B")):
        if document["stamp"].get("dirty"):
            found.append(f"{which} was measured with changes that are in no commit")
    for one, other, which in ((a, b, "A"), (b, a, "B")):
        alone = sum(not any(results_file.same_key(row, twin) for twin in other["rows"]) for row in one["rows"])
        if alone:
            found.append(f"{alone} of {len(one['rows'])} rows of {which} are in that file alone")
    return found


def _line(v: Verdict) -> str:
    between = "" if v.ratio is None else f"{v.ratio.estimate:6.3f} times A ({v.ratio.low:.3f} to {v.ratio.high:.3f})"
    return f"  {one_line(v.contender):22} {v.verdict:12} {between}{'  ' + one_line(v.why) if v.why else ''}"


def _folded(others: Sequence[Verdict]) -> str:
    """Those that decide nothing in one line: the changes by name, the rest counted."""
    parts = []
    for what in (SLOWER, FASTER, SAME, UNKNOWN):
        found = [v for v in others if v.verdict == what]
        changed = ", ".join(f"{one_line(v.contender)} {v.ratio.estimate:.2f} times A" for v in found if v.ratio is not None)
        if found:
            parts.append(f"{len(found)} {what}{f' ({changed})' if what in (SLOWER, FASTER) else ''}")
    return f"  others, which decide nothing: {', '.join(parts)}"


def run(first: Path, second: Path, margin: float, everyone: bool, stream: TextIO) -> int:
    """Prints the verdicts; returns the exit status.

    Raises:
        UsageError: a file cannot be read, or holds what processes send, which is counted and not timed.
    """
    a, b = results_file.read(first), results_file.read(second)
    for path, document in ((first, a), (second, b)):
        if results_file.find(document, op="ranks"):
            raise UsageError(f"{path} is of bench ranks, which counts what processes send; compare is for times")
    verdicts = compare(a, b, margin)
    for difference in differences(a, b):
        print(f"note: {one_line(difference)}", file=stream)
    for title, group in itertools.groupby(verdicts, lambda v: v.row):
        print(f"\n{one_line(title)}", file=stream)
        found = list(group)
        folded = [] if everyone else [v for v in found if not v.decides]
        for v in found:
            if v not in folded:
                print(_line(v), file=stream)
        if folded:
            print(_folded(folded), file=stream)
    status = exit_status(verdicts, everyone)
    counted = "every contender" if everyone else "dstee's backends"
    words = {0: "same or faster", 1: "slower", 3: "cannot tell" if verdicts else "no row in common"}
    print(f"\n{words[status]} ({counted}; margin {margin:.0%})", file=stream)
    return status
