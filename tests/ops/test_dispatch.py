"""Who else may take part in a call of the public ops: wrapper tensors, dispatch modes, tracers, compilers, transforms."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

import dstee
from dstee import ops
from dstee.testing import assert_same_bits

N = 40


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


def arguments() -> dict[str, Any]:
    mask = torch.arange(N) % 4 == 0
    p = torch.where(mask, torch.linspace(-1, 1, N), 0.0)
    return dict(params=[p], grads=[torch.linspace(1, 2, N)], momenta=[p * 0.5], mask_bits=[ops.pack_mask(mask)])


def update(**changed: Any) -> None:
    counts, bonus = [torch.zeros(N, dtype=torch.int16)], dstee.bonus_table(1e-3, 1.0, 10, 3)
    ops.drop_grow_(**(arguments() | dict(counts=counts, k=[3], bonus=bonus, round=3) | changed))


def step(**changed: Any) -> None:
    ops.masked_sgd_(**(arguments() | dict(lr=0.1, momentum=0.9) | changed))


Wrap = Callable[[Tensor], Tensor]
MASK, BITS, COUNTS = torch.arange(N) % 4 == 0, ops.pack_mask(torch.arange(N) % 4 == 0), torch.zeros(N, dtype=torch.int16)
FLOAT, SCALAR = torch.linspace(1, 2, N), torch.ones(1)
# (op, argument): a call in which that argument alone is wrapped
CALLS: dict[tuple[str, str], Callable[[Wrap], Any]] = {
    ("drop_grow_", "params[0]"): lambda wrap: update(params=[wrap(arguments()["params"][0])]),
    ("drop_grow_", "grads[0]"): lambda wrap: update(grads=[wrap(FLOAT)]),
    ("drop_grow_", "momenta[0]"): lambda wrap: update(momenta=[wrap(FLOAT)]),
    ("drop_grow_", "mask_bits[0]"): lambda wrap: update(mask_bits=[wrap(BITS)]),
    ("drop_grow_", "counts[0]"): lambda wrap: update(counts=[wrap(COUNTS)]),
    ("drop_grow_", "drop_scores[0]"): lambda wrap: update(drop_scores=[wrap(FLOAT)]),
    ("drop_grow_", "grow_signal[0]"): lambda wrap: update(grow_signal=[wrap(FLOAT)]),
    ("drop_grow_", "k"): lambda wrap: update(k=wrap(torch.tensor([3]))),
    ("drop_grow_", "round"): lambda wrap: update(round=wrap(torch.tensor([3]))),
    ("drop_grow_", "bonus"): lambda wrap: update(bonus=wrap(dstee.bonus_table(1e-3, 1.0, 10, 3))),
    ("drop_grow_", "lr"): lambda wrap: update(sgd=dstee.SGDRule(wrap(SCALAR), 0.9)),
    ("drop_grow_", "found_inf"): lambda wrap: update(found_inf=wrap(SCALAR)),
    ("masked_sgd_", "params[0]"): lambda wrap: step(params=[wrap(arguments()["params"][0])]),
    ("masked_sgd_", "grads[0]"): lambda wrap: step(grads=[wrap(FLOAT)]),
    ("masked_sgd_", "momenta[0]"): lambda wrap: step(momenta=[wrap(FLOAT)]),
    ("masked_sgd_", "mask_bits[0]"): lambda wrap: step(mask_bits=[wrap(BITS)]),
    ("masked_sgd_", "lr"): lambda wrap: step(lr=wrap(SCALAR)),
    ("masked_sgd_", "grad_scale"): lambda wrap: step(grad_scale=wrap(SCALAR)),
    ("masked_sgd_", "found_inf"): lambda wrap: step(found_inf=wrap(SCALAR)),
    ("pack_mask", "mask"): lambda wrap: ops.pack_mask(wrap(MASK)),
    ("unpack_mask", "mask_bits[0]"): lambda wrap: ops.unpack_mask(wrap(BITS), (N,)),
    ("encode_counts", "N"): lambda wrap: ops.encode_counts(wrap(MASK.int()), MASK, 3),
    ("encode_counts", "mask"): lambda wrap: ops.encode_counts(MASK.int(), wrap(MASK), 3),
    ("decode_counts", "counts[0]"): lambda wrap: ops.decode_counts(wrap(COUNTS), BITS, 3, (N,)),
    ("decode_counts", "mask_bits[0]"): lambda wrap: ops.decode_counts(COUNTS, wrap(BITS), 3, (N,)),
    ("count_active", "mask_bits[0]"): lambda wrap: ops.count_active([wrap(BITS)]),
    ("count_explored", "counts[0]"): lambda wrap: ops.count_explored([wrap(COUNTS)], [BITS]),
    ("count_explored", "mask_bits[0]"): lambda wrap: ops.count_explored([COUNTS], [wrap(BITS)]),
    ("count_outside", "params[0]"): lambda wrap: ops.count_outside([wrap(FLOAT)], [BITS]),
    ("count_outside", "mask_bits[0]"): lambda wrap: ops.count_outside([FLOAT], [wrap(BITS)]),
}


def test_every_tensor_argument_is_tried() -> None:
    """Of every op's schema; the public functions have ``lr`` and ``k`` for two arguments each."""
    renamed = {"lr": "lr", "k_tensor": "k", "round_tensor": "round"}
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


FUNCTIONS: dict[str, tuple[Callable[..., Tensor], Callable[[int], list[Tensor]]]] = {
    "drop_grow_": (traced_update, lambda seed: inputs(seed, 6)),
    "masked_sgd_": (traced_step, lambda seed: inputs(seed, 4)),
    "pack_mask": (lambda mask: ops.pack_mask(mask), masks),
    "unpack_mask": (lambda bits: ops.unpack_mask(bits, (N,)), lambda seed: [ops.pack_mask(masks(seed)[0])]),
    "encode_counts": (lambda N, mask: ops.encode_counts(N, mask, 3), lambda seed: [masks(seed)[0].int() * 2, masks(seed)[0]]),
    "decode_counts": (lambda c, bits: ops.decode_counts(c, bits, 3, (N,)), lambda seed: inputs(seed, 5)[:2:-1]),
    "count_active": (lambda bits: ops.count_active([bits]), lambda seed: [ops.pack_mask(masks(seed)[0])]),
    "count_explored": (lambda c, bits: ops.count_explored([c], [bits]), lambda seed: inputs(seed, 5)[:2:-1]),
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
    torch.ops.dstee.drop_grow_([p], [g], [m], [bits], [], [3], None, None, 3, None, [], [], [], True, False, RULE, None, None)


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
