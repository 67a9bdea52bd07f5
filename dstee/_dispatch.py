"""Who else takes part in a call: dispatch modes, tracers and compilers, function transforms, tensors that wrap others.

The public ops go straight to a backend's kernel, past PyTorch's dispatcher. That is right for tensors with memory of their own
and nobody listening; here it is found out when it is not.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

PLAIN = frozenset({Tensor, torch.nn.Parameter})
"""Types that are known to have memory of their own; looked up for each tensor of each call."""


def is_traced() -> bool:
    """True where a compiler, a tracer or a dispatch mode wants to see the op: the call goes through the dispatcher, and values
    of tensors, which may not be there, are not looked at."""
    return (
        torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0 or torch._C._get_tracing_state() is not None
    )


def is_wrapper(t: Tensor) -> bool:
    """True for tensors whose values are another tensor's, or nobody's: DTensor, FakeTensor, functional tensors, any subclass
    with ``__torch_dispatch__``."""
    if type(t) not in PLAIN and type(t).__torch_dispatch__ is not Tensor.__torch_dispatch__:
        return True
    return torch._is_functional_tensor(t)


def refuse_wrapper(where: str, t: Tensor) -> None:
    """Raises TypeError for a tensor that has no memory of its own, unless somebody traces the call."""
    if not is_traced() and is_wrapper(t):
        kind = "functional tensor" if type(t) in PLAIN else type(t).__name__
        raise TypeError(f"{where} is a {kind}, which has no memory of its own here: pass the plain tensor that it stands for")


def refuse_no_memory(where: str, t: Tensor) -> None:
    """As :func:`refuse_wrapper`; raises ValueError for a tensor whose storage was freed, which torch itself would read."""
    if is_traced():
        return
    refuse_wrapper(where, t)
    if t.layout is torch.strided and t.numel() and t.data_ptr() == 0 and not t.is_meta:
        raise ValueError(f"{where} has no memory, its storage was freed: pass the tensor while it is whole")


def refuse_script_trace(name: str, mutates: bool) -> None:
    """Raises RuntimeError where ``torch.jit.trace`` records an op that writes: TorchScript drops it, as nothing is returned."""
    if mutates and torch._C._get_tracing_state() is not None:
        raise RuntimeError(
            f"torch.jit.trace cannot record dstee.ops.{name}, which writes to lists of tensors: "
            "use torch.compile or torch.export"
        )


def refuse_transforms(name: str, args: Iterable[object]) -> None:
    """Raises RuntimeError inside ``torch.func`` transforms of the arguments: there is no rule for them."""
    if torch._C._functorch.peek_interpreter_stack() is None:
        return
    for arg in args:
        for t in arg if isinstance(arg, list) else [arg]:
            if isinstance(t, Tensor) and torch._C._functorch.is_functorch_wrapped_tensor(t):
                raise RuntimeError(
                    f"dstee.ops.{name} has no rule for torch.func's vmap, grad, jvp and the like: call it outside of them"
                )
