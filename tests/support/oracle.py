"""The algorithm written a second time, differently: numpy bits, exact Python integers as sort keys, plain counters.

Nothing here uses torch arithmetic or the package's own helpers. An order "score descending, abs(g) descending, index
ascending" is one 96-bit integer per candidate; bfloat16 and float16 are rounded in integer arithmetic; N += M is literal.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from dstee.ops import SGDRule
from dstee.testing import Case

F32 = NDArray[np.float32]
LAST = 2**32 - 1


# --- number formats ------------------------------------------------------------------------------------------------------


def bits_of(t: torch.Tensor) -> NDArray[np.uint32]:
    """The raw bits of a tensor's elements in the order they lie in memory."""
    as_int = torch.int32 if t.element_size() == 4 else torch.int16
    memory = t.detach().as_strided((t.numel(),), (1,)).view(as_int).numpy()
    return memory.astype(np.int64).astype(np.uint32) & np.uint32(LAST if t.element_size() == 4 else 0xFFFF)


def to_float32(bits: NDArray[np.uint32], dtype: torch.dtype) -> F32:
    """Exact value of each bit pattern."""
    if dtype == torch.float32:
        return bits.view(np.float32).copy()
    if dtype == torch.bfloat16:
        return (bits << np.uint32(16)).view(np.float32).copy()
    sign = np.where(bits >> 15, np.float32(-1), np.float32(1))
    exponent, fraction = (bits >> 10 & 31).astype(np.int32), (bits & 1023).astype(np.int32)
    size = np.ldexp(np.where(exponent == 0, fraction, fraction + 1024).astype(np.float32), np.maximum(exponent, 1) - 25)
    size = np.where(exponent == 31, np.where(fraction == 0, np.float32(np.inf), np.float32(np.nan)), size)
    return (sign * size).astype(np.float32)


def from_float32(x: F32, dtype: torch.dtype) -> NDArray[np.uint32]:
    """The bit pattern of the nearest number of ``dtype``, ties to even."""
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
    if dtype == torch.float32:
        return bits.copy()
    wide = bits.astype(np.int64)
    sign, size = wide >> 31, wide & 0x7FFF_FFFF
    if dtype == torch.bfloat16:
        rounded = _shift_to_even(size, np.full_like(size, 16))
        return np.where(size > 0x7F80_0000, 0x7FC0, rounded | sign << 15).astype(np.uint32)
    exponent = (size >> 23) - 127
    significand = np.where(size >> 23 == 0, 0, (size & 0x7F_FFFF) | 0x80_0000)  # float32 subnormals are far below half's
    quantum = np.clip(13 + np.maximum(0, -14 - exponent), 13, 40)  # bits that fall off
    kept = _shift_to_even(significand, quantum)
    half = np.where(exponent < -14, kept, kept + ((np.maximum(exponent, -14) + 14) << 10))  # a carry moves to the exponent
    half = np.where(half >= 0x7C00, 0x7C00, half)
    return np.where(size > 0x7F80_0000, 0x7E00, half | sign << 15).astype(np.uint32)


def _shift_to_even(x: NDArray[np.int64], places: NDArray[np.int64]) -> NDArray[np.int64]:
    kept, rest, half = x >> places, x & ((1 << places) - 1), 1 << (places - 1)
    return kept + ((rest > half) | ((rest == half) & (kept & 1 == 1)))


def orderable(x: F32) -> list[int]:
    """abs(x) as integers in the same order: NaN 0, zero 1, ..., infinity the largest."""
    size = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32).astype(np.int64) & 0x7FFF_FFFF
    return [0 if b > 0x7F80_0000 else b + 1 for b in size.tolist()]


def random_number(seed: int, index: int) -> float:
    """SET's growth signal of one position, in Python integers of any size: 24 bits of a hash of (seed, index)."""

    def mix(x: int) -> int:
        x ^= x >> 16
        x = x * 0x7FEB352D % 2**32
        x ^= x >> 15
        x = x * 0x846CA68B % 2**32
        return x ^ x >> 16

    seed %= 2**64
    low = (index % 2**32 + seed % 2**32) % 2**32
    high = (index // 2**32 + seed // 2**32) % 2**32
    return (mix(mix(low) ^ high) >> 8) / 2**24


# --- the step and the update ---------------------------------------------------------------------------------------------


@dataclass
class Layer:
    """One layer after the call: raw bits of w and m, mask, plain counters N, all in storage order."""

    w: NDArray[np.uint32]
    m: NDArray[np.uint32] | None
    mask: NDArray[np.bool_]
    N: NDArray[np.int64]


def _off(flag: torch.Tensor | None) -> bool:
    return flag is not None and float(flag.reshape(-1)[0]) != 0


def _mask(mask_bits: torch.Tensor, n: int) -> NDArray[np.bool_]:
    return np.unpackbits(mask_bits.numpy(), bitorder="little")[:n].astype(bool)


def _sgd(w: F32, g: F32, m: F32 | None, rule: SGDRule, scale: float | None) -> tuple[F32, F32 | None]:
    """Each line is one float32 operation per element, rounded once."""
    lr = np.float32(float(rule.lr))
    with np.errstate(all="ignore"):
        d = g if scale is None else g / np.float32(scale)
        if rule.maximize:
            d = np.negative(d)
        if rule.weight_decay != 0:
            decay = np.float32(rule.weight_decay) * w
            d = d + decay
        if rule.momentum == 0:
            return w - lr * d, m
        assert m is not None
        if rule.first_step:
            m = d
        else:
            old = np.float32(rule.momentum) * m
            new = np.float32(1 - rule.dampening) * d
            m = old + new
        if rule.nesterov:
            ahead = np.float32(rule.momentum) * m
            d = d + ahead
        else:
            d = m
        move = lr * d
        return w - move, m


def _step(case: Case, i: int, layer: Layer) -> None:
    assert case.sgd is not None and case.grads is not None
    dtype = case.params[i].dtype
    scale = None if case.grad_scale is None else float(case.grad_scale)
    w, g = to_float32(layer.w, dtype), to_float32(bits_of(case.grads[i]), dtype)
    m = None if layer.m is None else to_float32(layer.m, dtype)
    w_new, m_new = _sgd(w, g, m, case.sgd, scale)
    layer.w = np.where(layer.mask, from_float32(w_new, dtype), layer.w)
    if layer.m is not None and m_new is not None and case.sgd.momentum != 0:
        layer.m = np.where(layer.mask, from_float32(m_new, dtype), layer.m)


def _layer(case: Case, i: int) -> Layer:
    p = case.params[i]
    m = bits_of(case.momenta[i]) if case.momenta else None
    return Layer(bits_of(p), m, _mask(case.mask_bits[i], p.numel()), case.N[i].numpy().astype(np.int64))


def masked_sgd(case: Case) -> list[Layer]:
    """What one masked SGD step must leave."""
    layers = [_layer(case, i) for i in range(len(case.params))]
    for i, layer in enumerate(layers):
        if not _off(case.options.get("found_inf")):
            _step(case, i, layer)
    return layers


def drop_grow(case: Case) -> list[Layer]:
    """What one mask update must leave; N is counted on literally."""
    layers = [_layer(case, i) for i in range(len(case.params))]
    for i, layer in enumerate(layers):
        if not _off(case.options.get("found_inf")):
            _update(case, i, layer)
    return layers


def _update(case: Case, i: int, layer: Layer) -> None:
    if case.sgd is not None:
        _step(case, i, layer)
    options, n = case.options, len(layer.mask)
    regrow, reset = options.get("regrow", True), options.get("reset_regrown", False)

    def read(t: torch.Tensor) -> F32:  # a signal may be one of the tensors that the step has just written
        if t is case.params[i]:
            return to_float32(layer.w, t.dtype)
        if case.momenta and t is case.momenta[i]:
            assert layer.m is not None
            return to_float32(layer.m, t.dtype)
        return to_float32(bits_of(t), t.dtype)

    active = np.flatnonzero(layer.mask).tolist()
    k = grow = max(0, min(int(case.k[i]), len(active)))
    if options.get("k_grow") is not None:
        grow = max(0, min(int(options["k_grow"][i]), n - len(active) + k * regrow))
    elif not regrow:
        k = grow = min(k, n - len(active))

    closeness = orderable(read((options.get("drop_scores") or case.params)[i]))
    dropped = {key & LAST for key in sorted(closeness[j] << 32 | j for j in active)[:k]}

    if options.get("grow_seeds"):
        base, run, pitch = options["where"][i] if options.get("where") else (0, max(n, 1), max(n, 1))
        places = [base + j // run * pitch + j % run for j in range(n)]
        g = np.array([random_number(options["grow_seeds"][i], j) for j in places], dtype=np.float32)
    else:
        signal = options.get("grow_signal") or case.grads
        assert signal is not None
        g = np.abs(read(signal[i]))
    with np.errstate(over="ignore"):
        score = g if case.bonus is None else g + bonuses(case, i)[layer.N]
    first, second, is_active = orderable(score), orderable(g), layer.mask.tolist()
    keys = [
        first[j] << 64 | second[j] << 32 | LAST - j
        for j in range(n)
        if not is_active[j] or (regrow and j in dropped)
    ]  # fmt: skip
    keys.sort(reverse=True)
    grown = {LAST - (key & LAST) for key in keys[:grow]}

    layer.mask = layer.mask.copy()
    layer.mask[list(dropped)] = False
    layer.mask[list(grown)] = True
    zeroed = list(dropped if reset else dropped - grown)
    layer.w[zeroed] = 0
    if layer.m is not None:
        layer.m[zeroed] = 0
    layer.N = layer.N + layer.mask


def bonuses(case: Case, i: int) -> F32:
    """The bonus of layer i by counter."""
    assert case.bonus is not None
    table, scale = case.bonus.numpy(), case.options.get("bonus_scale")
    if scale is None:
        return table
    with np.errstate(over="ignore", invalid="ignore"):
        return np.array([np.float32(float(scale[i]) * float(unit)) for unit in table], dtype=np.float32)


def stored(case: Case, layers: list[Layer], updates: int) -> Case:
    """A copy of ``case`` whose state is what the oracle left: the start of its next update."""
    after = case.clone()
    for i, layer in enumerate(layers):
        pairs = [(after.params[i], layer.w), (after.momenta[i], layer.m)] if after.momenta else [(after.params[i], layer.w)]
        for t, bits in pairs:
            assert t.dtype == torch.float32 and bits is not None
            t.copy_(torch.from_numpy(bits.view(np.float32).copy()).view(t.shape))
        after.mask_bits[i].copy_(torch.from_numpy(np.packbits(layer.mask, bitorder="little")))
        if after.counts is not None:
            after.counts[i].copy_(torch.from_numpy(np.where(layer.mask, updates + 1 - layer.N, layer.N).astype(np.int16)))
        after.N[i].copy_(torch.from_numpy(layer.N))
    return after


# --- comparison ----------------------------------------------------------------------------------------------------------


def assert_layers(case: Case, expected: list[Layer], updates: int) -> None:
    """``case`` (after a call) holds what ``expected`` says; ``updates``: mask updates its counters have seen."""
    for i, layer in enumerate(expected):
        where = f"layer {i} of {case.description}"
        n = len(layer.mask)
        packed = np.packbits(layer.mask, bitorder="little")
        _same(case.mask_bits[i].numpy(), packed, f"mask byte, {where}")
        _same_floats(case.params[i], layer.w, f"weight, {where}")
        if layer.m is not None:
            assert case.momenta is not None
            _same_floats(case.momenta[i], layer.m, f"momentum, {where}")
        if case.counts is not None:
            stored = np.where(layer.mask, updates + 1 - layer.N, layer.N).astype(np.int16)
            _same(case.counts[i].numpy(), stored, f"stored counter, {where}")
        assert n == 0 or (int(layer.N.min()) >= 0 and int(layer.N.max()) <= updates + 1)


def _same_floats(t: torch.Tensor, bits: NDArray[np.uint32], what: str) -> None:
    actual = bits_of(t)
    nan = np.isnan(to_float32(actual, t.dtype)) & np.isnan(to_float32(bits, t.dtype))
    _same(np.where(nan, 0, actual), np.where(nan, 0, bits), what)


def _same(actual: NDArray, expected: NDArray, what: str) -> None:
    different = np.flatnonzero(actual != expected)
    if len(different):
        j = int(different[0])
        raise AssertionError(f"{len(different)} differ, first {j}: {actual[j]:#x}, expected {expected[j]:#x} ({what})")
