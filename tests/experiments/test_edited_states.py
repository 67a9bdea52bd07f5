"""States of trainings that somebody has edited: what SGD on an MLP does not have, Adam, cost, counters that no method needs."""

import copy
import math
from pathlib import Path

import pytest
import torch
from experiments.test_train import DATA, make_config, replaced

from dstee import CheckpointError
from dstee.experiments.trial import Trial

STEP = ("optimizer", "state", 1, "step")
EDITS = [
    ("adam", STEP, torch.tensor(-1.0), "steps are not those of its step"),
    ("adam", STEP, torch.tensor(0.0), "steps are not those of its step"),
    ("adam", STEP, torch.tensor(2.5), "steps are not those of its step"),
    ("adam", STEP, torch.tensor(math.nan), "steps are not those of its step"),
    ("adam", STEP, torch.tensor(8.0), "steps are not those of its step"),
    ("adam", STEP, KeyError, "step of hidden1.bias is missing"),
    ("adam", ("optimizer", "state"), {}, "mean gradient of hidden1.weight is missing"),
    ("sgd", ("optimizer", "state"), {}, "momentum hidden1.weight is missing"),
    ("sgd", ("optimizer", "state", 0, "momentum_buffer"), None, "momentum hidden1.weight is missing"),
    ("sgd", ("sparse", "layers", "hidden1.weight", "counts"), KeyError, "counts are missing"),
    ("sgd", ("history", 3, "loss"), 2**70, "loss .* is too large"),
    ("sgd", ("cost", "steps"), 6, "the cost is not that of its step"),
]  # fmt: skip


@pytest.fixture(scope="module")
def states():
    """Of GraNet after 7 steps, which has a cost and needs no counters, by optimizer."""
    found = {}
    for optimizer in ("sgd", "adam"):
        config = make_config(method="granet", optimizer=optimizer)
        trial = Trial(config, "granet", 0, DATA)
        while trial.step_number < 7:
            trial.step()
        found[optimizer] = config, copy.deepcopy(trial.saved())
    return found


@pytest.mark.parametrize(("optimizer", "path", "value", "reason"), EDITS)
def test_it_is_refused(states, optimizer, path, value, reason):
    config, good = states[optimizer]
    with pytest.raises(CheckpointError, match=reason):
        Trial(config, "granet", 0, DATA).restore(Path("a"), replaced(good, path, value))


def test_what_nobody_edited_is_taken(states):
    for config, good in states.values():
        trial = Trial(config, "granet", 0, DATA)
        trial.restore(Path("a"), copy.deepcopy(good))
        assert trial.step_number == 7 and trial.masked.round == 3
