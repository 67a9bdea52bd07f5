"""The compiled kernels: loads ``dstee._C`` once, remembers why it could not be loaded, and calls its kernels."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch

from dstee.backends import version_counters

__all__ = ["NO_KERNEL", "NO_OPTION", "OLDEST_TORCH", "build_info", "function", "load", "why_not", "why_not_option"]

OLDEST_TORCH = (2, 11)
_KEYS = {
    "cpu": torch._C.DispatchKeySet(torch._C.DispatchKey.CPU),
    "cuda": torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA),
}


NO_KERNEL: dict[str, frozenset[str]] = {
    "cpu": frozenset(),
    "cuda": frozenset(),
}
"""Ops that csrc/cpu and csrc/cuda have not got: the dispatcher would run the reference in their name."""
NO_OPTION: dict[str, dict[str, frozenset[str]]] = {
    "cpu": {},
    "cuda": {"masked_sgd_": frozenset({"packed_momenta"}), "drop_grow_": frozenset({"packed_momenta"})},
}
"""Arguments of an op that its kernels there have not got. They refuse them when called directly, too."""


@functools.cache
def load() -> tuple[ModuleType | None, str]:
    """(module, "") or (None, reason). The torch version is looked at before the library is opened."""
    if importlib.util.find_spec("dstee._C") is None:
        return None, f"dstee._C is not built: {_how_to_build()}"
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if version < OLDEST_TORCH:
        return None, f"torch {torch.__version__} found, dstee._C needs torch >= 2.11: upgrade torch"
    try:
        module = importlib.import_module("dstee._C")
    except ImportError as error:
        return None, f"dstee._C could not be loaded ({error}), rebuild it: {_how_to_build()}"
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=_forks.note_threads, after_in_child=_forks.watch)
    return module, ""


def _how_to_build() -> str:
    """For who has a checkout, and for who has installed a package that came without the kernels."""
    root = Path(__file__).resolve().parents[2]
    wish = "unset DSTEE_BUILD, which says none; " if os.environ.get("DSTEE_BUILD") == "none" else ""
    tools = 'with g++ or clang, and after `pip install ninja pybind11 "setuptools>=77"`,'
    if (root / "setup.py").is_file() and (root / "csrc").is_dir():
        return f"{wish}{tools} run `pip install --no-build-isolation -e .` in {root}"
    return (
        f"{wish}{tools} run `pip install --no-build-isolation --no-deps --force-reinstall --no-binary=dstee dstee`, or with "
        "the folder of its source as the last word. Until then the reference does all of it, with the same bits, slowly"
    )


class _Forks:
    """Whether this process was forked from one whose kernels ran on several threads.

    A fork copies none of the threads of OpenMP. With GNU's runtime, which torch's wheels for Linux bring, a parallel region of
    the child waits for them for ever, in torch's own operations too. A child with one thread, such as a DataLoader's worker,
    has no such regions. Not seen are threads that kernels used between their first call and the fork, if there was one thread
    at both.
    """

    def __init__(self) -> None:
        self.unsure = True  # what a call looks at: whether it is to ask before it runs
        self._child = self._used = self._threads = False

    def ask(self) -> None:
        """Raises RuntimeError where a call of a CPU kernel would wait for ever."""
        self._used = True
        if not self._child:
            self.note_threads()
            self.unsure = False
        elif torch.get_num_threads() > 1 and _has_gnu_openmp():
            raise RuntimeError(
                "this process was forked from one that had used CPU kernels with several threads, which the fork did not copy: "
                "with more than one thread it would wait for them for ever. Start it with spawn or forkserver "
                "(multiprocessing.get_context), or call torch.set_num_threads(1) in it first"
            )

    def note_threads(self) -> None:
        self._threads |= self._used and torch.get_num_threads() > 1

    def watch(self) -> None:
        self._child = self.unsure = self._threads


_forks = _Forks()


@functools.cache
def _has_gnu_openmp() -> bool:
    """Whether its runtime is loaded; others start their threads anew in a child."""
    try:
        return "libgomp" in Path("/proc/self/maps").read_text(errors="replace")
    except OSError:
        return False


def build_info() -> dict:
    """What the compiled module says of itself (compiler, flags, CUDA, CPU features), or ``{"error": reason}``."""
    module, reason = load()
    return module.build_info() if module else {"error": reason}


def why_not(op: str, device: torch.device) -> str | None:
    module, reason = load()
    if module is None:
        return reason
    if device.type not in NO_KERNEL:
        return f"dstee._C has no kernels for {device.type} devices"
    if op in NO_KERNEL[device.type]:
        return f"dstee._C has no kernel of {op} for {device.type} devices"
    if device.type == "cpu":
        return None
    info = module.build_info()
    if info["cuda"]:
        return None
    why = info.get("why_no_cuda") or "unknown reason"
    return (
        f"dstee._C was built without CUDA kernels ({why}): build it again with DSTEE_BUILD=cuda and a CUDA toolkit, or let "
        'Triton\'s kernels do it, pip install "dstee[triton]"'
    )


def why_not_option(op: str, device: torch.device, option: str) -> str | None:
    if option in NO_OPTION.get(device.type, {}).get(op, ()):
        return f"the kernel of {op} for {device.type} devices in dstee._C has no {option}"
    return None


@functools.cache
def function(op: str, device_type: str | None = None) -> Callable:
    """The compiled kernel of ``op`` for ``device_type`` ("cpu" or "cuda"), by default that of its first tensor argument."""
    kernel = getattr(torch.ops.dstee, op).default
    written = version_counters.written(op)

    def call(*args):
        # Straight to the kernels of one device, which refuse what is not theirs. The dispatcher would let one meta or sparse
        # tensor among the arguments choose: a meta kernel does nothing, without a word.
        first = args[0][0] if isinstance(args[0], list) else args[0]
        device = device_type or first.device.type
        if device == "cpu" and _forks.unsure:
            _forks.ask()
        result = kernel.redispatch(_KEYS[device], *args)
        if written:  # else autograd could use a saved weight that has changed since, without a word
            version_counters.bump([t for i in written for t in args[i]])
        return result

    return call
