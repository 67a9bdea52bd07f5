"""``patch`` for rigl-torch's own scheduler."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from dstee.compat.libraries import Patch
from dstee.compat.rigl_torch.update import Scheduler, rigl_update

__all__ = ["ENTRY"]


class _Original(Scheduler, Protocol):
    def cosine_annealing(self) -> float: ...


def _recognizes(obj: object) -> bool:
    return all(hasattr(obj, name) for name in ("_rigl_step", "backward_masks", "backward_hook_objects", "W", "S"))


def _methods(scheduler: _Original) -> Mapping[str, Callable[..., None]]:
    if not any(mask is not None for mask in scheduler.backward_masks or ()):
        raise ValueError("the scheduler has no sparse layer")

    def _rigl_step(self: _Original) -> None:
        rigl_update(self, float(self.cosine_annealing()))

    return {"_rigl_step": _rigl_step}


ENTRY = Patch("a rigl_torch RigLScheduler", _recognizes, _methods)
