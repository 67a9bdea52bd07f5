"""dstee itself: each backend through the public functions, the reference compiled by torch, and SparseSGD in a training."""

from __future__ import annotations

import functools
import importlib.util
import inspect
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

import dstee
from dstee import backends, ops, reference
from dstee.testing import assert_same_bits

from ..layers import ROUND
from ..models import Job
from ..session import STEP, Contender, Session, Setting, copy_into, drop_grow
from ..training import GAP, SGD, Mark, Stepper, Stepping, Trainer, Training
from .registry import register

__all__ = ["Backend", "CompiledReference", "SparseStepping", "SparseTraining"]

DST_EE = "DST-EE, ties by |g| and index"


class Backend(Session):
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
            drop_grow(work, self.setting.bonus)
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


def update_layer(w: Tensor, g: Tensor, mask_bits: Tensor, counts: Tensor, k: int, bonus: Tensor) -> None:
    """One flat layer's update by the reference, whose arguments are those of the op's schema.

    The compiler is given the plain function, without the guard that sets float modes and threads around it.
    """
    plain: Callable[..., None] = inspect.unwrap(reference.drop_grow_)
    plain(
        params=[w], grads=[g], momenta=[], mask_bits=[mask_bits], counts=[counts], k=[k], k_tensor=None, k_grow=[],
        k_grow_tensor=None, bonus=bonus, bonus_scale=None, round=ROUND, round_tensor=None, drop_scores=[], grow_signal=[],
        grow_seeds=[], where=[], regrow=True, reset_regrown=False, sgd=[], lr=None, found_inf=None,
    )  # fmt: skip


class CompiledReference(Backend):
    """torch.compile of the reference, one layer at a time with symbolic sizes, so that it compiles once, not per layer."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting, "reference")
        self.update_layer = torch.compile(update_layer, dynamic=True)

    @torch.no_grad()
    def call(self) -> None:
        work = self.setting.work
        for w, g, bits, counts, k in zip(work.params, work.grads, work.mask_bits, work.counts, work.k, strict=True):
            self.update_layer(w.view(-1), g.view(-1), bits, counts, k, self.setting.bonus)


class SparseTraining(Training):
    def __init__(self, job: Job, density: float, swap: float) -> None:
        super().__init__(job, density, swap)
        schedule = dstee.UpdateSchedule(every=GAP, drop=dstee.ConstantDrop(swap))
        self.sparse = dstee.sparsify(self.model, sparsity=1 - density, distribution="uniform", schedule=schedule)
        self.optimizer = dstee.SparseSGD(self.model.parameters(), self.sparse, **SGD)

    def after(self, mark: Mark) -> bool:
        updated = self.sparse.step(self.optimizer)
        mark("optimizer")
        mark("masks")
        return updated


class SparseStepping(Stepping):
    def __init__(self, model: nn.Module, masks: Mapping[str, Tensor]) -> None:
        super().__init__(model, masks)
        never = dstee.UpdateSchedule(every=1_000_000_000)
        self.sparse = dstee.sparsify(model, masks=masks, schedule=never)
        self.optimizer = dstee.SparseSGD(model.parameters(), self.sparse, **SGD)

    def step(self) -> object:
        return self.sparse.step(self.optimizer)


def _backend_why_not(name: str, op: str) -> Callable[[str, str], str | None]:
    def why_not(device: str, dtype: str) -> str | None:
        if name not in backends.BACKENDS:
            return f"this dstee has no {name} backend"
        return backends.BACKENDS[name].why_not(f"{op}_", torch.device(device))

    return why_not


def _no_compiler(device: str, dtype: str) -> str | None:
    if device == "cuda":
        return None if importlib.util.find_spec("triton") else "triton is not installed"
    from torch._inductor import cpp_builder

    try:
        cpp_builder.get_cpp_compiler()
    except Exception as error:  # torch has several classes for it
        return f"torch.compile finds no C++ compiler ({str(error).splitlines()[0]})"
    return None


for backend in ("native", "triton", "reference"):
    register(
        Contender(backend, "drop_grow", DST_EE, functools.partial(Backend, backend=backend), ours=True, step=backend,
                  slow=backend == "reference", why_not=_backend_why_not(backend, "drop_grow")),
        Contender(backend, "masked_sgd", "masked SGD, each operation rounded once", functools.partial(Backend, backend=backend),
                  ours=True, why_not=_backend_why_not(backend, "masked_sgd")),
    )  # fmt: skip
register(
    Contender("torch.compile", "drop_grow", DST_EE + "; the reference, compiled", CompiledReference,
              step="SGD foreach + masks", slow=True, why_not=_no_compiler),
    Trainer("dstee", "DST-EE; SparseSGD, masks and updates inside the step", SparseTraining, ours=True),
    Stepper("dstee", "sparse.step(optimizer) of a SparseSGD", SparseStepping, ours=True),
)  # fmt: skip
