"""Every op: its schema, checks and public function. A backend implements the schemas and checks nothing.

The public functions take lists with one tensor per layer, so that one call serves the whole model. "Flat index" is the
order in memory. A sparse layer obeys one invariant, which every op keeps: weight and momentum are 0 where the mask is False.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from dstee import _checks, backends, encoding, reference, sgd_rule
from dstee.backends.timing import timed
from dstee.encoding import bonus_table as bonus_table
from dstee.sgd_rule import SGDRule as SGDRule

__all__ = [
    "SGDRule",
    "bonus_table",
    "count_active",
    "count_explored",
    "decode_counts",
    "drop_grow_",
    "encode_counts",
    "masked_sgd_",
    "pack_mask",
    "unpack_mask",
]

_library = torch.library.Library("dstee", "DEF")


def _declare(schema: str, fake: Callable[..., Any]) -> None:
    """One op: its schema, the reference as the kernel wherever no backend has its own, and its shapes for the compiler."""
    name = schema[: schema.index("(")]
    _library.define(schema)
    _library.impl(name, getattr(reference, name), "CompositeExplicitAutograd")
    torch.library.register_fake(f"dstee::{name}", fake, lib=_library)


def _call(name: str, device: torch.device, check: Callable[[], None], *args: Any) -> Any:
    """Runs op ``name`` on the backend in force. ``check`` raises the clear error for bad arguments.

    A native kernel looks at its arguments itself before it writes (54 layers: microseconds, in Python ten times that) and
    only says that something is wrong; then ``check`` says what.
    """
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


def _one_rule(sgd: SGDRule | None, lr: float | Tensor | None, *rest: Any) -> SGDRule:
    """The rule of :func:`masked_sgd_`, given whole or by its fields."""
    if sgd is None:
        if lr is None:
            raise TypeError("masked_sgd_ needs lr, or the whole rule: sgd=SGDRule(lr, ...)")
        return SGDRule(lr, *rest)
    if lr is not None or any(rest):
        raise TypeError("masked_sgd_ got sgd and fields of it: pass the rule whole, or lr, momentum, ... without it")
    return sgd


def _check_rule(rule: SGDRule, momenta: list[Tensor], device: torch.device | None) -> None:
    if isinstance(rule.lr, Tensor):
        _checks.check_scalar_tensor("lr", rule.lr, device)
    elif not rule.lr >= 0:
        raise ValueError(f"Invalid learning rate: {rule.lr}")
    if not rule.momentum >= 0:
        raise ValueError(f"Invalid momentum value: {rule.momentum}")
    if not rule.weight_decay >= 0:
        raise ValueError(f"Invalid weight_decay value: {rule.weight_decay}")
    if rule.nesterov and (rule.momentum <= 0 or rule.dampening != 0):
        raise ValueError("Nesterov momentum requires a momentum and zero dampening")
    if rule.momentum != 0 and not momenta:
        raise ValueError(f"momenta is None, but momentum is {rule.momentum}: pass one buffer per layer")


# --- masked_sgd_ ---------------------------------------------------------------------------------------------------------

_declare(
    "masked_sgd_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] momenta, Tensor[] mask_bits, float[] sgd, Tensor? lr, "
    "Tensor? grad_scale, Tensor? found_inf) -> ()",
    lambda *args: None,
)


def masked_sgd_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    momenta: Sequence[Tensor] | None,
    mask_bits: Sequence[Tensor],
    *,
    lr: float | Tensor | None = None,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
    first_step: bool = False,
    sgd: SGDRule | None = None,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
) -> None:
    """One SGD step on the active weights of all layers, in place; inactive weights and momenta are not touched.

    In float32, each operation rounded once: ``d = g / grad_scale + weight_decay*w``;
    ``m = momentum*m + (1-dampening)*d`` (``m = d`` on the first step); ``u = d + momentum*m`` with ``nesterov``, else
    ``m``; ``w = w - lr*u`` (paper, Algorithm 1: SGD on the sparse weights, with :class:`torch.optim.SGD`'s definitions).

    Args:
        params: weights, float32, bfloat16 or float16, dense storage; all on one device.
        grads: gradients at all positions; shape, dtype, device and strides of the weights.
        momenta: momentum buffers, like ``grads``; may be None when ``momentum`` is 0.
        mask_bits: uint8 [ceil(n/8)] each, as :func:`pack_mask` makes them.
        lr: a float or a one-element tensor on the same device (read there, no host sync).
        first_step: the momentum buffers are written, not read.
        sgd: ``lr`` to ``first_step`` as one value, instead of them.
        grad_scale: one-element tensor that divides the gradients (a GradScaler's scale).
        found_inf: one-element tensor; where it is not 0, nothing changes.

    Raises:
        TypeError, ValueError: an argument does not fit; the text names it and its list index. Nothing has changed then.
    """
    params = _checks.tensor_list("params", params)
    if not params:
        return
    grads = _checks.tensor_list("grads", grads, len(params))
    momenta = _checks.tensor_list("momenta", momenta, len(params), optional=True)
    mask_bits = _checks.tensor_list("mask_bits", mask_bits, len(params))
    device = params[0].device
    rule = _one_rule(sgd, lr, momentum, dampening, weight_decay, nesterov, maximize, first_step)
    _check_rule(rule, momenta, device)
    _checks.check_scalar_tensor("grad_scale", grad_scale, device)
    _checks.check_scalar_tensor("found_inf", found_inf, device)
    used = momenta if rule.momentum != 0 else []
    _call(
        "masked_sgd_", device,
        lambda: _checks.check_layers(params, mask_bits, grads=grads, momenta=used),
        params, grads, used, mask_bits, *sgd_rule.pack(rule), grad_scale, found_inf,
    )  # fmt: skip


# --- drop_grow_ ----------------------------------------------------------------------------------------------------------

_declare(
    "drop_grow_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] momenta, Tensor(c!)[] mask_bits, Tensor(d!)[] counts, "
    "int[] k, Tensor? k_tensor, Tensor? bonus, int round, Tensor? round_tensor, Tensor[] drop_scores, Tensor[] grow_signal, "
    "int[] grow_seeds, bool regrow, bool reset_regrown, float[] sgd, Tensor? lr, Tensor? found_inf) -> ()",
    lambda *args: None,
)


def drop_grow_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor] | None,
    momenta: Sequence[Tensor] | None,
    mask_bits: Sequence[Tensor],
    counts: Sequence[Tensor] | None,
    k: Sequence[int] | Tensor,
    *,
    bonus: Tensor | None,
    round: int | Tensor,
    drop_scores: Sequence[Tensor] | None = None,
    grow_signal: Sequence[Tensor] | None = None,
    grow_seeds: Sequence[int] | None = None,
    regrow: bool = True,
    reset_regrown: bool = False,
    sgd: SGDRule | None = None,
    found_inf: Tensor | None = None,
) -> None:
    """One mask update of all layers, in place: drop the k weakest active weights, grow the k best candidates.

    1. With ``sgd``, the masked step comes first (order "after").
    2. Drop: the k active positions first in the order (abs(w) ascending, flat index ascending); NaN weights before all.
    3. Grow: among positions inactive after the drop (before it, without ``regrow``) the first k in the order (score
       descending, abs(g) descending, flat index ascending), score = float32 ``abs(g) + bonus[N]`` (paper, Eq. 1);
       NaN gradients after all.
    4. Dropped weights and their momenta become 0; grown ones start at 0, or, dropped and regrown in one update, keep
       their values (``reset_regrown`` zeroes them). Counters: N += M. The number of active weights does not change.

    Args:
        params, grads, momenta, mask_bits: as in :func:`masked_sgd_`. ``momenta`` may be None when there are none;
            ``grads`` may be None when another growth signal is given and ``sgd`` is not.
        counts: int16 [n] each, as :func:`encode_counts` makes them for this ``round``; None for methods without a counter.
        k: weights to swap per layer: a list of ints, or an int64 tensor [L] on the device, which is clipped there to the
            active weights. Without ``regrow`` both are clipped to the inactive weights.
        bonus: exploration bonus by counter, from :func:`bonus_table`, on the device; None adds nothing (RigL). A counter
            that the table does not have, a negative one too, takes the last entry.
        round: mask updates done before this one (q), at most 32,765: an int, or a one-element int64 tensor on the device
            (then, with ``k``, ``lr`` and ``bonus`` in tensors too, a captured CUDA graph follows the schedule).
        drop_scores: what the drop ranks (by abs) instead of the weights; float32 or the weights' dtype. Read after the step.
        grow_signal: what the growth ranks (by abs) instead of the gradients. Read after the step.
        grow_seeds: one 64-bit seed per layer: growth by a hash of (seed, flat index), uniform in [0, 1) (SET).
        found_inf: one-element tensor; where it is not 0, nothing changes: no step, no mask, no counter.

    Raises:
        TypeError, ValueError: an argument does not fit; the text names it and its list index. Nothing has changed then.
    """
    params = _checks.tensor_list("params", params)
    if not params:
        return
    L, device = len(params), params[0].device
    if grads is None and (sgd is not None or (grow_signal is None and grow_seeds is None)):
        raise ValueError("grads is None: the step and gradient growth need them; or pass grow_signal or grow_seeds")
    if grow_signal is not None and grow_seeds is not None:
        raise ValueError("grow_signal and grow_seeds both given: growth ranks one of them")
    grads = _checks.tensor_list("grads", grads, L, optional=True)
    momenta = _checks.tensor_list("momenta", momenta, L, optional=True)
    mask_bits = _checks.tensor_list("mask_bits", mask_bits, L)
    counts = _checks.tensor_list("counts", counts, L, optional=True)
    drop_scores = _checks.tensor_list("drop_scores", drop_scores, L, optional=True)
    grow_signal = _checks.tensor_list("grow_signal", grow_signal, L, optional=True)
    seeds = _checks.seeds(grow_seeds, L)
    round, round_tensor = _checks.split_round(round, device)
    if bonus is not None and not counts:
        raise ValueError("bonus given without counts: the bonus depends on the counters; pass both or neither")
    known = int(round_tensor) if round_tensor is not None and device.type == "cpu" else round
    _checks.check_bonus(bonus, known, device)
    if sgd is not None:
        _check_rule(sgd, momenta, device)
    _checks.check_scalar_tensor("found_inf", found_inf, device)
    k_list, k_tensor = _checks.split_k(k, L, device)

    def check() -> None:
        signals = {"drop_scores": drop_scores, "grow_signal": grow_signal}
        _checks.check_layers(params, mask_bits, grads=grads, momenta=momenta, counts=counts, signals=signals)
        active = reference.count_active(mask_bits).tolist() if device.type == "cpu" else None
        _checks.check_k(k_list, params, active)

    _call(
        "drop_grow_", device, check,
        params, grads, momenta, mask_bits, counts, k_list, k_tensor, bonus, round, round_tensor, drop_scores, grow_signal,
        seeds, regrow, reset_regrown, *sgd_rule.pack(sgd), found_inf,
    )  # fmt: skip


# --- pack_mask, unpack_mask ----------------------------------------------------------------------------------------------

_declare(
    "pack_mask(Tensor mask) -> Tensor",
    lambda mask: mask.new_empty(encoding.mask_bytes(mask.numel()), dtype=torch.uint8),
)
_declare(
    "unpack_mask(Tensor mask_bits, SymInt[] shape) -> Tensor",
    lambda mask_bits, shape: mask_bits.new_empty(shape, dtype=torch.bool),
)


def pack_mask(mask: Tensor) -> Tensor:
    """bool mask (any shape, dense storage) -> uint8 [ceil(n/8)], one bit per weight in storage order, little-endian bits.

    Raises:
        TypeError: ``mask`` is not a bool tensor. ValueError: its storage is not dense.
    """
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"mask must be a bool tensor, got {got}")
    if not _checks.is_dense(mask):
        raise ValueError(f"mask with strides {mask.stride()} is not dense, non-overlapping storage: call .contiguous()")
    return _call("pack_mask", mask.device, lambda: None, mask)


def unpack_mask(mask_bits: Tensor, shape: Sequence[int]) -> Tensor:
    """uint8 [ceil(n/8)] -> bool mask, contiguous, of ``shape`` with n elements.

    Raises:
        TypeError, ValueError: ``mask_bits`` is not a contiguous 1-D uint8 tensor of the size that ``shape`` needs.
    """
    shape = _shape(shape)
    if not isinstance(mask_bits, Tensor):
        raise TypeError(f"mask_bits must be a tensor, got {type(mask_bits).__name__}")
    _checks.check_flat("mask_bits", 0, mask_bits, torch.uint8, encoding.mask_bytes(shape.numel()), mask_bits.device)
    return _call("unpack_mask", mask_bits.device, lambda: None, mask_bits, list(shape))


def _shape(shape: Sequence[int]) -> torch.Size:
    try:
        size = torch.Size(shape)
    except TypeError:
        raise TypeError(f"shape must be a list of ints, got {shape!r}") from None
    if any(d < 0 for d in size):
        raise ValueError(f"shape must have no negative sizes, got {list(size)}")
    return size


# --- encode_counts, decode_counts ----------------------------------------------------------------------------------------

_declare(
    "encode_counts(Tensor N, Tensor mask, int round) -> Tensor",
    lambda N, mask, round: N.new_empty(N.numel(), dtype=torch.int16),
)
_declare(
    "decode_counts(Tensor counts, Tensor mask_bits, int round, SymInt[] shape) -> Tensor",
    lambda counts, mask_bits, round, shape: counts.new_empty(shape, dtype=torch.int32),
)


def encode_counts(N: Tensor, mask: Tensor, round: int) -> Tensor:
    """Counters N (any integer dtype) under ``mask`` (bool, same shape) after ``round`` updates -> int16 [n] stored form.

    Raises:
        TypeError, ValueError: dtypes, shapes or memory order do not fit, or an N is outside what ``round`` updates allow:
        0..round for an inactive weight, 1..round+1 for an active one.
    """
    if not isinstance(N, Tensor) or N.is_floating_point() or N.is_complex() or N.dtype == torch.bool:
        raise TypeError(f"N must be an integer tensor, got {getattr(N, 'dtype', type(N).__name__)}")
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        raise TypeError(f"mask must be a bool tensor, got {getattr(mask, 'dtype', type(mask).__name__)}")
    _check_count_round(round)
    if not _checks.is_dense(N):
        raise ValueError(f"N with strides {N.stride()} is not dense, non-overlapping storage: call .contiguous()")
    if mask.shape != N.shape or mask.device != N.device or _checks.layout(mask) != _checks.layout(N):
        raise ValueError(
            f"mask is {list(mask.shape)} {mask.stride()} on {mask.device}, "
            f"expected {list(N.shape)} {N.stride()} on {N.device} as N"
        )
    N = N.to(torch.int64)  # the stored form of a small counter need not fit the dtype it came in
    low = mask.long()
    bad = (low > N) | (low + round < N)
    if bool(bad.any()):
        raise ValueError(
            f"N has {int(bad.sum())} values that {round} updates do not allow: 0..{round} for an inactive weight, "
            f"1..{round + 1} for an active one"
        )
    return _call("encode_counts", N.device, lambda: None, N, mask, round)


def decode_counts(counts: Tensor, mask_bits: Tensor, round: int, shape: Sequence[int]) -> Tensor:
    """Inverse of :func:`encode_counts`: counters N as int32, contiguous, of ``shape``.

    Raises:
        TypeError, ValueError: a tensor does not have the dtype and size that ``shape`` needs.
    """
    shape = _shape(shape)
    for name, t in (("counts", counts), ("mask_bits", mask_bits)):
        if not isinstance(t, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(t).__name__}")
    _check_count_round(round)
    _checks.check_flat("counts", 0, counts, torch.int16, shape.numel(), counts.device)
    _checks.check_flat("mask_bits", 0, mask_bits, torch.uint8, encoding.mask_bytes(shape.numel()), counts.device)
    return _call("decode_counts", counts.device, lambda: None, counts, mask_bits, round, list(shape))


def _check_count_round(round: int) -> None:
    if isinstance(round, bool) or not isinstance(round, int):
        raise TypeError(f"round must be an int (mask updates done so far), got {type(round).__name__}")
    if not 0 <= round <= encoding.MAX_ROUNDS - 1:
        raise ValueError(f"round must be in 0..{encoding.MAX_ROUNDS - 1}, got {round}")


# --- count_active, count_explored ----------------------------------------------------------------------------------------

_declare("count_active(Tensor[] mask_bits) -> Tensor", lambda bits: bits[0].new_empty(len(bits), dtype=torch.int64))
_declare(
    "count_explored(Tensor[] counts, Tensor[] mask_bits) -> Tensor",
    lambda counts, bits: bits[0].new_empty(len(bits), dtype=torch.int64),
)


def count_active(mask_bits: Sequence[Tensor]) -> Tensor:
    """Active weights per layer: int64 [L] on the masks' device, no host sync."""
    mask_bits = _checks.tensor_list("mask_bits", mask_bits)
    if not mask_bits:
        return torch.zeros(0, dtype=torch.int64)
    device = mask_bits[0].device
    for i, b in enumerate(mask_bits):
        _checks.check_flat("mask_bits", i, b, torch.uint8, b.numel(), device)
    return _call("count_active", device, lambda: None, mask_bits)


def count_explored(counts: Sequence[Tensor], mask_bits: Sequence[Tensor]) -> Tensor:
    """Weights that were ever active (N > 0) per layer: int64 [L] on the masks' device, no host sync (paper, R)."""
    mask_bits = _checks.tensor_list("mask_bits", mask_bits)
    counts = _checks.tensor_list("counts", counts, len(mask_bits))
    if not mask_bits:
        return torch.zeros(0, dtype=torch.int64)
    device = mask_bits[0].device
    for i, (c, b) in enumerate(zip(counts, mask_bits, strict=True)):
        _checks.check_flat("counts", i, c, torch.int16, c.numel(), device)
        _checks.check_flat("mask_bits", i, b, torch.uint8, encoding.mask_bytes(c.numel()), device)
    return _call("count_explored", device, lambda: None, counts, mask_bits)
