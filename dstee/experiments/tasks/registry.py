"""The tasks by the key that a data set names."""

from __future__ import annotations

from dstee._console import UsageError
from dstee._lookup import look_up
from dstee.experiments.tasks.base import Task

__all__ = ["TASKS", "find_task"]

TASKS: dict[str, type[Task]] = {}
"""Task classes by key; a data set names its own (:class:`dstee.experiments.data.Source`)."""


def find_task(key: str) -> type[Task]:
    """The task with this key.

    Raises:
        UsageError: there is none; the text has the nearest one.
    """
    try:
        return look_up("task", TASKS, key)
    except ValueError as error:
        raise UsageError(str(error)) from None
