"""Ranks meet before they talk: after some seconds those that wait know whom they wait for, instead of waiting for ever.

They leave word in the store through which their process group was made, which needs no collective: a rank that has failed, or
that waits for something else, cannot disturb it, whatever the backend.
"""

from __future__ import annotations

import math
import os
import time
import weakref

import torch.distributed as dist

from dstee.distributed.majority import dissenters, name_ranks, name_rest

__all__ = ["meet_in_store", "roll_call", "seconds_to_wait"]

VARIABLE = "DSTEE_CHECK_RANKS"
_LONGEST = 1e6
_ALL = "all"  # have come

_meetings: weakref.WeakKeyDictionary[dist.ProcessGroup, tuple[int, int]] = weakref.WeakKeyDictionary()
"""By group: how many groups this rank has had over the same store, this one included, and how often it has met."""


def seconds_to_wait() -> float | None:
    """What the environment variable ``DSTEE_CHECK_RANKS`` says; None where it is not set, empty or 0.

    Raises:
        ValueError: it is no number of seconds.
    """
    text = os.environ.get(VARIABLE, "").strip()
    try:
        seconds = float(text or 0)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds <= _LONGEST:
        raise ValueError(
            f"{VARIABLE} must be the seconds to wait for a rank at a mask update, such as 1, or 0 for no check, got {text!r}"
        )
    return seconds or None


def roll_call(group: dist.ProcessGroup, what: str, seconds: float) -> None:
    """Returns when all ranks of ``group`` have come to ``what``.

    Raises:
        RuntimeError: a rank has not come within ``seconds``, or came to something else; the same text on all that have come,
            and on one that comes later.
    """
    members, me = dist.get_process_group_ranks(group), dist.get_rank()
    try:
        outcome = meet_in_store(group, members, me, what, seconds)
    except RuntimeError as error:
        text = f"the store of the process group cannot be reached at {what}: the process that keeps it has failed"
        raise RuntimeError(text) from error
    if outcome != _ALL:
        raise RuntimeError(outcome)


def meet_in_store(group: dist.ProcessGroup, members: list[int], me: int, what: str, seconds: float) -> str:
    """What :func:`roll_call` does: "all", or what is wrong, which whoever knows it first says for all."""
    shared = group.get_group_store()
    if group not in _meetings:
        _meetings[group] = shared.add(f"dstee/{me}/groups", 1), 0
    generation, number = _meetings[group]
    _meetings[group] = generation, number + 1
    store, last = (dist.PrefixStore(f"dstee/{generation}/{n}", shared) for n in (number, number - 1))
    store.set(str(me), what)
    complete = store.add("came", 1) == len(members)
    start = time.monotonic()
    while not store.check(["outcome"]):
        waited = time.monotonic() - start
        if complete or waited > seconds:
            store.compare_set("outcome", "", _verdict(store, members, what, seconds))  # unless another rank was faster
        else:
            time.sleep(min(0.0005 + waited / 16, 0.02))
    outcome = store.get("outcome").decode()
    if number and outcome == _ALL:  # everybody has left the last meeting
        for key in [str(me), *(["came", "outcome"] if complete else [])]:
            last.delete_key(key)
    return outcome


def _verdict(store: dist.Store, members: list[int], what: str, seconds: float) -> str:
    missing = [rank for rank in members if not store.check([str(rank)])]
    if missing:
        causes = "it skipped an update, has another schedule, or has failed"
        if len(missing) > 1:
            causes = "they skipped an update, have another schedule, or have failed"
        return f"{name_ranks(missing)} did not reach {what} within {seconds:g} s: {causes}"
    came_to = {rank: store.get(str(rank)).decode() for rank in members}
    odd = [
        f"{name_ranks(odd)} came to {here}, {name_rest(odd, members)} to {usual}" for odd, here, usual in dissenters(came_to)
    ]
    return "; ".join(odd) + ": an update was skipped, or schedules differ" if odd else _ALL
