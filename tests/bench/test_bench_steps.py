"""Whole training steps: what is timed, added up, and what the models are."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bench import models, steps
from bench.contenders.registry import trainers
from bench.training import PHASES, weights_of


def small_job(name: str, batch: int) -> models.Job:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 4, 10))
    return models.Job(model, torch.randn(5, 3, 4, 4), torch.randint(10, (5,)))


def test_whole_steps_train_and_are_added_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "make_job", small_job)
    names = [one.name for one in trainers() if one.why_not() is None]
    assert {"dstee", "dense", "by hand"} <= set(names)
    work = {"contenders": names, "model": "small", "batch": 5, "density": 0.3, "swap": 0.3, "every": 100, "steps": 12,
            "plugins": [], "plan": {"budget": 5.0}}  # fmt: skip
    told: list[str | None] = []
    row = steps.run_steps(work, lambda name, phase: told.append(name))
    assert set(told) == set(names) and row["n"] == 8 * 27 + 320
    for name, one in row["contenders"].items():
        assert one["status"] == "ok", one
        assert one["phases_ms"].keys() == set(PHASES) and one["median_ms"] > 0 and (one["updates"] >= 2 or name == "dense")
        assert ("sparse_share" in one) == (name != "dense")


@pytest.mark.parametrize("name", ["dstee", "by hand", "ITOP Masking", "ITOP Masking, dstee's"])
def test_an_implementation_keeps_the_density(name: str) -> None:
    one = next(t for t in trainers() if t.name == name).open(small_job("", 0), 0.3, 0.3)
    counts = []
    for _ in range(9):
        steps._step(one)
        counts.append([int((w != 0).sum()) for w in weights_of(one.model)])
    assert all(c[1] <= 0.4 * 320 for c in counts) and max(c[1] for c in counts) > 0.1 * 320


@pytest.mark.parametrize("name", ["gnn", "mlp"])
def test_models_have_a_loss(name: str) -> None:
    loss = models.make_job(name, 2).loss().detach()
    assert float(loss) > 0 and torch.equal(loss, models.make_job(name, 2).loss().detach())


def test_vgg_and_resnet_have_their_sizes() -> None:
    with torch.device("meta"):
        sizes = [sum(w.numel() for w in weights_of(m())) for m in (models.vgg19, models.resnet50)]
    assert sizes[0] == 20_070_080 and 23e6 < sizes[1] < 24e6
