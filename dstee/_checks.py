"""Argument checks of the ops (``dstee.ops``): each names the argument and its list index and says what to do.

Nothing here touches the data except :func:`check_k` on CPU masks; all of it runs before anything is modified.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from dstee import _dispatch
from dstee.encoding import MAX_ROUNDS, mask_bytes, unpack_bits
from dstee.sgd_rule import SGDRule

PARAM_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def tensor_list(name: str, value, length: int | None = None, optional: bool = False) -> list[Tensor]:
    """``value`` as a list of tensors; None becomes [] where it is optional."""
    if value is None and optional:
        return []
    if isinstance(value, Tensor) or not isinstance(value, Sequence):
        raise TypeError(f"{name} must be a list of tensors, one per layer, got {type(value).__name__}")
    if torch.compiler.is_compiling() or not _dispatch.PLAIN.issuperset(map(type, value)):  # quicker than a loop
        for i, t in enumerate(value):
            if not isinstance(t, Tensor):
                hint = " (no gradient: call backward first, or leave the layer out)" if t is None else ""
                raise TypeError(f"{name}[{i}] must be a tensor, got {type(t).__name__}{hint}")
            _dispatch.refuse_wrapper(f"{name}[{i}]", t)
    if length is not None and len(value) != length:
        raise ValueError(f"{name} must have one tensor per layer: got {len(value)}, expected {length} as in params")
    return value if isinstance(value, list) else list(value)


def layout(t: Tensor) -> list[tuple[int, int]]:
    """(size, stride) of the dimensions that matter: strides of size-1 dimensions and of empty tensors are arbitrary."""
    if t.numel() == 0:
        return []
    return [(size, stride) for size, stride in zip(t.shape, t.stride(), strict=True) if size != 1]


def is_dense(t: Tensor) -> bool:
    """True when the elements of ``t`` fill one block of memory exactly once, in any dimension order."""
    if t.layout is not torch.strided:
        return False
    expected = 1
    for stride, size in sorted((stride, size) for size, stride in layout(t)):
        if stride != expected:
            return False
        expected *= size
    return True


def check_like_param(name: str, i: int, t: Tensor, p: Tensor, dtypes: tuple[torch.dtype, ...] | None = None) -> None:
    """``t`` has the shape, dtype, device and memory order of params[i]."""
    where = f"{name}[{i}]"
    if t.shape != p.shape:
        raise ValueError(f"{where} has shape {list(t.shape)}, expected {list(p.shape)} as params[{i}]")
    if t.dtype not in (dtypes or (p.dtype,)):
        raise TypeError(f"{where} has dtype {t.dtype}, expected {p.dtype} as params[{i}]: convert it first")
    if t.device != p.device:
        raise ValueError(f"{where} is on {t.device}, expected {p.device} as params[{i}]: move it first")
    if t.layout is not torch.strided or (t.numel() > 1 and layout(t) != layout(p)):
        got = t.stride() if t.layout is torch.strided else t.layout
        raise ValueError(
            f"{where} has strides {got}, expected {p.stride()} as params[{i}]: both must lie in memory in the same order"
        )


def check_flat(name: str, i: int, t: Tensor, dtype: torch.dtype, numel: int, device: torch.device, of: str = "params") -> None:
    _dispatch.refuse_no_memory(f"{name}[{i}]", t)
    if t.dtype != dtype:
        raise TypeError(f"{name}[{i}] has dtype {t.dtype}, expected {dtype}")
    if t.device != device:
        raise ValueError(f"{name}[{i}] is on {t.device}, expected {device} as {of}[{i}]: move it first")
    if t.dim() != 1 or t.numel() != numel:
        raise ValueError(f"{name}[{i}] has shape {list(t.shape)}, expected [{numel}] for {of}[{i}]")
    if not t.is_contiguous():
        raise ValueError(f"{name}[{i}] must be contiguous, got stride {t.stride()}: call .contiguous()")


def check_packed(name: str, i: int, t: Tensor, p: Tensor, mask_bits: Tensor) -> None:
    """``t`` has one entry for each active weight of params[i]; a GPU is not asked how many these are (a sync)."""
    n, counted = p.numel(), p.device.type == "cpu" and not _dispatch.is_traced()
    expected = int(unpack_bits(mask_bits, n).sum()) if counted else min(t.numel(), n)
    if t.dim() != 1 or t.numel() != expected:
        nnz = str(expected) if counted else f"at most {n}"
        raise ValueError(
            f"{name}[{i}] has shape {list(t.shape)}, expected [{nnz}], one entry for each active weight of params[{i}], "
            "as packed_momenta has them"
        )
    check_flat(name, i, t, p.dtype, t.numel(), p.device)


def check_layers(
    params: list[Tensor],
    mask_bits: list[Tensor],
    *,
    grads: list[Tensor],
    momenta: list[Tensor],
    counts: list[Tensor] = (),  # type: ignore[assignment]
    signals: dict[str, list[Tensor]] | None = None,
    of: str = "params",
    packed_momenta: bool = False,
) -> None:
    """Everything the kernels rely on; absent lists are empty. ``of``: what the op calls its ``params``."""
    traced = _dispatch.is_traced()
    for i, p in enumerate(params):
        if p.dtype not in PARAM_DTYPES:
            raise TypeError(f"{of}[{i}] has dtype {p.dtype}, expected float32, bfloat16 or float16")
        if p.device != params[0].device:
            raise ValueError(f"{of}[{i}] is on {p.device}, expected {params[0].device}: one call takes one device")
        if p.is_meta:
            raise TypeError(f"{of}[{i}] is a meta tensor, which has no memory: pass one with values")
        if not is_dense(p):
            raise ValueError(
                f"{of}[{i}] with shape {list(p.shape)} and strides {p.stride()} is not dense, non-overlapping storage: "
                "pass a whole tensor, not a strided or expanded view"
            )
        for name, tensors in (("grads", grads), ("momenta", [] if packed_momenta else momenta)):
            if tensors:
                check_like_param(name, i, tensors[i], p)
        for name, tensors in (signals or {}).items():
            if tensors:
                check_like_param(name, i, tensors[i], p, (p.dtype, torch.float32))
        check_flat("mask_bits", i, mask_bits[i], torch.uint8, mask_bytes(p.numel()), p.device, of)
        if p.device.type == "cpu" and p.numel() % 8 and not traced and int(mask_bits[i][-1]) >> p.numel() % 8:
            raise ValueError(
                f"mask_bits[{i}] has bits set behind the last weight of {of}[{i}]: make it with dstee.ops.pack_mask"
            )
        if packed_momenta and momenta:
            check_packed("momenta", i, momenta[i], p, mask_bits[i])
        if counts:
            check_flat("counts", i, counts[i], torch.int16, p.numel(), p.device)
    if traced:
        return
    check_no_overlap(**{of: params}, grads=grads, momenta=momenta, mask_bits=mask_bits, counts=counts)
    own = [params] if packed_momenta else [params, momenta]
    _check_signals_apart(signals or {}, own, params=params, momenta=momenta, mask_bits=mask_bits, counts=counts)


def check_no_overlap(**lists: Sequence[Tensor]) -> None:
    """No two tensors share memory: a kernel would read what another layer just wrote."""
    spans = []
    for name, tensors in lists.items():
        for i, t in enumerate(tensors):
            _dispatch.refuse_no_memory(f"{name}[{i}]", t)
            if t.numel():
                spans.append((*_span(t), name, i))
    spans.sort()
    for (_, end, name_a, a), (start, _, name_b, b) in itertools.pairwise(spans):
        if start < end:
            raise ValueError(f"{name_a}[{a}] and {name_b}[{b}] share storage: pass tensors that do not overlap")


def _span(t: Tensor) -> tuple[int, int]:
    return t.data_ptr(), t.data_ptr() + t.numel() * t.element_size()


def _check_signals_apart(
    signals: dict[str, list[Tensor]], own_lists: Sequence[Sequence[Tensor]], **written: Sequence[Tensor]
) -> None:
    """A signal may be the weight or momentum of its own layer (``own_lists``); any other would be read half updated."""
    for name, tensors in signals.items():
        for i, t in enumerate(tensors):
            _dispatch.refuse_no_memory(f"{name}[{i}]", t)
            own = [x[i] for x in own_lists if x]
            if t.numel() == 0 or any(t.data_ptr() == o.data_ptr() and t.dtype == o.dtype for o in own):
                continue
            begin, end = _span(t)
            for other, others in written.items():
                for j, o in enumerate(others):
                    if begin < _span(o)[1] and _span(o)[0] < end:
                        raise ValueError(
                            f"{name}[{i}] and {other}[{j}] share storage, and {other}[{j}] is written: pass a copy"
                        )


def check_scalar_tensor(name: str, t: Tensor | None, device: torch.device | None) -> None:
    if t is None:
        return
    if not isinstance(t, Tensor) or t.numel() != 1 or not t.is_floating_point():
        got = f"{t.dtype} {list(t.shape)}" if isinstance(t, Tensor) else type(t).__name__
        raise TypeError(f"{name} must be a one-element floating-point tensor, got {got}")
    _dispatch.refuse_no_memory(name, t)
    if device is not None and t.device != device:
        raise ValueError(f"{name} is on {t.device}, expected {device} as the parameters: move it first")


def check_round(round: int) -> None:
    """An update after ``round`` others makes ``round + 2`` mask rounds with the initial one; int16 counts 32,767."""
    if isinstance(round, bool) or not isinstance(round, int):
        raise TypeError(f"round must be an int (mask updates done so far), got {type(round).__name__}")
    if not 0 <= round <= MAX_ROUNDS - 2:
        raise ValueError(
            f"round must be in 0..{MAX_ROUNDS - 2}, got {round}: counters are exact for {MAX_ROUNDS} mask rounds; "
            "update less often (a larger `every`)"
        )


def split_round(round: int | Tensor, device: torch.device) -> tuple[int, Tensor | None]:
    """round as (int, None) or (0, tensor); the value of a tensor is looked at on the CPU only (elsewhere: a sync)."""
    if not isinstance(round, Tensor):
        check_round(round)
        return round, None
    if round.dtype != torch.int64 or round.numel() != 1:
        raise TypeError(f"round must be an int or a one-element int64 tensor, got {round.dtype} {list(round.shape)}")
    _dispatch.refuse_no_memory("round", round)
    if round.device != device:
        raise ValueError(f"round is on {round.device}, expected {device} as the parameters: move it first")
    if device.type == "cpu" and not _dispatch.is_traced():
        check_round(int(round))
    return 0, round


def check_bonus(
    bonus: Tensor | None, round: int, device: torch.device | None, scale: Tensor | None = None, length: int = 0
) -> None:
    """``scale``: the bonus_scale of ``length`` layers, whose table is float64."""
    if bonus is None:
        if scale is not None:
            raise ValueError("bonus_scale given without bonus: it scales the table of dstee.bonus_table; pass both or neither")
        return
    dtype, how = (torch.float32, "") if scale is None else (torch.float64, "(..., dtype=torch.float64)")
    if not isinstance(bonus, Tensor) or bonus.dtype != dtype or bonus.dim() != 1 or not bonus.is_contiguous():
        also = "" if scale is None else " where bonus_scale is given"
        raise TypeError(
            f"bonus must be a contiguous 1-D {str(dtype).removeprefix('torch.')} tensor{also}: "
            f"make it with dstee.bonus_table{how}"
        )
    _dispatch.refuse_no_memory("bonus", bonus)
    if bonus.numel() < round + 2:
        raise ValueError(
            f"bonus has {bonus.numel()} entries, expected at least round + 2 = {round + 2}: "
            "make it with dstee.bonus_table(c, eps, t, rounds=round)"
        )
    if device is not None and bonus.device != device:
        raise ValueError(f"bonus is on {bonus.device}, expected {device} as the parameters: move it first")
    if bonus.device.type == "cpu" and not _dispatch.is_traced() and not bool((bonus >= 0).all()):
        raise ValueError("bonus must be >= 0 everywhere and not NaN: make it with dstee.bonus_table")
    if scale is not None:
        check_per_layer("bonus_scale", scale, torch.float32, (length,), device)
        if scale.device.type == "cpu" and not _dispatch.is_traced() and not bool((scale >= 0).all()):
            raise ValueError("bonus_scale must be >= 0 everywhere and not NaN: make it with dstee.ops.growth_scale")


def check_per_layer(name: str, t: Tensor, dtype: torch.dtype, shape: tuple[int, ...], device: torch.device | None) -> None:
    """A tensor with one number, or one row, for each layer."""
    if not isinstance(t, Tensor) or t.dtype != dtype or t.shape != shape or not t.is_contiguous():
        got = f"{t.dtype} {list(t.shape)}" if isinstance(t, Tensor) else type(t).__name__
        expected = f"{str(dtype).removeprefix('torch.')} tensor {list(shape)}"
        raise TypeError(f"{name} must be a contiguous {expected}, one entry per layer, got {got}")
    _dispatch.refuse_no_memory(name, t)
    if device is not None and t.device != device:
        raise ValueError(f"{name} is on {t.device}, expected {device} as the parameters: move it first")


def check_k(k: list[int], params: list[Tensor], active: list[int] | None) -> None:
    """0 <= k[i] <= active weights; without ``active`` (asking a GPU would be a sync) the bound is the layer's size."""
    for i, k_i in enumerate(k):
        if isinstance(k_i, bool) or not isinstance(k_i, int):
            raise TypeError(f"k[{i}] must be an int, got {type(k_i).__name__}")
        bound = params[i].numel() if active is None else active[i]
        if not 0 <= k_i <= bound:
            raise ValueError(f"k[{i}] must be in 0..{bound} (the active weights of params[{i}]), got {k_i}")


def split_k(k: Sequence[int] | Tensor, length: int, device: torch.device, name: str = "k") -> tuple[list[int], Tensor | None]:
    """k, or another number for each layer, as (list, None) or ([], tensor)."""
    if isinstance(k, Tensor):
        if k.dtype != torch.int64 or k.shape != (length,) or not k.is_contiguous():
            raise TypeError(f"{name} must be a contiguous int64 tensor [{length}], got {k.dtype} {list(k.shape)}")
        _dispatch.refuse_no_memory(name, k)
        if k.device != device:
            raise ValueError(f"{name} is on {k.device}, expected {device} as the parameters: move it first")
        return [], k
    if not isinstance(k, Sequence):
        raise TypeError(f"{name} must be a list of ints or an int64 tensor, got {type(k).__name__}")
    if len(k) != length:
        raise ValueError(f"{name} must have one number per layer: got {len(k)}, expected {length} as in params")
    for i, k_i in enumerate(k):
        if isinstance(k_i, bool) or not isinstance(k_i, int):
            raise TypeError(f"{name}[{i}] must be an int, got {type(k_i).__name__}")
        if k_i < 0:
            raise ValueError(f"{name}[{i}] must be >= 0, got {k_i}")
    return list(k), None


def seeds(grow_seeds: Sequence[int] | None, length: int) -> list[int]:
    """The growth seeds as a list; [] for None."""
    if grow_seeds is None:
        return []
    if len(grow_seeds) != length:
        raise ValueError(f"grow_seeds must have one number per layer: got {len(grow_seeds)}, expected {length} as in params")
    for i, seed in enumerate(grow_seeds):
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise TypeError(f"grow_seeds[{i}] must be an int, got {type(seed).__name__}")
        if not -(2**63) <= seed < 2**63:
            raise ValueError(f"grow_seeds[{i}] must fit a signed 64-bit integer, got {seed}")
    return list(grow_seeds)


def check_rule(rule: SGDRule, momenta: list[Tensor], device: torch.device | None) -> None:
    if isinstance(rule.lr, Tensor):
        check_scalar_tensor("lr", rule.lr, device)
    elif rule.lr != rule.lr:  # a negative one climbs, as torch's step has it; optimizers refuse it when they are made
        raise ValueError(f"Invalid learning rate: {rule.lr}")
    if not rule.momentum >= 0:
        raise ValueError(f"Invalid momentum value: {rule.momentum}")
    if not rule.weight_decay >= 0:
        raise ValueError(f"Invalid weight_decay value: {rule.weight_decay}")
    if rule.nesterov and rule.momentum <= 0:
        raise ValueError(f"nesterov needs a momentum, got {rule.momentum}: set one, or nesterov=False")
    if rule.momentum != 0 and not momenta:
        raise ValueError(f"momenta is None, but momentum is {rule.momentum}: pass one buffer per layer")


def check_shape(shape: Sequence[int]) -> torch.Size:
    try:
        size = torch.Size(shape)
    except TypeError:
        raise TypeError(f"shape must be a list of ints, got {shape!r}") from None
    if any(d < 0 for d in size):
        raise ValueError(f"shape must have no negative sizes, got {list(size)}")
    return size
