"""The data sets by the name that ``--data`` takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from dstee._console import UsageError
from dstee._lookup import look_up
from dstee.experiments.data.own import load_own
from dstee.experiments.references import is_reference, load_reference

__all__ = ["DATA_SETS", "Source", "find_source", "load"]


@dataclass(frozen=True)
class Source:
    """How a data set is read, the settings that suit it where the user names no others, and the key of the task that it is
    for; ``load`` gets the folder of the data (``--data-dir``, may be None) and returns what the task works on. ``note`` is what
    every table of its results says of it: that the images were compressed again, say."""

    load: Callable[[str | None], Any]
    settings: Mapping[str, object]
    task: str = "classification"
    note: str = ""


DATA_SETS: dict[str, Source] = {}
"""The choices of ``--data``; an entry more is a choice more."""


def find_source(name: str) -> Source:
    """The data set of this name, or what a reference ``package.module:load`` makes one: a function that takes the folder of the
    data (or nothing) and returns :class:`Images <dstee.experiments.data.images.Images>` or four tensors, x_train, y_train,
    x_test, y_test.

    Raises:
        UsageError: there is none; the text has the nearest one.
    """
    if is_reference(name):
        return Source(partial(load_own, name, load_reference(name, "--data")), {})
    try:
        return look_up("data set", DATA_SETS, name)
    except ValueError as error:
        raise UsageError(f"{error}; or a function of your own as package.module:load") from None


def load(name: str, data_dir: str | None) -> Any:
    """Data set ``name``, from ``data_dir`` or ``$DSTEE_DATA`` where it needs files.

    Raises:
        UsageError: a file or package is missing or damaged; the text says which, and which option helps.
    """
    return find_source(name).load(data_dir)
