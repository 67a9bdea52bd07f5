"""Who is timed: dstee's backends, the same update and step as one writes them with torch, real peers where installed.

A contender opens a :class:`Session` on a :class:`Setting`. Before every call ``restore`` brings back the state at the start, so
that each timed call does the same work and its result can be checked.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dstee import backends, ops
from dstee.encoding import bonus_table
from dstee.testing import assert_same_bits

from . import expected
from .expected import Expected, array
from .layers import ROUND, Layers, masks_of

STEP: dict[str, Any] = {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}
MOST_FOR_REFERENCE = 40_000_000  # weights; above, the gate compares with bench.expected, which needs less time and memory


@dataclass
class Setting:
    """What all contenders of one row are given. ``before`` is never written; ``work`` is shared, so restore before a call."""

    op: str
    before: Layers
    density: float
    swap: float
    device: str = "cpu"
    shared: dict[str, list[Tensor]] = field(default_factory=dict)
    by_rule: dict[str, list[Expected]] = field(default_factory=dict)

    @functools.cached_property
    def work(self) -> Layers:
        return self.before.clone()

    @functools.cached_property
    def bonus(self) -> Tensor:
        return bonus_table(1e-4, 1.0, 1000, ROUND).to(self.device)

    @functools.cached_property
    def N(self) -> list[Tensor]:
        layers = zip(self.before.counts, self.before.mask_bits, self.before.shapes, strict=True)
        return [ops.decode_counts(counts, bits, ROUND, shape) for counts, bits, shape in layers]

    @property
    def gate(self) -> str:
        return "reference" if self.before.n <= MOST_FOR_REFERENCE else "the rule in numpy"

    @functools.cached_property
    def expected(self) -> Layers:
        """The state after the op, on the CPU, by the reference or, for large cases, by the rules in numpy."""
        state = self.before.to("cpu") if self.device != "cpu" else self.before.clone()
        if self.op == "masked_sgd":  # elementwise, cheap at any size
            with backends.use_backend("reference"):
                ops.masked_sgd_(state.params, state.grads, state.momenta, state.mask_bits, **STEP)
        elif self.gate == "reference":
            with backends.use_backend("reference"):
                update(state, self.bonus.cpu())
        else:
            for i, (layer, mask) in enumerate(zip(self.outcome("DST-EE"), list(state.masks), strict=True)):
                after = torch.from_numpy(layer.mask).view(mask.shape)
                gone = torch.from_numpy(layer.dropped & ~layer.grown).view(mask.shape)
                state.params[i].masked_fill_(gone, 0)
                state.mask_bits[i] = ops.pack_mask(after)
                state.counts[i] = ops.encode_counts(self.N[i].cpu() + after, after, ROUND + 1)
        return state

    def outcome(self, rule: str) -> list[Expected]:
        """Every layer after an update by ``rule``, by the code in :mod:`expected`."""
        if rule not in self.by_rule:
            b, bonus = self.before, self.bonus.cpu().numpy()
            layers = zip(b.masks, b.params, b.grads, self.N, b.k, strict=True)
            self.by_rule[rule] = [
                RULES[rule](array(mask), array(w), array(g), array(N), bonus, k) for mask, w, g, N, k in layers
            ]
        return self.by_rule[rule]


RULES: dict[str, Callable[..., Expected]] = {
    "DST-EE": expected.dst_ee,
    "DST-EE, ties to chance": expected.score_only,
    "DST-EE by thresholds": lambda mask, w, g, N, bonus, k: expected.by_threshold(
        mask, w, expected.dst_ee_keys(g, N, bonus) >> 32, k, grow_ties=True
    ),
    "RigL by threshold": lambda mask, w, g, N, bonus, k: expected.by_threshold(mask, w, expected.rank(g), k, grow_ties=False),
}


def update(state: Layers, bonus: Tensor) -> None:
    ops.drop_grow_(state.params, state.grads, None, state.mask_bits, state.counts, state.k, bonus=bonus, round=ROUND)


class Session:
    """One contender at work. ``outputs`` are the tensors whose bits are its result; ``check`` says what is wrong with them."""

    exact = False  # True: the rule decides ties, so that results may not differ between repeats

    def __init__(self, setting: Setting) -> None:
        self.setting = setting

    def restore(self) -> None:
        raise NotImplementedError

    def call(self) -> None:
        raise NotImplementedError

    def outputs(self) -> list[Tensor]:
        raise NotImplementedError

    def check(self) -> str | None:
        raise NotImplementedError

    def close(self) -> None:
        """Lets go of what the session holds alone."""


@dataclass(frozen=True)
class Contender:
    """``rule``: what it computes, for the report. ``step``: the contender of masked_sgd that goes with this update.

    ``slow``: seconds for each call on large layers; a sweep runs it at the first density of a case only.
    """

    name: str
    op: str
    rule: str
    open: Callable[[Setting], Session]
    ours: bool = False
    step: str = ""
    slow: bool = False
    why_not: Callable[[str, str], str | None] = lambda device, dtype: None


def copy_into(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    torch._foreach_copy_(list(targets), list(sources))


# --- dstee ---------------------------------------------------------------------------------------------------------------


class Ours(Session):
    """A backend of dstee, through the public functions."""

    exact = True

    def __init__(self, setting: Setting, backend: str) -> None:
        super().__init__(setting)
        self.backend = backend

    def restore(self) -> None:
        work, before = self.setting.work, self.setting.before
        copy_into(work.params, before.params)
        if self.setting.op == "drop_grow":
            copy_into(work.mask_bits, before.mask_bits)
            copy_into(work.counts, before.counts)
        else:
            copy_into(work.momenta, before.momenta)

    def call(self) -> None:
        with backends.use_backend(self.backend):
            self.run()

    def run(self) -> None:
        work = self.setting.work
        if self.setting.op == "drop_grow":
            update(work, self.setting.bonus)
        else:
            ops.masked_sgd_(work.params, work.grads, work.momenta, work.mask_bits, **STEP)

    def outputs(self) -> list[Tensor]:
        work = self.setting.work
        return work.params + (work.mask_bits + work.counts if self.setting.op == "drop_grow" else work.momenta)

    def check(self) -> str | None:
        names = ("params", "mask_bits", "counts") if self.setting.op == "drop_grow" else ("params", "momenta")
        try:
            for name in names:
                assert_same_bits(getattr(self.setting.work, name), getattr(self.setting.expected, name), name)
        except AssertionError as error:
            return str(error)
        return None


class Compiled(Ours):
    """torch.compile of the reference, one layer at a time with symbolic sizes, so that it compiles once, not per layer."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting, "reference")
        from dstee import reference

        self._compiled = torch.compile(reference.drop_grow_, dynamic=True)

    @torch.no_grad()
    def call(self) -> None:
        work, bonus = self.setting.work, self.setting.bonus
        for w, g, bits, counts, k in zip(work.params, work.grads, work.mask_bits, work.counts, work.k, strict=True):
            self._compiled(
                [w.view(-1)], [g.view(-1)], [], [bits], [counts], [k], None, bonus, ROUND, None, [], [], [],
                True, False, [], None, None,
            )  # fmt: skip


def _backend_why_not(name: str, op: str) -> Callable[[str, str], str | None]:
    def why_not(device: str, dtype: str) -> str | None:
        if name not in backends.BACKENDS:
            return f"this dstee has no {name} backend"
        return backends.BACKENDS[name].why_not(f"{op}_", torch.device(device))

    return why_not


# --- the same update in torch --------------------------------------------------------------------------------------------


class TorchUpdate(Session):
    """An update of bool or float masks, written with torch's own operations."""

    mask_dtype = torch.bool
    rule = ""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.masks = [m.to(self.mask_dtype, copy=True) for m in setting.before.masks]
        self.N = [n.clone() for n in setting.N]

    def restore(self) -> None:
        copy_into(self.setting.work.params, self.setting.before.params)
        copy_into(self.masks, self.setting.before.masks)
        copy_into(self.N, self.setting.N)

    @torch.no_grad()
    def call(self) -> None:
        work = self.setting.work
        for w, g, mask, N, k in zip(work.params, work.grads, self.masks, self.N, work.k, strict=True):
            if k:
                self.layer(w.view(-1), g.view(-1), mask.view(-1), N.view(-1), k)

    def layer(self, w: Tensor, g: Tensor, mask: Tensor, N: Tensor, k: int) -> None:
        raise NotImplementedError

    def outputs(self) -> list[Tensor]:
        return self.masks + self.setting.work.params

    def check(self) -> str | None:
        return check_update(self.setting, self.setting.outcome(self.rule), self.masks, self.setting.work.params)

    def close(self) -> None:
        self.masks, self.N = [], []


def check_update(setting: Setting, outcome: list[Expected], masks: Sequence[Tensor], params: Sequence[Tensor]) -> str | None:
    """Masks by the rule, weights as they were where they stayed and 0 (or kept, if regrown) elsewhere."""
    before = setting.before
    for i, layer in enumerate(outcome):
        mask, was = array(masks[i]).astype(bool), array(before.masks[i])
        weights = np.where(mask, array(params[i]), 0)
        wrong = expected.disagreement(mask, layer) or expected.wrong_weights(weights, array(before.params[i]), was, mask, layer)
        if wrong:
            return f"layer {i}: {wrong}"
    return None


class TopK(TorchUpdate):
    rule = "DST-EE, ties to chance"

    def layer(self, w: Tensor, g: Tensor, mask: Tensor, N: Tensor, k: int) -> None:
        mask.index_fill_(0, torch.topk(w.abs().masked_fill(~mask, torch.inf), k, largest=False).indices, False)
        score = (g.float().abs() + self.setting.bonus[N]).masked_fill(mask, -torch.inf)
        mask.index_fill_(0, torch.topk(score, k).indices, True)
        w.mul_(mask)
        N.add_(mask)


class FullSort(TorchUpdate):
    """The recipe of the ITOP and GraNet code: a sort of |w| for a threshold, a sort of |g| to grow, float masks."""

    mask_dtype = torch.float32
    rule = "RigL by threshold"

    def layer(self, w: Tensor, g: Tensor, mask: Tensor, N: Tensor, k: int) -> None:
        active = int(mask.sum().item())
        ordered = torch.sort(w.abs()).values
        kept = (w.abs() > ordered[mask.numel() - active + k - 1]).float()
        removed = active - int(kept.sum().item())
        order = torch.sort((g * (kept == 0).float()).abs(), descending=True).indices
        kept[order[:removed]] = 1.0
        mask.copy_(kept)
        w.mul_(mask)


class KthValue(TorchUpdate):
    rule = "DST-EE by thresholds"

    def layer(self, w: Tensor, g: Tensor, mask: Tensor, N: Tensor, k: int) -> None:
        size = w.abs()
        mask.logical_and_(size > torch.kthvalue(size[mask], k).values)
        score = (g.float().abs() + self.setting.bonus[N]).masked_fill(mask, -torch.inf)
        mask.logical_or_(score >= torch.kthvalue(score, score.numel() - k + 1).values)
        w.mul_(mask)
        N.add_(mask)


def _no_compiler(device: str, dtype: str) -> str | None:
    if device == "cuda":
        return None if importlib.util.find_spec("triton") else "triton is not installed"
    from torch._inductor import cpp_builder

    try:
        cpp_builder.get_cpp_compiler()
    except Exception as error:  # torch has several classes for it
        return f"torch.compile finds no C++ compiler ({str(error).splitlines()[0]})"
    return None


DST_EE = "DST-EE, ties by |g| and index"
UPDATES = [
    *(
        Contender(name, "drop_grow", DST_EE, functools.partial(Ours, backend=name), True, name, name == "reference",
                  _backend_why_not(name, "drop_grow"))
        for name in ("native", "triton", "reference")
    ),
    Contender("torch.topk", "drop_grow", "DST-EE, ties to chance", TopK, step="SGD foreach + masks"),
    Contender("kthvalue", "drop_grow", "DST-EE, all that tie at a threshold", KthValue, step="SGD foreach + masks"),
    Contender("full sort", "drop_grow", "RigL as ITOP and GraNet code it: thresholds, float masks", FullSort,
              step="ITOP apply_mask"),
    Contender("torch.compile", "drop_grow", DST_EE + "; the reference, compiled", Compiled, step="SGD foreach + masks",
              slow=True, why_not=_no_compiler),
]  # fmt: skip


def registry(plugins: Sequence[str] = ()) -> list[Contender]:
    """All contenders; ``plugins`` are modules with a list ``CONTENDERS`` of further ones.

    Raises:
        ValueError: two have the same name and op.
    """
    from . import peers, steppers

    found = [*UPDATES, *steppers.STEPS, *peers.CONTENDERS]
    for plugin in plugins:
        found += importlib.import_module(plugin).CONTENDERS
    keys = [(c.op, c.name) for c in found]
    twice = sorted({f"{name} ({op})" for op, name in keys if keys.count((op, name)) > 1})
    if twice:
        raise ValueError(f"contenders of the same name: {', '.join(twice)}")
    return found


__all__ = ["STEP", "Contender", "Session", "Setting", "check_update", "masks_of", "registry"]
