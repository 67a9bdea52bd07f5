"""Every way to run the ops on this machine: backends, instruction sets, thread counts, forced detours."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from dstee import backends
from dstee.backends import native

__all__ = ["Configuration", "configurations", "native_isas"]


# Bounds that miss, or lists without room: either way every layer takes the exact fallback.
_LIMITS: dict[str, dict[str, float]] = {"none": {}, "miss": {"tight_bounds": True}, "overflow": {"list_share": 0.0}}


@dataclass(frozen=True)
class Configuration:
    """One way to run the ops: a backend and, for the native one, its instruction set, threads and forced detours.

    fallback: "none", or why the fast path fails: "miss" or "overflow".
    """

    backend: str
    isa: str = "auto"
    threads: int = 2
    fallback: str = "none"

    def __str__(self) -> str:
        if self.backend != "native":
            return self.backend
        return f"native-{self.isa}-t{self.threads}" + ("" if self.fallback == "none" else f"-{self.fallback}")

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Forces this configuration inside the block and restores what was before."""
        threads, module = torch.get_num_threads(), native.load()[0]
        with backends.use_backend(self.backend):
            try:
                torch.set_num_threads(self.threads)
                if self.backend == "native" and module is not None:
                    module.force_isa(self.isa)
                    module.set_test_limits(**_LIMITS[self.fallback])
                yield
            finally:
                torch.set_num_threads(threads)
                if self.backend == "native" and module is not None:
                    module.force_isa("auto")
                    module.set_test_limits()


def native_isas() -> list[str]:
    """Instruction sets that the compiled module can use on this machine; empty when it does not load."""
    module, _ = native.load()
    found: list[str] = []
    if module is None:
        return found
    for isa in ("avx512", "avx2", "scalar"):
        with contextlib.suppress(ValueError):
            module.force_isa(isa)
            found.append(isa)
    module.force_isa("auto")
    return found


def configurations(thorough: bool = False) -> list[Configuration]:
    """The reference and each instruction set; ``thorough``: instead, every other thread count and every forced detour."""
    isas = native_isas()
    if not thorough:
        return [Configuration("reference", threads=1), *(Configuration("native", isa) for isa in isas)]
    threads = [Configuration("native", isa, threads=n) for isa in isas for n in (1, 3, 5)]
    detours = [Configuration("native", isa, fallback=mode) for isa in isas for mode in ("miss", "overflow")]
    return threads + detours
