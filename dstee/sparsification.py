"""How a model becomes sparse: by random masks of a budget, or by given ones."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from numbers import Real
from operator import index
from typing import Any, Literal, SupportsIndex

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from dstee import _checks, rules, sparsity_distribution
from dstee.dead_network import warn_of_dead_parts
from dstee.distributed import agree
from dstee.distributed.check import check_parts
from dstee.distributed.ranks import agree_on, exchange, seed_of_first_rank, sum_each
from dstee.distributed.sharding import (
    Sharding,
    check_sizes,
    everyone_of,
    holders_of,
    reshard,
)
from dstee.distributed.where import local_part
from dstee.layer_batch import count_nonzero
from dstee.layer_shares import refuse_parts
from dstee.memory_order import is_binary
from dstee.method_hooks import fresh_numbers, refuse_without_stop
from dstee.methods import DSTEE, METHODS, Method, Start, Update, find_method, known_methods
from dstee.methods.context import LossFn
from dstee.parameter_names import match_names
from dstee.schedule import UpdateSchedule
from dstee.selection import Candidate, Rules, candidates, refuse_computed, select
from dstee.sparse_layer import SparseLayer, check_cut, make_layer
from dstee.sparse_model import SparseModel, masked_parameters

__all__ = ["Distribution", "fit_masks", "from_masks", "sparsify"]

Distribution = Literal["erk", "uniform", "uniform-dense-first"]
_WARN_ABOVE = 0.1
"""Share of the matrix weights that may stay dense without a warning."""


def sparsify(
    model: nn.Module,
    sparsity: float | Mapping[str, float] | None = None,
    *,
    distribution: Distribution | str = "erk",
    seed: SupportsIndex = 0,
    method: Method | str | None = None,
    schedule: UpdateSchedule | None = None,
    include: Rules = None,
    exclude: Rules = None,
    track_exploration: bool = False,
    masks: Mapping[str, Tensor] | Literal["nonzero", "magnitude"] | None = None,
    batches: Iterable[tuple[Any, Any]] | None = None,
    loss_fn: LossFn = cross_entropy,
) -> SparseModel:
    """Gives the weights of ``model`` masks, zeroes what they rule out, and returns the keeper of the masks.

    Sparse become the weights of Linear, Conv1d-3d, ConvTranspose1d-3d, MultiheadAttention and the ``Conv1D`` of transformers
    (any class of that name with a weight [in, nf]); never norms, biases or embeddings. A tied weight counts once, under its
    first name; tied to an embedding it is one.

    Other matrices stay dense, and ``summary()`` says which and why: frozen weights, recurrent ones, stacks of experts, those of
    other modules and of subclasses with a ``forward`` of their own (``include`` takes all these), and parameters from which
    a module computes its weight (parametrizations, weight_norm, spectral_norm, pruning, standardized convolutions), which
    ``include`` cannot take, because a mask would not hold on that weight. A warning says so where these are more than 10 % of
    all weights with two or more dimensions, embeddings, norms, biases and what ``exclude`` names not counted.

    Args:
        model: changed in place; float32, bfloat16 or float16 weights. float64 is refused: every backend computes in float32,
            each operation rounded once, so that all give the same bits, and float64 weights would lose half of theirs.
        sparsity: share of zeros in [0, 1) over all sparse layers together, default 0.9; or one for each layer by parameter
            name.
        distribution: "erk" (Erdos-Renyi-Kernel; paper, section 4), "uniform", or "uniform-dense-first" (first layer dense);
            in capitals too.
        seed: any integer, numpy's too; the masks depend on it and on the parameter names alone, on every machine.
        method: what an update ranks, or its key ("rigl") for its defaults; default :class:`DSTEE`.
        schedule: when and how much; default every 100 steps, 30 % of the active weights.
        include, exclude: module types, name patterns (as the shell's, for parameters or modules), functions
            ``(name, module, parameter) -> bool``, or lists of these. ``include`` adds to the default (weights with two or more
            dimensions), ``exclude`` wins and reaches everything inside a matching module.
        track_exploration: keep counters for methods that do not need them, for ``dstee.metrics.exploration``.
        masks: what is active at the start, for models that are pruned or fine-tuned already: a dict from parameter name to
            mask (:func:`dstee.export.from_masks`), "nonzero" for the weights that are not 0, or "magnitude" for as many of
            the largest as the budget has, the lowest index first on ties. None: the method's, as a rule random ones.
        batches: pairs (inputs, targets), for methods that look at data before the first step (:class:`dstee.SNIP`) or in an
            update. ``model(inputs)`` is called with each; a tuple or list are its arguments, a mapping its keyword arguments.
            A list or another iterable that starts anew each time.
        loss_fn: ``(output of the model, targets) -> loss`` of these.

    Raises:
        ValueError: the model is sparse already, nothing to make sparse, a pattern that matches nothing, a sparsity out of
            range or unreachable, masks that do not fit, a weight without memory of its own. TypeError: a dtype or a rule that
            is not supported. The model has not changed then.
    """
    if isinstance(masks, Mapping) or masks == "nonzero":
        if sparsity is not None:
            raise ValueError("sparsity and masks are both given: these masks say how many weights are active; leave one out")
        if isinstance(masks, Mapping):
            if include is not None or exclude is not None:
                raise ValueError("masks name the layers: leave out include and exclude")
            refuse_computed("masks", [c for c in candidates(model) if not masks.keys().isdisjoint(c.names())])
            return _with_masks(model, masks, method, schedule, seed, track_exploration)
    elif masks not in (None, "magnitude"):
        raise ValueError(f"masks must be a dict from parameter name to mask, 'nonzero' or 'magnitude', got {masks!r}")
    method, schedule, seed = _check_arguments(model, method, schedule, seed)
    _check_needs(method, schedule, batches, given=masks is not None)
    reshard(model)
    seed = seed_of_first_rank(model, seed)
    chosen, left_out, share = select(model, include, exclude)
    shardings = _check_parameters(chosen, method)
    nnz: dict[str, int] | None = None
    if masks == "nonzero":
        pairs = [(c, local_part(c.param).detach() != 0) for c in chosen]
    else:
        shapes = {c.name: c.param.shape for c in chosen}
        sparsity = 0.9 if sparsity is None else sparsity
        nnz = _budget(shapes, sparsity, distribution)
        if masks == "magnitude":
            pairs = _largest(chosen, nnz, shardings)
        else:
            nnz_at = partial(_budget_at, shapes, sparsity, distribution)
            weights = {c.name: c.param for c in chosen}
            start = Start(model, weights, nnz, nnz_at, seed, schedule, batches, loss_fn, shardings)
            first = method.start(start)
            found = start.random_masks() if first is None else first  # row-major: the same whatever the memory format
            _check_start(method, start, found)
            pairs = [(c, found[c.name]) for c in chosen]
    if share > _WARN_ABOVE:
        lines = "\n  ".join(map(str, left_out))
        warnings.warn(f"{share:.0%} of the matrix weights stay dense; exclude= says that it is meant:\n  {lines}", stacklevel=2)
    sparse = _make(model, pairs, shardings, method, schedule, seed, track_exploration, nnz)
    sparse.left_out = left_out
    if method.needs_batches:
        sparse.batches, sparse.loss_fn = batches, loss_fn
    return sparse


def _check_needs(method: Method, schedule: UpdateSchedule, batches: object, given: bool) -> None:
    """What the method cannot do without."""
    if given and method.starts_denser:
        raise ValueError(
            f"{method.name} starts with more weights than it ends with and chooses them itself: leave out masks, and say "
            "with sparsity= what it is to end with"
        )
    if method.needs_batches and batches is None and not given:
        raise ValueError(
            f"{method.name} looks at data: pass batches=[(inputs, targets), ...], and loss_fn= if the loss is not cross entropy"
        )
    refuse_without_stop(method, schedule)


def _check_start(method: Method, start: Start, masks: Mapping[str, Tensor]) -> None:
    """What a method's ``start`` must give: a mask for each layer, of its shape; as many weights as the budget has."""
    if not isinstance(masks, Mapping):
        raise TypeError(
            f"{method.name}.start must return a dict from parameter name to mask, or None, got {type(masks).__name__}"
        )
    if odd := masks.keys() ^ start.weights.keys():
        raise ValueError(f"{method.name}.start gave masks for other layers than there are: {', '.join(sorted(odd))}")
    for name, mask in masks.items():
        shape = local_part(start.weights[name]).shape
        if not isinstance(mask, Tensor) or mask.dtype is not torch.bool or mask.shape != shape or not _has_values(mask):
            got = f"{mask.dtype} {list(mask.shape)} {mask.layout} on {mask.device}" if isinstance(mask, Tensor) else repr(mask)
            raise ValueError(f"{method.name}.start gave {name} the mask {got}, expected dense torch.bool {list(shape)}")
    numbers = count_nonzero(list(masks.values()))
    total = sum(sum_each(numbers, [holders_of(start.shardings.get(name)) for name in masks]))
    if total != start.total and not method.starts_denser:
        raise ValueError(f"{method.name}.start made {total} weights active, the budget has {start.total}")


def _has_values(mask: Tensor) -> bool:
    return mask.layout is torch.strided and not mask.is_meta


def _budget_at(
    shapes: Mapping[str, Sequence[int]], sparsity: float | Mapping[str, float], kind: str, density: float
) -> dict[str, int]:
    """The budgets at another density of the whole; where each layer has its own, none falls below it."""
    if isinstance(sparsity, Mapping):
        return _budget(shapes, {name: min(s, 1 - density) for name, s in sparsity.items()}, kind)
    return _budget(shapes, 1 - density, kind)


def _largest(
    chosen: Sequence[Candidate], nnz: Mapping[str, int], shardings: Mapping[str, Sharding]
) -> list[tuple[Candidate, Tensor]]:
    """The masks of the weights first in the order (abs(w) descending, NaN last, row-major index ascending)."""
    cut = [c for c in chosen if c.name in shardings]
    cuts = [shardings[c.name] for c in cut]
    rounds = agree.largest([local_part(c.param) for c in cut], [nnz[c.name] for c in cut], [one.where for one in cuts])
    parts = exchange(rounds, [one.holders for one in cuts]) if cut else []
    found = {c.name: mask.view(one.local_shape) for c, mask, one in zip(cut, parts, cuts, strict=True)}
    for c in chosen:
        if c.name not in found:
            w = c.param.detach()
            k = torch.tensor(nnz[c.name], device=w.device)
            found[c.name] = rules.first_k(rules.rank(w.reshape(-1)), k).view(w.shape)
    return [(c, found[c.name]) for c in chosen]


def _make(
    model: nn.Module,
    masks: Sequence[tuple[Candidate, Tensor]],
    shardings: Mapping[str, Sharding],
    method: Method,
    schedule: UpdateSchedule,
    seed: int,
    track_exploration: bool,
    budget: Mapping[str, int] | None = None,
    given: bool = False,
) -> SparseModel:
    counted = method.needs_counter or track_exploration
    cuts = [shardings.get(c.name) for c, _ in masks]
    nnz = sum_each(count_nonzero([mask for _, mask in masks]), [holders_of(cut) for cut in cuts])
    layers = {c.name: make_layer(model, c, mask, n, counted, cut) for (c, mask), n, cut in zip(masks, nnz, cuts, strict=True)}
    budget = dict(budget or {name: layer.nnz for name, layer in layers.items()})
    whole = [(c, mask if cut is None else None) for (c, mask), cut in zip(masks, cuts, strict=True)]
    warn_of_dead_parts(model, whole, nnz, stacklevel=5 if given else 4)
    _check_end(method, schedule, seed, layers, budget)
    sparse = SparseModel(model, layers, method, schedule, seed)
    sparse.budget = budget
    if any(cuts):
        check_parts(sparse)
    sparse.apply_masks()
    return sparse


def _check_end(
    method: Method, schedule: UpdateSchedule, seed: int, layers: Mapping[str, SparseLayer], budget: Mapping[str, int]
) -> None:
    """Where the target must be reached by the last update, the method's ``total`` must say that it is."""
    last = schedule.last_update
    if not last or not (method.needs_stop or method.starts_denser):
        return
    chosen = [layer for layer in layers.values() if layer.param.requires_grad]
    if not chosen:
        return
    u = Update(last, 0, seed, schedule, chosen, fresh_numbers(method, chosen), budget=budget)
    total = method.total(u)
    if total != u.target:
        raise ValueError(
            f"{method.name} ends with {total} active weights by its total() at step {last}, the last update of {schedule}, but "
            f"the sparsity asks for {u.target}: a density schedule must reach u.target where u.progress is 1"
        )


def _budget(shapes: Mapping[str, Sequence[int]], sparsity: float | Mapping[str, float], kind: str) -> dict[str, int]:
    if isinstance(sparsity, Mapping):
        return sparsity_distribution.explicit(shapes, sparsity)
    if isinstance(sparsity, bool) or not isinstance(sparsity, Real):
        raise TypeError(f"sparsity must be a number or a dict from parameter name to number, got {type(sparsity).__name__}")
    name = kind.lower() if isinstance(kind, str) else kind
    if name == "erk":
        return sparsity_distribution.erk(shapes, float(sparsity))
    if name in ("uniform", "uniform-dense-first"):
        return sparsity_distribution.uniform(shapes, float(sparsity), dense_first=name != "uniform")
    raise ValueError(f"unknown distribution {kind!r}, expected erk, uniform or uniform-dense-first")


def from_masks(
    model: nn.Module,
    masks: Mapping[str, Tensor],
    *,
    method: Method | str | None = None,
    schedule: UpdateSchedule | None = None,
    seed: SupportsIndex = 0,
    track_exploration: bool = False,
) -> SparseModel:
    """A SparseModel with these masks instead of random ones; counters start with them. Weights outside become 0.

    Args:
        masks: by parameter name, tensors of 0 and 1 (any dtype) in the parameter's shape. All other parameters stay dense.
            Names may hold the parts that wrappers add ("module.", "_orig_mod.").
        others: as in :func:`dstee.sparsify`.

    Raises:
        ValueError: listing every mask that does not fit the model. TypeError: a weight's dtype. The model has not changed then.
    """
    return _with_masks(model, masks, method, schedule, seed, track_exploration)


def _with_masks(
    model: nn.Module, masks: Mapping[str, Tensor], method: Method | str | None, schedule: UpdateSchedule | None,
    seed: SupportsIndex, track_exploration: bool,
) -> SparseModel:  # fmt: skip
    method, schedule, seed = _check_arguments(model, method, schedule, seed)
    _check_needs(method, schedule, None, given=True)
    reshard(model)
    seed = seed_of_first_rank(model, seed)
    chosen = fit_masks(model, masks)
    shardings = _check_parameters([c for c, _ in chosen], method)
    pairs = [(c, shardings[c.name].part_of(mask, c.name) if c.name in shardings else mask) for c, mask in chosen]
    return _make(model, pairs, shardings, method, schedule, seed, track_exploration, given=True)


def _check_arguments(
    model: nn.Module, method: Method | str | None, schedule: UpdateSchedule | None, seed: SupportsIndex
) -> tuple[Method, UpdateSchedule, int]:
    """The method, the schedule and the seed, the defaults where there is none."""
    method = DSTEE() if method is None else _method(method)
    schedule = UpdateSchedule() if schedule is None else schedule
    for name, value, kind in (("model", model, nn.Module), ("schedule", schedule, UpdateSchedule)):
        if not isinstance(value, kind):
            raise TypeError(f"{name} must be a {kind.__name__}, got {type(value).__name__}")
    return method, schedule, _seed(seed)


def _method(method: Method | str) -> Method:
    if isinstance(method, Method):
        return method
    if not isinstance(method, str):
        choices = f"a dstee.methods.Method or one of {', '.join(known_methods())}"
        got = f"the class {method.__name__}: make one" if isinstance(method, type) else type(method).__name__
        raise TypeError(f"method must be {choices}, got {got}")
    if method not in METHODS and method.lower() not in METHODS:
        known_methods()  # those of installed packages, too
    return find_method(method.lower() if method not in METHODS and method.lower() in METHODS else method)()


def _seed(seed: SupportsIndex) -> int:
    if not (isinstance(seed, bool) or (isinstance(seed, Tensor) and seed.dtype is torch.bool)):
        try:
            return index(seed)
        except TypeError:
            pass
    raise TypeError(f"seed must be an int, got {type(seed).__name__}")


def _check_parameters(chosen: Sequence[Candidate], method: Method) -> dict[str, Sharding]:
    """How the weights that are cut among ranks are cut, by name. What one rank finds wrong of them is raised on all."""
    problem: Exception | None = None
    found: dict[str, Sharding] = {}
    masked = masked_parameters()
    meshes = [everyone for c in chosen if (everyone := everyone_of(c.param)) is not None]
    try:
        for c in chosen:
            sharding = check_cut(c.name, c.param)
            if sharding is not None:
                found[c.name] = sharding
            if id(c.param) in masked:
                raise ValueError(
                    f"{c.name} is sparse already: go on with the SparseModel that masks it, or take its layers out of that "
                    "one first, sparse.remove(*sparse.layers)"
                )
        _checks.check_no_overlap(**{c.name: [local_part(c.param)] for c in chosen})
    except (TypeError, ValueError) as error:
        problem = error
    if meshes:
        text = agree_on(None if problem is None else str(problem), meshes)
        if text is not None and (problem is None or text != str(problem)):
            problem = ValueError(text)
    if problem is not None:
        raise problem
    if found:
        if wrong := check_sizes(list(found), list(found.values())):
            raise ValueError("\n  ".join(wrong))
        refuse_parts(method)
    return found


def fit_masks(model: nn.Module, masks: Mapping[str, Tensor]) -> list[tuple[Candidate, Tensor]]:
    """The parameters that ``masks`` names, in the model's order, each with its mask as bool.

    Raises:
        ValueError: listing everything that does not fit.
    """
    found = {name: c for c in candidates(model) for name in c.names()}
    if not isinstance(masks, Mapping) or not masks:
        raise ValueError("masks must be a dict from parameter name to mask, with at least one")
    matched = match_names(map(str, masks), found)
    problems: list[str] = []
    chosen: dict[str, Tensor] = {}
    for name, mask in masks.items():
        c = found.get(matched.get(str(name), name))
        if c is None:
            problems.append(f"{name!r}: no parameter of the model")
        elif not isinstance(mask, Tensor):
            problems.append(f"{name}: the mask is a {type(mask).__name__}, expected a tensor")
        elif mask.shape != c.param.shape:
            problems.append(f"{name}: the mask has shape {list(mask.shape)}, the parameter {list(c.param.shape)}")
        elif not is_binary(mask):
            problems.append(f"{name}: the mask holds other values than 0 and 1")
        elif c.name in chosen and not torch.equal(chosen[c.name], mask != 0):
            problems.append(f"{name}: tied to {c.name}, which has another mask")
        else:
            chosen[c.name] = mask != 0
    if problems:
        raise ValueError("these masks do not fit the model, nothing was changed:\n  " + "\n  ".join(problems))
    return [(c, chosen[c.name]) for c in candidates(model) if c.name in chosen]
