"""Who else may take part in a call of the public ops: wrapper tensors, dispatch modes, tracers, compilers, transforms."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from support.op_calls import CALLS, UNITS, N, arguments, step
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

import dstee
from dstee import ops
from dstee.testing import assert_same_bits


class Wrapper(Tensor):
    """A tensor that holds another: any subclass with ``__torch_dispatch__``."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Wrapper:
        meta = dict(dtype=inner.dtype, device=inner.device, strides=inner.stride())
        wrapper = Tensor._make_wrapper_subclass(cls, inner.shape, **meta)
        wrapper.inner = inner
        return wrapper

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        plain = tree_map(lambda x: x.inner if isinstance(x, cls) else x, (args, kwargs or {}))
        return tree_map(lambda x: cls(x) if isinstance(x, Tensor) else x, func(*plain[0], **plain[1]))


@pytest.fixture(scope="module")
def one_rank() -> Iterator[None]:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def as_fake(t: Tensor) -> Tensor:
    return FakeTensorMode().from_tensor(t)


def as_dtensor(t: Tensor) -> Tensor:
    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
    return torch.distributed.tensor.DTensor.from_local(t, mesh)


WRAPPERS: dict[str, Callable[[Tensor], Tensor]] = {
    "FakeTensor": as_fake,
    "DTensor": as_dtensor,
    "functional tensor": torch._to_functional_tensor,
    "Wrapper": Wrapper,
}


def test_every_tensor_argument_is_tried() -> None:
    """Of every op's schema; the public functions have ``lr`` and ``k`` for two arguments each."""
    renamed = {"k_tensor": "k", "k_grow_tensor": "k_grow", "k_drop_tensor": "k_drop", "round_tensor": "round"}
    renamed |= {"total_tensor": "total"}
    for op in {op for op, _ in CALLS}:
        schema = getattr(torch.ops.dstee, op).default._schema.arguments
        tensors = {renamed.get(a.name, a.name) for a in schema if "Tensor" in str(a.type)}
        assert tensors == {argument.removesuffix("[0]") for name, argument in CALLS if name == op}, op


@pytest.mark.parametrize("kind", WRAPPERS)
@pytest.mark.parametrize(("op", "argument"), CALLS, ids=lambda value: value)
def test_wrappers_are_refused_by_name(backend: Any, one_rank: None, op: str, argument: str, kind: str) -> None:
    with pytest.raises(TypeError) as error:
        CALLS[op, argument](WRAPPERS[kind])
    assert str(error.value).startswith(f"{argument} is a {kind}, which has no memory of its own here"), error.value


def test_subclasses_with_memory_of_their_own_are_tensors() -> None:
    class Named(Tensor):
        pass

    plain, named = arguments(), arguments()
    named = {name: [t.as_subclass(Named) for t in tensors] for name, tensors in named.items()}
    ops.masked_sgd_(**plain, lr=0.1, momentum=0.9)
    ops.masked_sgd_(**named, lr=0.1, momentum=0.9)
    assert_same_bits([t.as_subclass(Tensor) for t in named["params"]], plain["params"])


# --- graphs --------------------------------------------------------------------------------------------------------------


def traced_update(p: Tensor, g: Tensor, m: Tensor, bits: Tensor, counts: Tensor, bonus: Tensor) -> Tensor:
    sgd = dstee.SGDRule(0.1, 0.9, weight_decay=0.1)
    ops.drop_grow_([p], [g], [m], [bits], [counts], [3], bonus=bonus, round=3, sgd=sgd)
    return p + 0


def traced_step(p: Tensor, g: Tensor, m: Tensor, bits: Tensor) -> Tensor:
    ops.masked_sgd_([p], [g], [m], [bits], lr=0.1, momentum=0.9, nesterov=True)
    return p + 0


def inputs(seed: int, number: int) -> list[Tensor]:
    """Of ``traced_update``, or the first of them."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(N, generator=generator) < 0.3
    p, g = torch.randn(N, generator=generator).masked_fill(~mask, 0), torch.randn(N, generator=generator)
    counts = torch.randint(0, 3, (N,), generator=generator, dtype=torch.int16)
    return [p, g, p * 0.5, ops.pack_mask(mask), counts, dstee.bonus_table(0.1, 1.0, 100, 3)][:number]


def masks(seed: int) -> list[Tensor]:
    return [torch.rand(N, generator=torch.Generator().manual_seed(seed)) < 0.3]


def traced_keep(p: Tensor, scores: Tensor, m: Tensor, bits: Tensor, counts: Tensor) -> Tensor:
    ops.global_keep_([scores], [p], [m], [bits], [counts], 4, round=3)
    return p + 0


def traced_histogram(p: Tensor, g: Tensor, bits: Tensor, counts: Tensor, keys: Tensor, units: Tensor) -> Tensor:
    given: dict[str, Any] = dict(bonus_scale=torch.ones(1), bonus=units, round=3, growth=True, word=0, shift=16)
    return ops.key_histogram([p], [g], [bits], [counts], prefix=keys, drop_from=keys + 0x0080_0000, **given)


def histogram_inputs(seed: int) -> list[Tensor]:
    p, g, _, bits, counts, _ = inputs(seed, 6)
    return [p, g, bits, counts, torch.full((1, 3), 0x3F00_0000 + seed), UNITS.clone()]


FUNCTIONS: dict[str, tuple[Callable[..., Tensor], Callable[[int], list[Tensor]]]] = {
    "drop_grow_": (traced_update, lambda seed: inputs(seed, 6)),
    "masked_sgd_": (traced_step, lambda seed: inputs(seed, 4)),
    "pack_mask": (lambda mask: ops.pack_mask(mask), masks),
    "unpack_mask": (lambda bits: ops.unpack_mask(bits, (N,)), lambda seed: [ops.pack_mask(masks(seed)[0])]),
    "encode_counts": (lambda N, mask: ops.encode_counts(N, mask, 3), lambda seed: [masks(seed)[0].int() * 2, masks(seed)[0]]),
    "decode_counts": (lambda c, bits: ops.decode_counts(c, bits, 3, (N,)), lambda seed: inputs(seed, 5)[:2:-1]),
    "count_active": (lambda bits: ops.count_active([bits]), lambda seed: [ops.pack_mask(masks(seed)[0])]),
    "count_explored": (lambda c, bits: ops.count_explored([c], [bits]), lambda seed: inputs(seed, 5)[:2:-1]),
    "count_below": (lambda p, bits: ops.count_below([p], [bits], torch.full((1,), 0.5)), lambda seed: inputs(seed, 4)[::3]),
    "global_keep_": (traced_keep, lambda seed: inputs(seed, 5)),
    "growth_scale": (lambda g, bits: ops.growth_scale([g], [bits], [5], 3), lambda seed: inputs(seed, 4)[1::2]),
    "key_histogram": (traced_histogram, histogram_inputs),
    "count_outside": (lambda p, bits: ops.count_outside([p], [bits]), lambda seed: inputs(seed, 4)[1::2]),
}


class Module(nn.Module):
    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Tensor) -> Tensor:
        return self.function(*args)


def compiled(function: Callable[..., Tensor], args: list[Tensor]) -> Callable[..., Tensor]:
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, backend="aot_eager")


TRACERS: dict[str, Callable[[Callable[..., Tensor], list[Tensor]], Callable[..., Tensor]]] = {
    "make_fx": lambda f, args: make_fx(f)(*args),
    "make_fx fake": lambda f, args: make_fx(f, tracing_mode="fake")(*args),
    "make_fx symbolic": lambda f, args: make_fx(f, tracing_mode="symbolic")(*args),
    "compile": compiled,
    "export": lambda f, args: torch.export.export(Module(f), tuple(args), strict=False).module(),
    "export strict": lambda f, args: torch.export.export(Module(f), tuple(args), strict=True).module(),
}


@pytest.mark.filterwarnings("ignore")  # torch's own, of its tracers
@pytest.mark.parametrize("tracer", TRACERS)
@pytest.mark.parametrize("op", FUNCTIONS)
def test_graphs_compute_what_the_op_does(op: str, tracer: str) -> None:
    function, make = FUNCTIONS[op]
    graph = TRACERS[tracer](function, [t.clone() for t in make(0)])
    for seed in (0, 1):  # what is baked in shows with other inputs
        expected, got = [t.clone() for t in make(seed)], [t.clone() for t in make(seed)]
        assert_same_bits(graph(*got), function(*expected), "result")
        assert_same_bits(got, expected, "arguments afterwards")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("op", FUNCTIONS)
def test_scripts_are_right_or_refused(op: str) -> None:
    """TorchScript drops an op that returns nothing: such ops refuse to be recorded."""
    function, make = FUNCTIONS[op]
    if op.endswith("_"):
        with pytest.raises(RuntimeError, match=f"torch.jit.trace cannot record dstee.ops.{op}"):
            torch.jit.trace(function, tuple(make(0)), check_trace=False)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of sizes that become constants
        script = torch.jit.trace(function, tuple(make(0)), check_trace=False)
    for seed in (0, 1):
        assert_same_bits(script(*make(seed)), function(*make(seed)), "result")


class Listening(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("op", FUNCTIONS)
def test_dispatch_modes_see_the_op(op: str) -> None:
    function, make = FUNCTIONS[op]
    expected, got = [t.clone() for t in make(0)], [t.clone() for t in make(0)]
    with Listening() as mode:
        result = function(*got)
    assert f"dstee.{op}.default" in mode.seen
    assert_same_bits(result, function(*expected), "result")
    assert_same_bits(got, expected, "arguments afterwards")


def test_bad_arguments_under_a_mode_get_the_words() -> None:
    with Listening(), pytest.raises(ValueError, match=r"grads\[0\] has shape \[39\], expected \[40\]"):
        step(grads=[torch.ones(39)])


TRANSFORMS: dict[str, Callable[[Callable[[Tensor], Tensor], Tensor], Any]] = {
    "vmap": lambda f, x: torch.vmap(f)(torch.stack([x, x])),
    "grad": lambda f, x: torch.func.grad(lambda y: f(y).sum())(x),
    "jvp": lambda f, x: torch.func.jvp(f, (x,), (x,)),
    "jacrev": lambda f, x: torch.func.jacrev(f)(x),
}


@pytest.mark.filterwarnings("ignore")  # jvp scripts its own rules the first time
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_transforms_are_refused_in_words(transform: str) -> None:
    p, g, m, bits = inputs(0, 4)
    before = p.clone()
    with pytest.raises(RuntimeError, match=r"dstee.ops.masked_sgd_ has no rule for torch.func's vmap, grad, jvp"):
        TRANSFORMS[transform](lambda x: traced_step(x, g, m, bits), p)
    assert_same_bits(p, before, "weights")


def test_a_transform_of_something_else_does_not_matter() -> None:
    p, g, m, bits = inputs(0, 4)
    expected = traced_step(p.clone(), g, m.clone(), bits)

    def loss(x: Tensor) -> Tensor:
        return (x * traced_step(p, g, m, bits)).sum()

    assert_same_bits(torch.func.grad(loss)(torch.ones(N)), expected, "gradient")


# --- autograd ------------------------------------------------------------------------------------------------------------

RULE = [0.1, 0.9, 0.0, 0.0, 0.0, 0.0, 0.0]


def raw_step(p: Tensor, g: Tensor, m: Tensor, bits: Tensor) -> None:
    torch.ops.dstee.masked_sgd_([p], [g], [m], [bits], RULE, None, None, None)


def raw_update(p: Tensor, g: Tensor, m: Tensor, bits: Tensor) -> None:
    options: tuple = ([3], None, [], None, None, None, 3, None, [], [], [], [], True, False, RULE, None, None)
    torch.ops.dstee.drop_grow_([p], [g], [m], [bits], [], *options)


@pytest.mark.parametrize("write", [raw_step, raw_update])
def test_autograd_notices_what_the_raw_ops_write(write: Callable[..., None]) -> None:
    p, g, m, bits = inputs(0, 4)
    weight = nn.Parameter(p)
    loss = (weight * weight).sum()
    with torch.no_grad():
        write(weight, g, m, bits)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("write", [raw_step, raw_update])
def test_raw_ops_mark_what_they_write_once(write: Callable[..., None]) -> None:
    p, g, m, bits = inputs(0, 4)
    write(p, g, m, bits)
    assert (p._version, g._version, m._version) == (1, 0, 1)
    with torch.inference_mode():
        write(*inputs(0, 4))


# --- memory that is gone -------------------------------------------------------------------------------------------------


def freed(t: Tensor) -> Tensor:
    """The tensor, its storage freed: torch's own operations read address 0 of it."""
    t = t.clone()
    t.untyped_storage().resize_(0)
    return t


@pytest.mark.parametrize(("op", "argument"), CALLS, ids=lambda value: value)
def test_freed_tensors_are_refused_by_name(backend: Any, op: str, argument: str) -> None:
    with pytest.raises(ValueError) as error:
        CALLS[op, argument](freed)
    assert str(error.value).startswith(f"{argument} has no memory, its storage was freed"), error.value
