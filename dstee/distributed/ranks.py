"""What the ranks of a process group must agree on. Without a group, or with one rank, nothing is sent."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary, ref

import torch
import torch.distributed as dist
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from dstee.distributed.agree import Message, Rounds

__all__ = [
    "Ranks",
    "agree_on",
    "alone",
    "anywhere",
    "broadcast",
    "exchange",
    "mean",
    "mean_",
    "of_group",
    "of_mesh",
    "reduce_each",
    "seed_of_first_rank",
    "sets_of_ranks",
    "shared_seed",
    "sum_each",
]

T = TypeVar("T")


def alone() -> bool:
    """Whether there is no process group, or one rank in it."""
    return not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1


def mean_(tensors: Sequence[Tensor]) -> None:
    """Replaces contiguous tensors by their means over all ranks, in place."""
    if alone():
        return
    for work in [dist.all_reduce(t, async_op=True) for t in tensors]:
        work.wait()
    torch._foreach_div_(list(tensors), dist.get_world_size())


def mean(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Means over all ranks: the tensors themselves on one rank, else new contiguous ones."""
    if alone():
        return list(tensors)
    means = [t.clone(memory_format=torch.contiguous_format) for t in tensors]
    mean_(means)
    return means


def broadcast(t: Tensor) -> Tensor:
    """``t`` of the first rank."""
    if alone():
        return t
    t = t.clone(memory_format=torch.contiguous_format)
    dist.broadcast(t, 0)
    return t


def shared_seed(device: torch.device, low: int = 0, high: int = 2**62) -> int:
    """A seed in [low, high) from torch's CPU generator, the first rank's on all ranks. ``device``: where the ranks talk."""
    seed = torch.randint(low, high, (1,))
    return int(seed if alone() else broadcast(seed.to(device)))


def seed_of_first_rank(model: nn.Module, seed: int) -> int:
    """The seed of the first rank where ``model`` is wrapped for data parallelism, whose replicas must have the same masks."""
    if not isinstance(model, nn.parallel.DistributedDataParallel):
        return seed
    found, group = [seed], model.process_group
    device = torch.device(of_group(group).device_type)
    dist.broadcast_object_list(found, dist.get_global_rank(group, 0), group=group, device=device)
    return found[0]


@dataclass(frozen=True)
class Ranks:
    """Ranks that hold something together: ``members``, in the order of their group, and the device type on which they talk."""

    members: tuple[int, ...]
    device_type: str

    def group(self) -> dist.ProcessGroup:
        """Their process group; made, by them alone, where there was none."""
        reference = _known().get(self)
        found = None if reference is None else reference()
        if found is None:
            found = _remember(self, dist.new_group(list(self.members), use_local_synchronization=True))
        return found

    def reduce(self, t: Tensor, op: Any = dist.ReduceOp.SUM) -> Tensor:
        """``t``, integers on any device, reduced over the members: on the CPU."""
        if len(self.members) == 1:
            return t.cpu()
        there = t.to(self.device_type, copy=True)
        dist.all_reduce(there, op, group=self.group())
        return there.cpu()

    def gather(self, t: Tensor) -> Tensor:
        """``t``, of the same shape and dtype on each member and on any device, of each: [members, ...] on the CPU."""
        there = t.to(self.device_type).contiguous()
        found = [there]
        if len(self.members) > 1:
            found = [torch.empty_like(there) for _ in self.members]
            dist.all_gather(found, there, group=self.group())
        return torch.stack(found).cpu()

    def texts(self, text: str | None) -> list[str | None]:
        """The text of each member."""
        found: list[str | None] = [text] * len(self.members)
        if len(self.members) > 1:
            dist.all_gather_object(found, text, group=self.group())
        return found


_groups: WeakKeyDictionary[dist.ProcessGroup, dict[Ranks, ref[dist.ProcessGroup]]] = WeakKeyDictionary()
"""By the group of all, since a process may leave it and join another. Groups are torch's to keep, and to end."""


def _known() -> dict[Ranks, ref[dist.ProcessGroup]]:
    world = dist.group.WORLD
    assert world is not None
    return _groups.setdefault(world, {})


def _remember(ranks: Ranks, group: dist.ProcessGroup) -> dist.ProcessGroup:
    _known()[ranks] = ref(group)
    return group


def of_group(group: dist.ProcessGroup | None = None) -> Ranks:
    """The ranks of a process group, default all of them, which talk as its backend does."""
    found = dist.group.WORLD if group is None else group
    assert found is not None
    kind = "cuda" if "nccl" in str(dist.get_backend(found)) else "cpu"
    ranks = Ranks(tuple(dist.get_process_group_ranks(found)), kind)
    _remember(ranks, found)
    return ranks


def of_mesh(mesh: DeviceMesh, dims: Sequence[int] | None = None) -> Ranks:
    """The ranks that differ from this one along dimensions ``dims`` (default: all) of ``mesh`` alone, this one included."""
    here = mesh.get_coordinate()
    assert here is not None
    dims = range(mesh.ndim) if dims is None else dims
    row = mesh.mesh[tuple(slice(None) if d in dims else here[d] for d in range(mesh.ndim))]
    ranks = Ranks(tuple(sorted(row.flatten().tolist())), mesh.device_type)
    if len(dims) == 1:
        _remember(ranks, mesh.get_group(dims[0]))
    elif len(ranks.members) == dist.get_world_size() and dist.group.WORLD is not None:
        _remember(ranks, dist.group.WORLD)
    return ranks


def exchange(rounds: Rounds[T], holders: Sequence[Ranks | None]) -> T:
    """Runs ``rounds``: the rows of each message are added up over the ranks that hold parts of their layer.

    Args:
        holders: of each layer that the messages name; None where it is whole on this rank.
    """
    try:
        message = next(rounds)
        while True:
            message = rounds.send(_add_up(message, holders))
    except StopIteration as done:
        return done.value


def _add_up(message: Message, holders: Sequence[Ranks | None]) -> Tensor:
    """One all-reduce for each distinct set of ranks, in the order of its first row."""
    total = torch.empty(message.rows.shape, dtype=torch.int64)
    sets = dict.fromkeys(holders[layer] for layer in message.layers)
    for ranks in sets:
        mine = [row for row, layer in enumerate(message.layers) if holders[layer] == ranks]
        rows = message.rows if len(sets) == 1 else message.rows[mine]
        total[mine] = (rows.cpu() if ranks is None else ranks.reduce(rows)).to(torch.int64)
    return total


def reduce_each(numbers: Tensor, holders: Sequence[Ranks | None], largest: bool = False) -> Tensor:
    """Each of ``numbers`` [L] added up over its own ranks, or the ``largest`` there; as it is where they are None. One
    all-reduce for each distinct set of ranks."""
    total = numbers.clone()
    for ranks in dict.fromkeys(holders):
        if ranks is not None:
            mine = [i for i, other in enumerate(holders) if other == ranks]
            op = dist.ReduceOp.MAX if largest else dist.ReduceOp.SUM
            total[mine] = ranks.reduce(numbers[mine], op).to(total.device)
    return total


def sum_each(numbers: Sequence[int], holders: Sequence[Ranks | None]) -> list[int]:
    """:func:`reduce_each` for a list of ints."""
    if not any(holders):
        return list(numbers)
    return reduce_each(torch.tensor(numbers, dtype=torch.int64), holders).tolist()


def sets_of_ranks(everyone: Iterable[Ranks | None]) -> list[Ranks]:
    """The distinct sets of several ranks, small ones first: what one of these finds reaches the larger ones."""
    sets = [ranks for ranks in dict.fromkeys(everyone) if ranks is not None and len(ranks.members) > 1]
    return sorted(sets, key=lambda ranks: (len(ranks.members), ranks.members))


def anywhere(flag: bool, everyone: Iterable[Ranks | None]) -> bool:
    """Whether ``flag`` is set on any rank of ``everyone``: one all-reduce of one number for each distinct set of ranks."""
    for ranks in sets_of_ranks(everyone):
        flag = bool(ranks.reduce(torch.tensor([int(flag)], dtype=torch.int32), dist.ReduceOp.MAX))
    return flag


def agree_on(problem: str | None, everyone: Iterable[Ranks | None]) -> str | None:
    """The problem of the lowest rank that has one, the same text on all ranks of ``everyone``; None where none has.

    What one rank alone can find wrong must come here before it is raised, or the others would wait for that rank for ever. One
    all-reduce of one number for each distinct set of ranks where nothing is wrong.
    """
    sets = sets_of_ranks(everyone)
    if anywhere(problem is not None, sets):
        for ranks in sets:
            texts = dict(zip(ranks.members, ranks.texts(problem), strict=True))
            first = next((rank for rank, text in texts.items() if text is not None), None)
            if first is not None:
                problem = texts[first]
    return problem
