"""Which code runs an op (``registry``), and how each way to run it is reached (``native``, ``triton``)."""

from dstee.backends.registry import BACKENDS as BACKENDS
from dstee.backends.registry import Backend as Backend
from dstee.backends.registry import forced as forced
from dstee.backends.registry import resolve as resolve
from dstee.backends.registry import use_backend as use_backend
from dstee.backends.timing import KernelTime as KernelTime
from dstee.backends.timing import kernel_time as kernel_time

__all__ = ["BACKENDS", "Backend", "KernelTime", "forced", "kernel_time", "resolve", "use_backend"]
