"""What Nsight Compute counted, from its CSV output: one entry a launch."""

from __future__ import annotations

import csv
import re
from typing import TypedDict

__all__ = ["METRICS", "SECTIONS", "Launch", "parse"]

SECTIONS = ("SpeedOfLight", "ComputeWorkloadAnalysis", "MemoryWorkloadAnalysis", "SchedulerStats", "WarpStateStats",
            "InstructionStats", "Occupancy", "LaunchStats")  # fmt: skip
METRICS = ("smsp__inst_executed.sum", "dram__bytes_read.sum", "dram__bytes_write.sum", "gpu__time_duration.sum")

NAME = re.compile(r"(\w+)(<[^()]*>)?(\(|$)")  # with or without template and other arguments


class Launch(TypedDict):
    """``metrics``: by the tool's own names, in base units (ns, bytes, %)."""

    kernel: str
    grid: str
    block: str
    metrics: dict[str, float]


def parse(text: str) -> list[Launch]:
    """The launches in the tool's output, in order; the program's own lines are left out.

    Raises:
        ValueError: there is no table in it.
    """
    lines = text.splitlines()
    head = next((i for i, line in enumerate(lines) if line.startswith('"ID",')), None)
    if head is None:
        raise ValueError('no line starts with "ID": the profiler printed no table')
    rows = csv.DictReader(line for line in lines[head:] if re.match(r'"(ID|\d+)",', line))
    found: dict[str, Launch] = {}
    for row in rows:
        name = NAME.search(row["Kernel Name"])
        kernel = name[1] if name else row["Kernel Name"]
        launch = found.setdefault(row["ID"], Launch(kernel=kernel, grid=row["Grid Size"], block=row["Block Size"], metrics={}))
        value = (row["Metric Value"] or "").replace(",", "")
        if row["Metric Name"] and re.fullmatch(r"-?\d+(\.\d+)?([eE][-+]?\d+)?", value):
            launch["metrics"][row["Metric Name"]] = float(value)
    return list(found.values())
