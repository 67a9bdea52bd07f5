"""Training with replayed gradients, in one process or on ranks of any layout, and everything that must come out equal."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from support import layouts
from support.layouts import LAYOUTS, Odd, assemble, local, named
from support.processes import Launcher
from torch import Tensor, nn

import dstee
from dstee import ops

__all__ = [
    "METHODS",
    "OPTIMIZERS",
    "Held",
    "Run",
    "alone",
    "assert_equal",
    "assert_invariant",
    "on_ranks",
    "since",
    "together",
    "train",
]

METHODS: dict[str, Callable[[], dstee.Method]] = {
    "dst-ee": lambda: dstee.DSTEE(),
    "dst-ee-c": lambda: dstee.DSTEE(c=1e-3),
    "rigl-replace": lambda: dstee.RigL(order="replace"),
    "rigl-no-regrow": lambda: dstee.RigL(order="after", regrow=False),
    "set": lambda: dstee.SET(),
    "gmp": lambda: dstee.GMP(),
    "granet": lambda: dstee.GraNet(),
    "snfs": lambda: dstee.SNFS(),
    "dsr": lambda: dstee.DSR(),
    "deepr": lambda: dstee.DeepR(),
    "mest": lambda: dstee.MEST(),
    "mest-soft": lambda: dstee.MEST(soft=True, lam=0.1),
    "gap": lambda: dstee.GaP(),
    "admm": lambda: dstee.ADMM(),
    "admm-global": lambda: dstee.ADMM(scope="global"),
}

OPTIMIZERS: dict[str, Callable[[nn.Module, dstee.SparseModel], torch.optim.Optimizer]] = {
    "sparse-sgd": lambda m, s: dstee.SparseSGD(m.parameters(), s, lr=0.125, momentum=0.9, weight_decay=1e-3),
    "sparse-sgd-dampened": lambda m, s: dstee.SparseSGD(m.parameters(), s, lr=0.125, momentum=0.9, dampening=0.5),
    "sparse-sgd-without-momentum": lambda m, s: dstee.SparseSGD(m.parameters(), s, lr=0.125, weight_decay=1e-3),
    "adamw": lambda m, s: torch.optim.AdamW(m.parameters(), lr=0.01, weight_decay=0.1),
    "sgd": lambda m, s: torch.optim.SGD(m.parameters(), lr=0.125, momentum=0.9, nesterov=True),
}


@dataclass(frozen=True)
class Run:
    """One training. ``before``: sparsify, then lay out; otherwise the other way round. ``forward``: a real forward and backward
    at each step, whose gradients are then replaced, or, with ``replayed=False``, are those that count. ``half``: bfloat16
    weights."""

    method: str = "dst-ee"
    optimizer: str = "sparse-sgd"
    before: bool = False
    forward: bool = False
    half: bool = False
    replayed: bool = True
    steps: int = 16
    every: int = 2
    seed: int = 3

    def __str__(self) -> str:
        return "-".join(
            [self.method, self.optimizer] + ["before"] * self.before + ["forward"] * self.forward + ["half"] * self.half
        )

    def sparsify(self, model: nn.Module) -> dstee.SparseModel:
        schedule = dstee.UpdateSchedule(self.every, self.steps + 1, dstee.ConstantDrop(0.3))
        return dstee.sparsify(model, 0.8, method=METHODS[self.method](), schedule=schedule, seed=self.seed)


@dataclass
class Held:
    """What a process holds after a run. ``facts``: what all must agree on. ``values``: 1-D tensors by "kind name", each with
    the elements ``where[name]``."""

    facts: dict[str, Any]
    values: dict[str, Tensor]
    where: dict[str, Tensor]


def train(
    run: Run,
    lay: Callable[[Odd], nn.Module] = lambda model: model,
    where: dict[str, Tensor] | None = None,
    after: Callable[[int, nn.Module, dstee.SparseModel, torch.optim.Optimizer], object] = lambda *_: None,
    first: int = 1,
    last: int | None = None,
) -> Held:
    """The masks before the first step and after each, and all that is there at the end. ``after``: called with the step after
    it, and with ``first - 1`` before the first. ``last``: the last step, if not the run's."""
    model: Any = Odd().bfloat16() if run.half else Odd()
    sparse = run.sparsify(model) if run.before else None
    model = lay(model)
    where = layouts.held(model) if where is None else where
    sparse = run.sparsify(model) if sparse is None else sparse
    optimizer = OPTIMIZERS[run.optimizer](model, sparse)
    held = Held({}, {}, where)
    after(first - 1, model, sparse, optimizer)
    look(held, sparse, first - 1)
    inputs = layouts.inputs().to(next(model.parameters()).dtype)
    for step in range(first, (last or run.steps) + 1):
        if run.forward:
            (model(inputs) - 0.25).square().mean().backward()
        if run.replayed:
            layouts.replay(model, where, step)
        held.facts[f"updated at {step}"] = sparse.step(optimizer)
        optimizer.zero_grad()
        look(held, sparse, step)
        after(step, model, sparse, optimizer)
        if run.forward and step == 3:
            model(inputs)  # FSDP2 leaves the model gathered
    layouts.reshard(model)
    look_at_weights(held, model, optimizer)
    return held


def look(held: Held, sparse: dstee.SparseModel, step: int) -> None:
    """The masks and numbers after ``step``, and the counters."""
    held.facts |= {f"t after {step}": sparse.t, f"round after {step}": sparse.round}
    for key, layer in sparse.layers.items():
        name = key.removeprefix("module.")
        n = held.where[name].numel()
        layer.follow()
        mask = ops.unpack_mask(layer.mask_bits, (n,)) if n else torch.zeros(0, dtype=torch.bool)
        held.facts[f"nnz after {step} {name}"] = layer.nnz
        held.values[f"mask after {step} {name}"] = mask
        if layer.counts is not None:
            held.values[f"counts after {step} {name}"] = layer.counts.clone()


def look_at_weights(held: Held, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    for name, p in named(model).items():
        held.values[f"weight {name}"] = local(p)
        for key, value in optimizer.state.get(p, {}).items():
            if isinstance(value, Tensor) and value.shape == p.shape:
                held.values[f"{key} {name}"] = local(value)


def on_rank(rank: int, name: str, n: int, runs: Sequence[Run]) -> list[Held]:
    layout = LAYOUTS[name]
    where = layouts.places(layout, n)
    return [train(run, functools.partial(layout.lay, n=n), where) for run in runs]


def on_ranks(launcher: Launcher, name: str, n: int, *runs: Run) -> list[Held]:
    """The runs on ``n`` ranks, put together to whole tensors. Raises AssertionError where ranks disagree."""
    by_rank = launcher.run(n, on_rank, name, n, runs, limit=30 + 30 * len(runs))
    return [together([of_rank[i] for of_rank in by_rank]) for i in range(len(runs))]


def together(parts: Sequence[Held]) -> Held:
    for rank, part in enumerate(parts):
        refuse_other_facts(part.facts, parts[0].facts, f"rank {rank}", "rank 0")
        assert part.values.keys() == parts[0].values.keys()
    return Held(parts[0].facts, assemble([p.values for p in parts], [p.where for p in parts]), {})


def since(held: Held, step: int) -> Held:
    """Without what was before ``step`` was made: what a run that starts after it sees."""

    def late(key: str) -> bool:
        moment = re.search(r" (after|at) (\d+)", key)
        return moment is None or int(moment[2]) >= step + (moment[1] == "at")

    facts = {key: fact for key, fact in held.facts.items() if late(key)}
    return Held(facts, {key: value for key, value in held.values.items() if late(key)}, held.where)


def alone(run: Run) -> Held:
    """The run in one process."""
    return _alone(replace(run, before=False, forward=False))


@functools.cache
def _alone(run: Run) -> Held:
    return train(run)


def assert_invariant(held: Held, step: int) -> None:
    """Every layer has as many active weights as it says, after each step up to ``step``; at the end all that is shaped as its
    weight is 0 outside the mask."""
    for key, mask in held.values.items():
        kind, _, rest = key.partition(" after ")
        if kind == "mask":
            assert int(mask.sum()) == held.facts[f"nnz after {rest}"], key
    for name in [key.split()[-1] for key in held.values if key.startswith(f"mask after {step} ")]:
        off = ~held.values[f"mask after {step} {name}"]
        for key, value in held.values.items():
            if key.endswith(f" {name}") and " after " not in key:
                assert not value[off].any(), key


def refuse_other_facts(a: dict[str, Any], b: dict[str, Any], who: str, other: str) -> None:
    odd = [f"{key}: {who} has {a.get(key)}, {other} {b.get(key)}" for key in a | b if a.get(key) != b.get(key)]
    assert not odd, "; ".join(odd[:3])


def assert_equal(got: Held, want: Held) -> None:
    """Bit for bit; names what differs first."""
    refuse_other_facts(got.facts, want.facts, "these ranks", "one process")
    assert got.values.keys() == want.values.keys(), got.values.keys() ^ want.values.keys()
    for key, value in want.values.items():
        mine = got.values[key]
        assert mine.dtype is value.dtype and mine.shape == value.shape, key
        same = torch.equal(mine.view(torch.uint8), value.view(torch.uint8))
        assert same, f"{key}: {int((mine != value).sum())} of {value.numel()} values differ"
