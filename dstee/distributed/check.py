"""Whether all ranks hold the same: numbers, settings, masks, counters. Copies that differ would train on without an error."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dstee.distributed import ranks
from dstee.distributed.majority import dissenters, name_ranks, name_rest
from dstee.distributed.ranks import Ranks
from dstee.distributed.roll_call import roll_call, seconds_to_wait
from dstee.distributed.sharding import Sharding, reshard
from dstee.distributed.state import fingerprints
from dstee.distributed.where import Where

__all__ = ["Layer", "Sparse", "check", "check_copies", "check_parts", "check_update", "meet"]


class Settings(Protocol):
    def to_dict(self) -> Mapping[str, Any]: ...


class Keeping(Settings, Protocol):
    @property
    def keeps(self) -> tuple[str, ...]: ...


class Layer(Protocol):
    """What is compared of a :class:`dstee.sparse_layer.SparseLayer`."""

    mask_bits: Tensor
    previous_bits: Tensor | None
    counts: Tensor | None
    shape: torch.Size
    strides: tuple[int, ...]
    state: dict[str, Tensor]
    sharding: Sharding | None

    @property
    def nnz(self) -> int: ...
    @property
    def local_shape(self) -> torch.Size: ...
    @property
    def where(self) -> Where: ...
    @property
    def holders(self) -> Ranks | None: ...
    @property
    def everyone(self) -> Ranks | None: ...
    def follow(self) -> Tensor: ...
    def bools(self, bits: Tensor) -> Tensor: ...


class Sparse(Protocol):
    """What is compared of a :class:`dstee.SparseModel`."""

    model: nn.Module
    seed: int
    budget: dict[str, int]
    _numbers: dict[str, Tensor]

    @property
    def t(self) -> int: ...
    @property
    def round(self) -> int: ...
    @property
    def method(self) -> Keeping: ...
    @property
    def schedule(self) -> Settings: ...
    @property
    def layers(self) -> Mapping[str, Layer]: ...


def check(sparse: Sparse, group: dist.ProcessGroup | None = None) -> None:
    """Makes sure that all ranks of ``group`` (default: all) hold the same sparse model.

    All of them call this together; where weights are cut among ranks, so do all that hold parts. Compared are ``t``, ``round``,
    ``seed``, method and schedule, the names and numbers of the layers, and by 64-bit fingerprints the masks, the masks before
    the last update, the counters and what the method keeps, of all ranks that hold the same part of a layer: copies (DDP),
    replicas (HSDP). The active weights of a layer must add up to its ``nnz`` over the ranks that make it up, which is what
    shows a wrong mask where nobody holds a copy (FSDP2, tensor parallelism).

    One pass over masks and counters, and two gathers of some numbers a layer. Without a process group there is nothing to
    compare; the active weights are counted all the same.

    The environment variable ``DSTEE_CHECK_RANKS=SECONDS``, the same on all ranks, has every mask update followed by this
    check. Before the update and after it the ranks wait for each other so long; one that does not come is named. Under DDP the
    first step after ``sparsify`` or ``load_state_dict`` checks the ranks of the wrapper without being asked.

    Args:
        sparse: a :class:`dstee.SparseModel`.
        group: those that hold copies or parts of one model; give it where others have other layers (pipelines, ensembles).

    Raises:
        ValueError: naming ranks and layers that differ from most others (of equally many, from the lowest rank), and what to
            do: the same text on all ranks.
    """
    if group is dist.GroupMember.NON_GROUP_MEMBER:
        raise ValueError("this rank is not in the group: call check on the ranks of the group alone")
    compare(sparse, Ranks((0,), "cpu") if ranks.alone() else ranks.of_group(group))


def check_copies(sparse: Sparse) -> None:
    """:func:`check` over the ranks of a model that is wrapped for data parallelism; others are not compared unasked."""
    if isinstance(sparse.model, nn.parallel.DistributedDataParallel):
        compare(sparse, ranks.of_group(sparse.model.process_group))


def check_parts(sparse: Sparse) -> None:
    """Where weights are cut among ranks, each of which has made the model sparse by itself: the settings must be the same, and
    the parts of a mask those of one whole. All these ranks come here together.

    Raises:
        ValueError: the same on all ranks.
    """
    mesh = _mesh_of(sparse)
    if mesh is not None and len(mesh.members) > 1:
        _compare_heads({item: value for item, value in _heads(sparse).items() if item not in ("layers", "numbers")}, mesh)
        _refuse_other_parts(sparse)


def meet(sparse: Sparse, step: int) -> Ranks | None:
    """With ``DSTEE_CHECK_RANKS``, waits until all ranks of the model are at the mask update at ``step``, and returns them.

    Raises:
        RuntimeError: naming the ranks that do not come in time. ValueError: the variable is wrong.
    """
    if ranks.alone() or (seconds := seconds_to_wait()) is None:
        return None
    together = _ranks_of(sparse)
    roll_call(together.group(), f"the mask update at step {step}", seconds)
    return together


def check_update(sparse: Sparse) -> None:
    """With ``DSTEE_CHECK_RANKS``, :func:`check` after the mask update at step ``sparse.t``, once all ranks have come."""
    together = meet(sparse, sparse.t)
    if together is not None:
        compare(sparse, together)


def _ranks_of(sparse: Sparse) -> Ranks:
    """Those that train one model: of the wrapper, of the mesh that all meshes are part of, else all."""
    if isinstance(sparse.model, nn.parallel.DistributedDataParallel):
        return ranks.of_group(sparse.model.process_group)
    return _mesh_of(sparse) or ranks.of_group()


def _mesh_of(sparse: Sparse) -> Ranks | None:
    """The ranks of the mesh that all meshes of the layers are part of; None where there is none."""
    meshes = {layer.everyone for layer in sparse.layers.values() if layer.everyone is not None}
    largest = max(meshes, key=lambda mesh: len(mesh.members), default=None)
    if largest is None or any(set(mesh.members) - set(largest.members) for mesh in meshes):
        return None
    return largest


@torch.no_grad()
def compare(sparse: Sparse, together: Ranks) -> None:
    """:func:`check` over the ranks ``together``."""
    _compare_heads(_heads(sparse), together)
    layers = list(sparse.layers.values())
    if not layers:
        return
    keeps = tuple(sparse.method.keeps)
    rows = torch.stack([_row(layer, keeps).cpu() for layer in layers])
    rows[:, _ACTIVE] = ranks.reduce_each(rows[:, _ACTIVE], [layer.holders for layer in layers])
    _refuse_rows(together, together.gather(rows), sparse.layers, keeps)


@torch.no_grad()
def _refuse_other_parts(sparse: Sparse) -> None:
    """Raises ValueError where parts of masks, each of them cut from a rank's own whole one, are not parts of one mask."""
    cut = {name: layer for name, layer in sparse.layers.items() if layer.sharding is not None}
    here = [int(layer.bools(layer.mask_bits).count_nonzero()) if layer.where.n else 0 for layer in cut.values()]
    found = ranks.sum_each(here, [layer.holders for layer in cut.values()])
    wrong = [
        f"{name} has {n} active weights on all ranks together, not {layer.nnz}"
        for (name, layer), n in zip(cut.items(), found, strict=True)
        if n != layer.nnz
    ]
    text = ranks.agree_on(_some(wrong) if wrong else None, [layer.everyone for layer in cut.values()])
    if text is not None:
        raise ValueError(
            f"{text}: the ranks had other masks when the model was sharded; make it sparse afterwards, or before with the same "
            "weights, arguments and seed on all ranks"
        )


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)


# --- numbers and settings --------------------------------------------------------------------------------------------------

_ITEMS = ("problem", "layers", "method", "schedule", "seed", "t", "round", "numbers")


def _heads(sparse: Sparse) -> dict[str, Any]:
    """All that is no tensor of a weight's size, by :data:`_ITEMS`; a rank on which it cannot be had says why."""
    try:
        reshard(sparse.model)
        for layer in sparse.layers.values():
            layer.follow()
        layers = {
            name: {
                "shape": list(layer.shape),
                "active": layer.nnz,
                "budget": sparse.budget[name],
                "counters": layer.counts is not None,
                "placements": None if layer.sharding is None else str(layer.sharding.placements),
            }
            for name, layer in sparse.layers.items()
        }
    except (TypeError, ValueError, RuntimeError) as error:
        return dict.fromkeys(_ITEMS) | {"problem": str(error)}
    numbers = {key: float(x) for key, x in sparse._numbers.items()}
    values = (None, layers, sparse.method.to_dict(), sparse.schedule.to_dict(), sparse.seed, sparse.t, sparse.round, numbers)
    return dict(zip(_ITEMS, values, strict=True))


def _compare_heads(heads: Mapping[str, Any], together: Ranks) -> None:
    """Raises ValueError where ``together`` differ in ``heads``, some of :func:`_heads`."""
    texts = {item: json.dumps(value, sort_keys=True, default=str) for item, value in heads.items()}
    hashes = torch.tensor([_hash(text) for text in texts.values()])
    largest, least = together.reduce(torch.cat([hashes, ~hashes]), dist.ReduceOp.MAX).chunk(2)
    if not torch.equal(largest, ~least):
        of_all = [json.loads(text or "{}") for text in together.texts(json.dumps(texts))]
        _refuse_heads(dict(zip(together.members, of_all, strict=True)))
    if heads["problem"] is not None:
        raise ValueError(heads["problem"])


def _refuse_heads(of_ranks: Mapping[int, Mapping[str, str]]) -> None:
    everybody = list(of_ranks)
    problems = {rank: json.loads(of_rank["problem"]) for rank, of_rank in of_ranks.items()}
    if bad := [rank for rank, problem in problems.items() if problem is not None]:
        raise ValueError(f"the ranks cannot be compared: on rank {bad[0]}, {problems[bad[0]]}")
    found = []
    for item in [item for item in _ITEMS[1:] if item in of_ranks[everybody[0]]]:
        for odd, text, usual in dissenters({rank: of_rank[item] for rank, of_rank in of_ranks.items()}):
            has, rest = f"{name_ranks(odd)} {_has(odd)}", name_rest(odd, everybody)
            mine, theirs = json.loads(text), json.loads(usual)
            if item == "layers":
                found += [f"{has} {what}" for what in _other_layers(mine, theirs, rest)]
            elif isinstance(mine, dict):
                what = "other numbers of the method" if item == "numbers" else f"another {item}"
                found.append(f"{has} {what} than {rest} ({_other_values(mine, theirs)})")
            else:
                found.append(f"{has} {item} {mine}, not {theirs} as {rest}")
    raise ValueError(
        f"{_some(found)}: make the model sparse with the same arguments and seed on all ranks, call sparse.step equally often "
        "there, or load the same state on all"
    )


def _other_layers(mine: dict[str, Any], theirs: dict[str, Any], rest: str) -> Iterator[str]:
    if missing := [name for name in theirs if name not in mine]:
        yield f"no sparse {_some(missing, ', ')}, unlike {rest}"
    if more := [name for name in mine if name not in theirs]:
        yield f"a sparse {_some(more, ', ')}, unlike {rest}"
    for name in mine.keys() & theirs.keys():
        if mine[name] != theirs[name]:
            yield f"another {name} than {rest} ({_other_values(mine[name], theirs[name])})"


def _other_values(mine: dict[str, Any], theirs: dict[str, Any]) -> str:
    keys = [key for key in {**mine, **theirs} if mine.get(key) != theirs.get(key)]
    return _some([f"{key} {mine.get(key)} instead of {theirs.get(key)}" for key in keys], ", ")


# --- tensors ---------------------------------------------------------------------------------------------------------------

_PLACE, _MASK, _BEFORE, _COUNTS, _ACTIVE, _KEPT = range(6)  # columns of a row; what the method keeps starts at the last


def _row(layer: Layer, keeps: Sequence[str]) -> Tensor:
    """What a rank holds of a layer: int64 [_KEPT + len(keeps)] on the layer's device; tensors by their fingerprints."""
    where, device = layer.where, layer.mask_bits.device
    row = torch.zeros(_KEPT + len(keeps), dtype=torch.int64, device=device)
    row[_PLACE] = _hash(str(tuple(where)))
    if not where.n:
        return row
    mask = _row_major(layer.bools(layer.mask_bits))
    found = {_MASK: mask}
    if layer.previous_bits is not None:
        found[_BEFORE] = _row_major(layer.bools(layer.previous_bits))
    if layer.counts is not None:
        found[_COUNTS] = _row_major(layer.counts.as_strided(layer.local_shape, layer.strides))
    for column, key in enumerate(keeps, _KEPT):
        kept = layer.state.get(key)  # none yet is as good as 0
        found[column] = torch.zeros(1, device=device).expand(where.n) if kept is None else _row_major(kept.to(device))
    row[list(found)] = fingerprints(list(found.values()), where)
    if layer.previous_bits is None:  # nothing has changed yet
        row[_BEFORE] = row[_MASK]
    row[_ACTIVE] = mask.count_nonzero()
    return row


def _row_major(t: Tensor) -> Tensor:
    return t.contiguous().view(-1)


def _refuse_rows(together: Ranks, rows: Tensor, layers: Mapping[str, Layer], keeps: Sequence[str]) -> None:
    """``rows``: int64 [ranks, layers, columns]. Those of one layer on ranks that hold the same part of it must be equal."""
    nnz = torch.tensor([layer.nnz for layer in layers.values()])
    order = rows[..., _PLACE].sort(dim=0, stable=True).indices
    near = rows.gather(0, order.unsqueeze(-1).expand_as(rows))  # ranks with the same part are neighbours
    odd = (near[1:] != near[:-1]) & (near[1:, :, _PLACE] == near[:-1, :, _PLACE]).unsqueeze(-1)
    wrong = rows[..., _ACTIVE] != nnz
    if not bool(odd.any()) and not bool(wrong.any()):
        return
    names, found = list(layers), list[str]()
    columns = {_MASK: "another mask", _BEFORE: "another mask before the last update", _COUNTS: "other counters"}
    columns |= {column: f"another {key}" for column, key in enumerate(keeps, _KEPT)}
    other_masks = odd[..., _MASK].any(0)
    odd[..., _BEFORE] &= ~other_masks  # before the first update it is the same
    for column, what in columns.items():
        of: dict[tuple[int, ...], list[str]] = {}
        for i in odd[..., column].any(0).nonzero().flatten().tolist():
            of.setdefault(_dissenters(together, rows[:, i, _PLACE], rows[:, i, column]), []).append(names[i])
        for who, those in of.items():
            found.append(
                f"{name_ranks(who)} {_has(who)} {what} of {_some(those, ', ')} than {name_rest(who, together.members)}"
            )
    for i in (wrong.any(0) & ~other_masks).nonzero().flatten().tolist():
        here = [rank for rank, bad in zip(together.members, wrong[:, i].tolist(), strict=True) if bad]
        numbers = sorted(set(rows[:, i, _ACTIVE][wrong[:, i]].tolist()))
        found.append(
            f"{name_ranks(here)} {'counts' if len(here) == 1 else 'count'} {' or '.join(map(str, numbers))} active weights in "
            f"the mask of {names[i]}, which has {int(nnz[i])}"
        )
    raise ValueError(
        f"{_some(found)}: gradients or weights differed at an update, or somebody wrote to a mask; average gradients over the "
        "ranks before each update (no_sync is off), and load the same state on all"
    )


def _dissenters(together: Ranks, places: Tensor, values: Tensor) -> tuple[int, ...]:
    """The ranks whose value differs from that of most ranks in the same place."""
    of: dict[int, dict[int, int]] = {}
    for rank, place, value in zip(together.members, places.tolist(), values.tolist(), strict=True):
        of.setdefault(place, {})[rank] = value
    return tuple(sorted(rank for same in of.values() for odd, _, _ in dissenters(same) for rank in odd))


def _has(ranks: Sequence[int]) -> str:
    return "has" if len(ranks) == 1 else "have"


def _some(items: Sequence[str], between: str = "; ") -> str:
    """The first few."""
    return between.join(items[:3]) + f"{between}and {len(items) - 3} more" * (len(items) > 3)
