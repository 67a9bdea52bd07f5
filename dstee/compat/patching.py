"""``patch``: a live object of an original library computes on our kernels, without even a changed import."""

from __future__ import annotations

from types import MethodType
from typing import TypeVar

from dstee.compat.libraries import patches

__all__ = ["patch", "unpatch"]

_MARK = "_dstee_patched"
T = TypeVar("T")


def patch(obj: T) -> T:
    """Gives a live ``rigl_torch`` scheduler or ``sparselearning`` (ITOP, GraNet, SNFS) ``Masking`` our update, in place.

    Methods are replaced on this one object; its masks, weights, optimizer and counters stay its own tensors, so its
    checkpoints do not change, and :func:`unpatch` puts its own methods back at any time. Numbers of active weights are exact
    from then on, and ties go to the lowest index (``exact="fixed"`` of the classes here).

    Returns:
        ``obj`` itself.

    Raises:
        TypeError: it is none of these, or one of ours, which computes on our kernels already.
        ValueError: it is patched already, has no masks yet, or is set to a mode that is not supported (named).
    """
    if type(obj).__module__.startswith("dstee."):
        raise TypeError(f"{type(obj).__name__} is dstee's own and computes on its kernels already")
    if getattr(obj, _MARK, None):
        raise ValueError(f"this {type(obj).__name__} is patched already")
    library = next((entry for entry in patches() if entry.recognizes(obj)), None)
    if library is None:
        raise TypeError(
            f"cannot patch a {type(obj).__name__}: expected {' or '.join(entry.expected for entry in patches())}; "
            "for sparsimony use dstee.compat.sparsimony.accelerate"
        )
    methods = library.methods(obj)
    for name, function in methods.items():
        setattr(obj, name, MethodType(function, obj))
    setattr(obj, _MARK, tuple(methods))
    return obj


def unpatch(obj: T) -> T:
    """Undoes :func:`patch`; the state stays. Returns ``obj``.

    Raises:
        ValueError: it is not patched.
    """
    names = getattr(obj, _MARK, None)
    if not names:
        raise ValueError(f"this {type(obj).__name__} is not patched")
    for name in (*names, _MARK):
        delattr(obj, name)
    return obj
