"""The scalar maths of the update in Triton: the only place where it stands in this language.

The same operations in the same order as csrc/rules.h and dstee/reference.py, each rounded once: kernels are launched with
``enable_fp_fusion=False`` (_launch.py). Conversions that the hardware does in its own way (NaN) are spelt out.
"""

from typing import NamedTuple

import triton
import triton.language as tl


@triton.jit
def bits_of(x):
    return x.to(tl.int32, bitcast=True)


@triton.jit
def rank(x):
    """abs(x) as an int32 that orders like the float32: NaN -> 0, 0.0 -> 1, ..., +Inf -> 0x7F800001."""
    magnitude = bits_of(x) & 0x7FFFFFFF
    return tl.where(magnitude > 0x7F800000, 0, magnitude + 1)


@triton.jit
def drop_key(x):
    """The smaller abs(x), the larger the key; NaN above all. int32."""
    return 0x7F800001 - rank(x)


@triton.jit
def to_float(x):
    """A storage type, exactly as float32. bfloat16 by its bits: the interpreter's own conversion loses subnormal numbers."""
    if x.dtype == tl.bfloat16:
        return (x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    else:
        return x.to(tl.float32)


@triton.jit
def round_to(x, dtype: tl.constexpr):
    """float32 rounded once to the storage type, to nearest even; NaN becomes the type's quiet NaN."""
    if dtype == tl.float32:
        return x
    elif dtype == tl.bfloat16:
        u = x.to(tl.uint32, bitcast=True)
        nan = (u & 0x7FFFFFFF) > 0x7F800000
        top = (u + 0x7FFF + ((u >> 16) & 1)) >> 16
        return tl.where(nan, 0x7FC0, top).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        half = x.to(tl.float16).to(tl.uint16, bitcast=True)
        sign = (x.to(tl.uint32, bitcast=True) >> 16) & 0x8000
        return tl.where(x != x, sign | 0x7E00, half.to(tl.uint32)).to(tl.uint16).to(tl.float16, bitcast=True)


# The operations that a step of SGD has: a sum of these is a kernel's constant, the numbers are arguments.
HAS_MOMENTUM = tl.constexpr(1)
HAS_DECAY = tl.constexpr(2)
SCALED = tl.constexpr(4)
NESTEROV = tl.constexpr(8)
MAXIMIZE = tl.constexpr(16)
FIRST_STEP = tl.constexpr(32)
NO_STEP = tl.constexpr(-1)


class SgdNumbers(NamedTuple):
    """float32, each; ``damped`` is 1 - dampening."""

    lr: float
    momentum: float
    damped: float
    weight_decay: float
    grad_scale: float = 1.0


@triton.jit
def sgd(w, g, m, x, OPERATIONS: tl.constexpr):
    """One step, torch.optim.SGD's definitions; x: SgdNumbers. Returns the new weight and momentum."""
    d = g
    if SCALED & OPERATIONS:
        d = tl.math.div_rn(d, x.grad_scale)
    if MAXIMIZE & OPERATIONS:
        d = -d
    if HAS_DECAY & OPERATIONS:
        d = d + w * x.weight_decay
    u = d
    if HAS_MOMENTUM & OPERATIONS:
        if FIRST_STEP & OPERATIONS:
            m = d
        else:
            m = m * x.momentum + d * x.damped
        if NESTEROV & OPERATIONS:
            u = d + m * x.momentum
        else:
            u = m
    return w - u * x.lr, m


@triton.jit
def flip_count(stored, round):
    """The stored counter <-> N, by the parity of the mask: inactive stores N, active round + 1 - N."""
    return round + 1 - stored


@triton.jit
def counter_of(stored, active, round, table_size):
    """The counter N as a place in a table: one that the table does not have, a negative one too, takes the last."""
    counter = tl.where(active, flip_count(stored, round), stored).to(tl.uint32)  # a negative one becomes a large one
    return tl.minimum(counter, (table_size - 1).to(tl.uint32)).to(tl.int32)


@triton.jit
def mix(x):
    """A 32-bit finaliser with full avalanche; uint32."""
    x = x ^ (x >> 16)
    x = x * 0x7FEB352D
    x = x ^ (x >> 15)
    x = x * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def global_index(i, base, run, pitch):
    """The place of a part's weight i in the whole layer: int64. run: of the type of i."""
    rows = i // run
    return base + rows.to(tl.int64) * pitch + (i - rows * run).to(tl.int64)


@triton.jit
def random24(index, seed):
    """The top 24 bits of a hash of (seed, index): uint32. index: int64 tensor, seed: int64."""
    low = (index & 0xFFFFFFFF).to(tl.uint32) + (seed & 0xFFFFFFFF).to(tl.uint32)
    high = ((index >> 32) & 0xFFFFFFFF).to(tl.uint32) + ((seed >> 32) & 0xFFFFFFFF).to(tl.uint32)
    return mix(mix(low) ^ high) >> 8


@triton.jit
def random_signal(index, seed):
    """A hash of (seed, index) as a float32 in [0, 1)."""
    return random24(index, seed).to(tl.float32) * 5.9604644775390625e-08


@triton.jit
def scaled_bonus(scale, unit):
    """float64 both; the product is rounded once to float32."""
    return (scale * unit).to(tl.float32)


@triton.jit
def score(abs_signal, bonus):
    """Paper, Eq. 1; the bonus c ln(t) / (N + eps) comes from a table."""
    return abs_signal + bonus


@triton.jit
def clip_swaps(k, nnz, n, REGROW: tl.constexpr):
    """The weights that an update swaps where k are requested, of n weights nnz active."""
    k = tl.minimum(k, nnz)
    if not REGROW:
        k = tl.minimum(k, n - nnz)
    return k


@triton.jit
def clip_growth(k_grow, dropped, nnz, n, REGROW: tl.constexpr):
    """The weights that grow where k_grow are requested and ``dropped`` of the nnz active ones go."""
    candidates = n - nnz
    if REGROW:
        candidates += dropped
    return tl.minimum(k_grow, candidates)


@triton.jit
def noise(total):
    """The sum of four integers of 24 bits, less its mean: exact but for one conversion."""
    return (total.to(tl.int32) - 33554430).to(tl.float32) * 5.9604644775390625e-08


MOST_SAMPLED = tl.constexpr(8192)  # of a layer, for growth_scale


@triton.jit
def sample_position(stratum, n, round):
    """int64: an index in one of min(n, MOST_SAMPLED) strata of a layer of n weights, by a hash of round and stratum."""
    s = stratum.to(tl.int64)
    start = tl.where(n > MOST_SAMPLED, s * n // MOST_SAMPLED, s)
    end = tl.where(n > MOST_SAMPLED, (s + 1) * n // MOST_SAMPLED, s + 1)
    hashed = mix(mix(stratum.to(tl.uint32)) ^ round.to(tl.uint32))
    return start + ((hashed.to(tl.int64) * (end - start)) >> 32)


@triton.jit
def scale_of_rank(rank):
    """float32: the number of that rank; of NaN and 0 it is 2**-126."""
    return tl.where(rank <= 1, 0x00800000, rank - 1).to(tl.float32, bitcast=True)


@triton.jit
def signed_key(x):
    """int64, >= 0: orders like the float32 with its sign, -0.0 as 0.0, NaN before all."""
    r = rank(x).to(tl.int64)
    return tl.where(r == 0, 0, 0x7F800001 + tl.where(bits_of(x) < 0, 1 - r, r - 1))
