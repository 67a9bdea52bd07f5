"""How an op is declared, and how a public function calls it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from dstee import _dispatch, backends, reference
from dstee.backends import version_counters
from dstee.backends.timing import timed

_library = torch.library.Library("dstee", "DEF")


def declare(schema: str, fake: Callable[..., Any]) -> None:
    """One op: its schema, the reference as the kernel wherever no backend has its own, and its shapes for the compiler."""
    name = schema[: schema.index("(")]
    _library.define(schema)
    _library.impl(name, getattr(reference, name), "CompositeExplicitAutograd")
    torch.library.register_fake(f"dstee::{name}", fake, lib=_library)
    if "!" in schema:
        _library.impl(name, version_counters.bumping(name), "ADInplaceOrView", with_keyset=True)


def active_where_free(mask_bits: list[Tensor]) -> list[int] | None:
    """Active weights by layer where looking is free: on the CPU, unless somebody traces the call. None elsewhere."""
    if not mask_bits or mask_bits[0].device.type != "cpu" or _dispatch.is_traced():
        return None
    return reference.count_active(mask_bits).tolist()


def options_in_use(**options: object) -> tuple[str, ...]:
    """The names of those that are given."""
    return tuple(name for name, value in options.items() if value is not None)


def call(name: str, device: torch.device, check: Callable[[], None], *args: Any, options: Sequence[str] = ()) -> Any:
    """Runs op ``name`` on the backend in force. ``check`` raises the clear error for bad arguments. ``options``: the arguments
    in use that not every backend has.

    A native kernel looks at its arguments itself before it writes (54 layers: microseconds, in Python ten times that) and
    only says that something is wrong; then ``check`` says what. Compilers, tracers and dispatch modes see the op itself,
    and the dispatcher chooses the kernel then, by the device alone.
    """
    if _dispatch.is_traced():
        _dispatch.refuse_script_trace(name, mutates=name.endswith("_"))
        check()
        return getattr(torch.ops.dstee, name)(*args)
    _dispatch.refuse_transforms(name, args)
    backend = backends.resolve(name, device, options)
    if not backend.guards_itself:
        check()
    if torch.is_grad_enabled():
        with torch.no_grad():
            return _run(name, backend, check, args)
    return _run(name, backend, check, args)


def _run(name: str, backend: backends.Backend, check: Callable[[], None], args: Sequence[Any]) -> Any:
    try:
        return timed(backend.function(name))(*args)
    except RuntimeError:
        if backend.guards_itself:
            check()
        raise
