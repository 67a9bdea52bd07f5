"""Other sparse training libraries' interfaces on the kernels of this one: change one import, or :func:`patch` a live object."""

from typing import TYPE_CHECKING, Any

from dstee import _lazy
from dstee.compat.patching import patch, unpatch

__all__ = ["patch", "unpatch"]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        return _lazy.submodule(__name__, name, ("checkpoints", "rigl_torch", "sparselearning", "sparsimony", "torch_ao"))
