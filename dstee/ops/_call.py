"""How an op is declared, and how a public function calls it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

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


def call(name: str, device: torch.device, check: Callable[[], None], *args: Any) -> Any:
    """Runs op ``name`` on the backend in force. ``check`` raises the clear error for bad arguments.

    A native kernel looks at its arguments itself before it writes (54 layers: microseconds, in Python ten times that) and
    only says that something is wrong; then ``check`` says what. Compilers, tracers and dispatch modes see the op itself,
    and the dispatcher chooses the kernel then, by the device alone.
    """
    if _dispatch.is_traced():
        _dispatch.refuse_script_trace(name, mutates=name.endswith("_"))
        check()
        return getattr(torch.ops.dstee, name)(*args)
    _dispatch.refuse_transforms(name, args)
    backend = backends.resolve(name, device)
    if not backend.guards_itself:
        check()
    with torch.no_grad():
        try:
            return timed(backend.function(name))(*args)
        except RuntimeError:
            if backend.guards_itself:
                check()
            raise
