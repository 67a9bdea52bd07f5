"""Contenders that a benchmark must survive, given to it by ``--plugin support.bench_plugin``; and layers of a user."""

from __future__ import annotations

import functools
import os
import time

import torch

from bench.contenders.dstee import Backend
from bench.contenders.registry import register
from bench.session import Contender, Setting


class Wrong(Backend):
    """Right at the first calls, then one weight is off by the last bit: only a check after the timed calls finds it."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting, "reference")
        self.calls = 0

    def call(self) -> None:
        super().call()
        self.calls += 1
        if self.calls > 3:
            w = self.setting.work.params[0].view(-1)
            at = int(w.nonzero()[0])
            w[at] = torch.nextafter(w[at], torch.tensor(9.0))


class Lazy(Backend):
    """Does nothing, very fast."""

    def call(self) -> None:
        pass


class Crash(Backend):
    def call(self) -> None:
        os.abort()


class Hang(Backend):
    def call(self) -> None:
        time.sleep(600)


class Raise(Backend):
    def call(self) -> None:
        raise RuntimeError("<b>no</b> & never")


class Meddler(Backend):
    """Writes to what all contenders are given."""

    def call(self) -> None:
        super().call()
        self.setting.before.masks[0].logical_not_()


def one(name: str, kind: type[Backend], op: str = "drop_grow") -> Contender:
    opened = kind if kind is Wrong else functools.partial(kind, backend="reference")
    return Contender(name, op, "a rule of its own", opened, ours=True)


register(
    one("wrong", Wrong), one("lazy", Lazy), one("crash", Crash), one("hang", Hang), one("raise", Raise),
    one("meddler", Meddler), one("lazy", Lazy, "masked_sgd"),
)  # fmt: skip


def factory() -> torch.nn.Module:
    return torch.nn.Sequential(
        torch.nn.Embedding(50, 8), torch.nn.Linear(8, 16), torch.nn.Conv2d(3, 5, 3), torch.nn.LayerNorm(5)
    )
