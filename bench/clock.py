"""One call and its seconds: a cold cache before it, nothing else inside the window."""

from __future__ import annotations

import ctypes
import gc
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch

__all__ = ["Clock", "CpuClock", "CudaClock", "make_clock", "peak_memory", "reset_peak", "resident_memory", "trim_memory"]

BUSY = 3_000_000  # GPU clock cycles, 1.5 to 2 ms: launches queue up behind them


def last_level_cache() -> int:
    """Bytes of the largest cache of CPU 0, 32 MiB where the system does not say."""
    sizes = []
    for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = file.read_text().strip()
        factor = {"K": 1 << 10, "M": 1 << 20}.get(text[-1:], 1)
        sizes.append(int(text.rstrip("KM")) * factor)
    return max(sizes, default=32 << 20)


class CpuClock:
    """Wall time. The cache is emptied by writing a buffer larger than it (512 MiB at most)."""

    def __init__(self, flush_bytes: int | None = None) -> None:
        size = min(512 << 20, max(32 << 20, int(1.1 * last_level_cache()))) if flush_bytes is None else flush_bytes
        self._buffer = torch.zeros(max(1, size // 8), dtype=torch.int64)
        self.flushed = 8 * self._buffer.numel()

    def seconds(self, call: Callable[[], object]) -> float:
        self._buffer.add_(1)
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    def extra_memory(self, call: Callable[[], object]) -> tuple[int | None, float]:
        """Peak of resident memory during ``call`` over that before it, and its seconds.

        Free memory is given back to the system first, so that what the call takes shows; pages are the unit.
        """
        gc.collect()
        trim_memory()
        base = resident_memory() if reset_peak() else None
        start = time.perf_counter()
        call()
        took = time.perf_counter() - start
        peak = peak_memory()
        return (None if base is None or peak is None else max(0, peak - base)), took


class CudaClock:
    """CUDA events around the call, the L2 cache emptied before it; the GPU is busy while the launches queue up."""

    def __init__(self, flush_bytes: int | None = None) -> None:
        size = flush_bytes or max(4 * torch.cuda.get_device_properties(0).L2_cache_size, 256 << 20)
        self._buffer = torch.empty(size, dtype=torch.uint8, device="cuda")
        self.flushed = size
        self.processors = torch.cuda.get_device_properties(0).multi_processor_count

    def seconds(self, call: Callable[[], object]) -> float:
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        self._buffer.fill_(0)
        torch.cuda._sleep(BUSY)
        start.record()
        call()
        stop.record()
        torch.cuda.synchronize()
        return start.elapsed_time(stop) * 1e-3

    def extra_memory(self, call: Callable[[], object]) -> tuple[int | None, float]:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        base = torch.cuda.memory_allocated()
        start = time.perf_counter()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - base, time.perf_counter() - start

    def graphed(self, call: Callable[[], object]) -> Callable[[], object]:
        """``call`` as one replay of a CUDA graph.

        Raises:
            RuntimeError: the call synchronises or does something else that cannot be captured.
        """
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        return graph.replay


Clock = CpuClock | CudaClock


def make_clock(device: str, flush_bytes: int | None = None) -> Clock:
    return CudaClock(flush_bytes) if device == "cuda" else CpuClock(flush_bytes)


# --- resident memory of this process -------------------------------------------------------------------------------------


def trim_memory() -> None:
    """Gives freed memory back to the system, where the C library can."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError):
        return


def reset_peak() -> bool:
    """Sets the high-water mark of resident memory to what is resident; False where the system has none."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return peak_memory() is not None


def resident_memory() -> int | None:
    """Bytes of this process that are in memory, where the system says."""
    return _status("VmRSS")


def peak_memory() -> int | None:
    """The most that they were since :func:`reset_peak`."""
    return _status("VmHWM")


def _status(field: str) -> int | None:
    status = Path(f"/proc/{os.getpid()}/status")
    if not status.exists():
        return None
    for line in status.read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) << 10
    return None
