"""What needs no host: lazy access, errors where one is missing, numbers to log, and steps that are none of the training."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.digits_batches import batches, loss, one_thread  # noqa: F401
from support.host_training import Network, assert_masked, by_hand, outcome, settings
from torch import nn

import dstee
from dstee.integrations._host_steps import HostSteps
from dstee.integrations.logging import scalars

HOSTS = ("lightning", "pytorch_lightning", "transformers", "accelerate")


def fresh(code: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=environment)


def test_no_host_is_imported_unasked() -> None:
    code = f"""
import sys, dstee, dstee.integrations
assert "dstee.integrations.logging" not in sys.modules
assert dstee.integrations.logging.scalars
assert not sys.modules.keys() & set({HOSTS})
try:
    dstee.integrations.keras
except AttributeError as error:
    print(error)
"""
    done = fresh(code)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "module 'dstee.integrations' has no attribute 'keras'\n"


@pytest.mark.parametrize("host", ["lightning", "transformers", "accelerate"])
def test_a_missing_host_is_one_line_that_says_what_to_install(host: str) -> None:
    done = fresh(f"import sys\nfor name in {HOSTS}: sys.modules[name] = None\nimport dstee.integrations.{host}")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last == f'ImportError: dstee.integrations.{host} needs {host}: pip install "dstee[{host}]"'


def test_numbers_to_log() -> None:
    network = Network()
    sparse = dstee.sparsify(network, **settings())
    optimizer = torch.optim.AdamW(network.parameters())
    before = scalars(sparse)
    assert before == {
        "masks/density": pytest.approx(0.2, abs=1e-3), "masks/updates": 0.0, "masks/churn": 0.0,
        "masks/dead_units": dstee.metrics.dead_units(sparse).total, "masks/exploration": before["masks/density"],
        "masks/exploration_limit": before["masks/density"],
    }  # fmt: skip
    for batch in batches(6):
        optimizer.zero_grad()
        loss(network.model, batch).backward()
        sparse.step(optimizer)
    after = scalars(sparse, prefix="s.")
    assert all(type(value) is float for value in after.values())
    assert after["s.updates"] == 2.0 and after["s.churn"] == dstee.metrics.churn(sparse) > 0
    assert before["masks/exploration"] < after["s.exploration"] <= after["s.exploration_limit"]
    without_counters = dstee.sparsify(Network(), 0.8, method="rigl")
    assert [name for name in scalars(without_counters) if "exploration" in name] == []


# --- steps of a host -----------------------------------------------------------------------------------------------------


def test_steps_count_while_the_host_trains_and_only_then() -> None:
    network = Network()
    sparse = dstee.sparsify(network, **settings())
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    steps = HostSteps(sparse)
    steps.follow([optimizer])
    for batch in batches(24):
        optimizer.zero_grad()
        loss(network.model, batch).backward()
        steps.training = True
        optimizer.step()
        steps.training = False
        assert_masked(sparse)
    assert outcome(sparse, optimizer) == by_hand(batches(24))
    before = sparse.masks()
    for p in network.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()  # as checkpoint code makes one to read a state
    assert sparse.t == 24 and all(torch.equal(before[name], mask) for name, mask in sparse.masks().items())
    steps.leave()
    steps.training = True
    optimizer.step()
    assert sparse.t == 24


@pytest.mark.parametrize("fused", [False, True])
def test_an_optimizer_that_skips_by_itself(fused: bool) -> None:
    """Fused ones are called after an overflow, too, and GradScaler leaves them its verdict."""
    network = Network()
    sparse = dstee.sparsify(network, **settings())
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    steps = HostSteps(sparse)
    steps.follow([optimizer])
    steps.training = True
    for i, batch in enumerate(batches(6)):
        optimizer.zero_grad()
        scaler.scale(loss(network.model, batch) * (float("inf") if i in (1, 2, 4) else 1.0)).backward()
        scaler.step(optimizer)
        scaler.update()
    assert (sparse.t, sparse.round) == (3, 1)
    assert_masked(sparse)


def test_optimizers_of_other_weights_are_left_alone() -> None:
    network, other = Network(), nn.Linear(2, 2)
    sparse = dstee.sparsify(network, **settings())
    mine, others = torch.optim.SGD(network.parameters(), lr=0.1), torch.optim.SGD(other.parameters(), lr=0.1)
    steps = HostSteps(sparse)
    steps.follow([others, mine])
    steps.training = True
    for one in (network, other):
        for p in one.parameters():
            p.grad = torch.ones_like(p)
    others.step()
    assert sparse.t == 0
    mine.step()
    assert sparse.t == 1
    steps.follow([others])
    steps.training = True
    for p in network.parameters():
        p.grad = torch.ones_like(p)
    with pytest.raises(ValueError, match=r"does not hold"):
        others.step()
