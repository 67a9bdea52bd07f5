"""The scalar maths of the update in Triton: the only place where it stands in this language.

The same operations in the same order as csrc/rules.h and dstee/reference.py, each rounded once: kernels are launched with
``enable_fp_fusion=False``. Conversions that the hardware does in its own way (NaN) are spelt out.
"""

import triton
import triton.language as tl

# Launch option of every kernel: no fused multiply-adds.
OPTIONS = {"enable_fp_fusion": False}


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


# What an SGD rule is made of: a sum of these is a kernel's constant, the numbers themselves are arguments.
HAS_MOMENTUM = tl.constexpr(1)
HAS_DECAY = tl.constexpr(2)
SCALED = tl.constexpr(4)
NESTEROV = tl.constexpr(8)
MAXIMIZE = tl.constexpr(16)
FIRST_STEP = tl.constexpr(32)
NO_STEP = tl.constexpr(-1)


@triton.jit
def sgd(w, g, m, lr, momentum, damped, weight_decay, grad_scale, RULE: tl.constexpr):
    """One SGD step, torch.optim.SGD's definitions; damped is 1 - dampening. Returns the new weight and momentum."""
    d = g
    if SCALED & RULE:
        d = tl.math.div_rn(d, grad_scale)
    if MAXIMIZE & RULE:
        d = -d
    if HAS_DECAY & RULE:
        d = d + w * weight_decay
    u = d
    if HAS_MOMENTUM & RULE:
        if FIRST_STEP & RULE:
            m = d
        else:
            m = m * momentum + d * damped
        if NESTEROV & RULE:
            u = d + m * momentum
        else:
            u = m
    return w - u * lr, m


@triton.jit
def flip_count(stored, round):
    """The stored counter <-> N, by the parity of the mask: inactive stores N, active round + 1 - N."""
    return round + 1 - stored


@triton.jit
def counter_of(stored, active, round, table_size):
    """The counter N as a place in a table: one that the table does not have, a negative one too, takes the last."""
    counter = tl.where(active, flip_count(stored, round), stored)
    return tl.where((counter < 0) | (counter >= table_size), table_size - 1, counter)


@triton.jit
def mix(x):
    """A 32-bit finaliser with full avalanche; uint32."""
    x = x ^ (x >> 16)
    x = x * 0x7FEB352D
    x = x ^ (x >> 15)
    x = x * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def random_signal(index, seed):
    """The top 24 bits of a hash of (seed, index), as a float32 in [0, 1). index: int64 tensor, seed: int64."""
    low = (index & 0xFFFFFFFF).to(tl.uint32) + (seed & 0xFFFFFFFF).to(tl.uint32)
    high = ((index >> 32) & 0xFFFFFFFF).to(tl.uint32) + ((seed >> 32) & 0xFFFFFFFF).to(tl.uint32)
    return (mix(mix(low) ^ high) >> 8).to(tl.float32) * 5.9604644775390625e-08


@triton.jit
def score(abs_signal, bonus):
    """Paper, Eq. 1; the bonus c ln(t) / (N + eps) comes from a table."""
    return abs_signal + bonus
