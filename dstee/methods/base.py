"""What a method decides: the masks to start with, when they are updated, and what an update does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from dstee.methods.actions import Action, Swap
from dstee.methods.context import Start, Step, Update
from dstee.schedule import UpdateSchedule

__all__ = ["Group", "Method", "Order"]

Order = Literal["after", "replace"]
Group = Literal["dense", "at initialisation", "dense-to-sparse", "dynamic"]


@dataclass(frozen=True, kw_only=True)
class Method:
    """What all methods share. A subclass has settings (fields) and says what differs by the hooks; it touches no bits,
    counters or kernels. By default masks start at random, and an update drops the active weights closest to zero and grows
    as many where abs(gradient) is largest.

    Settings never change; what a method remembers from step to step lies in the model: numbers
    (:meth:`initial_numbers`) and tensors like the weights (``keeps``), saved and loaded with the masks.

    Args:
        order: "after": a due step does SGD, then drops by the new weights and grows by the same gradient (ITOP, GraNet);
            "replace": it updates the mask instead of doing SGD (paper's Algorithm 1, RigL).
        regrow: weights dropped in an update are candidates for growth in it.
        reset_regrown: those that are dropped and regrown start at 0 instead of keeping their value.
    """

    order: Order = "after"
    regrow: bool = True
    reset_regrown: bool = False

    name: ClassVar[str]
    """As people write it, in tables and messages."""
    key: ClassVar[str]
    """Name on the command line and in checkpoints."""
    group: ClassVar[Group] = "dynamic"
    """Under which heading of a table it stands."""
    updates: ClassVar[bool] = True
    """Whether there are mask updates at all."""
    needs_counter: ClassVar[bool] = False
    needs_gradients: ClassVar[bool] = False
    """An update ranks the dense gradient."""
    needs_every_gradient: ClassVar[bool] = False
    """Every step reads the dense gradient, for an average of it."""
    needs_batches: ClassVar[bool] = False
    """``sparsify`` must be given batches of data."""
    needs_whole_weights: ClassVar[bool] = False
    """``start`` or updates look at whole weights, which no rank has where they are cut among several: refused there. All others
    count what they find over the ranks (:meth:`dstee.methods.Update.over_ranks`)."""
    needs_stop: ClassVar[bool] = False
    """The schedule must say when updates end, because something must be reached by then."""
    starts_denser: ClassVar[bool] = False
    """The first masks may hold more weights than the budget, which ``sparsify`` must know: given masks are refused."""
    moves_budgets: ClassVar[bool] = False
    """Updates change how many weights of a layer are active."""
    chooses_budgets: ClassVar[bool] = False
    """The first masks share the budget out to the layers by themselves: a state may hold other numbers than the model has."""
    swaps_schedule: ClassVar[bool] = False
    """A ``plan`` of its own swaps the schedule's share of each layer all the same, so that share bounds what it can explore."""
    keeps: ClassVar[tuple[str, ...]] = ()
    """Names of tensors, float32 and like the weights, 0 at first, that the method keeps for each layer (``u.state(name)``)."""

    def __post_init__(self) -> None:
        if self.order not in ("after", "replace"):
            raise ValueError(f"order must be 'after' or 'replace', got {self.order!r}")
        for name in ("regrow", "reset_regrown"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be True or False, got {getattr(self, name)!r}")

    # --- hooks -----------------------------------------------------------------------------------------------------------

    def start(self, s: Start) -> Mapping[str, Tensor] | None:
        """The first masks (bool, by name); None: random ones of the budget. :func:`dstee.masks_from_scores` makes them of
        scores. The weights must be as they were when it returns."""
        return None

    def due(self, t: int, schedule: UpdateSchedule) -> bool:
        """Whether step ``t``, from 1, updates the masks."""
        return schedule.is_due(t)

    def before_step(self, c: Step) -> None:
        """After backward, before the optimizer's step: may write to ``c.grads`` in place, which are unscaled, and to
        ``c.state(name)``. Runs at every step, of each optimizer for the layers that it holds, but not for updates that replace
        the step. The step may still be skipped or fail: ``c.numbers`` cannot be replaced here."""

    def after_step(self, c: Step) -> None:
        """After every optimizer step, before an update that is due: may write to active weights, ``c.weights``, in place (what
        it writes to others is 0 again afterwards), to ``c.state(name)``, and replace ``c.numbers[name]``. Not called where an
        update replaces the step."""

    def plan(self, u: Update) -> Sequence[Action]:
        """What the update does, in order. Called before the step, when ``u.weights`` are still the old ones: what depends on
        weights, masks or ``u.state(name)`` belongs in functions inside the actions, which get the same ``u`` after the step,
        and see what actions before theirs have done. Keep numbers of layers in tensors [L], as ``u.nnz`` and ``u.k`` are:
        reading them waits for a GPU, once for each layer where it is done in a loop."""
        return [Swap()]

    def total(self, u: Update) -> int:
        """Active weights of the layers together after the update; default: as many as before it. Asked before the actions and
        held against what they did."""
        return u.total

    def initial_numbers(self) -> dict[str, float]:
        """The numbers that the method keeps (``u.numbers``), at the start."""
        return {}

    # --- what follows from them ------------------------------------------------------------------------------------------

    def update_steps(self, schedule: UpdateSchedule, steps: int) -> Sequence[int]:
        """Which of the steps 1 to ``steps`` update the masks, in order."""
        if not self.updates:
            return ()
        if type(self).due is not Method.due:
            return [t for t in range(1, steps + 1) if self.due(t, schedule)]
        last = steps if schedule.stop is None else min(steps, schedule.stop - 1)
        return range(schedule.every, last + 1, schedule.every)

    @property
    def is_bounded(self) -> bool:
        """Whether updates swap the schedule's share of each layer's active weights, and nothing else."""
        own = type(self)
        swaps = self.swaps_schedule or own.plan is Method.plan
        return swaps and own.due is Method.due and not (self.starts_denser or self.moves_budgets)

    # --- in files --------------------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, str | float | bool]:
        """Plain values for a checkpoint; :func:`dstee.methods.method_from_dict` is the inverse."""
        return {"method": self.key, **asdict(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Method:
        """The method with these fields, as :meth:`to_dict` has them but for "method".

        Raises:
            ValueError, TypeError: a value is missing, unknown or out of range.
        """
        return cls(**values)
