"""A network whose units are all dead has no gradients to grow by: its training ends, the others of the run go on."""

import pytest
import torch
from experiments.test_train import DATA, Log, make_config

from dstee.experiments import train
from dstee.experiments.models import MODELS
from dstee.experiments.models.mlp import mlp


def dying(input_shape, classes, hidden):
    """No hidden unit is ever active; the biases of the classifier learn all the same."""
    model = mlp(input_shape, classes, hidden)
    torch.nn.init.constant_(model.hidden2.bias, -1e3)
    return model


@pytest.mark.parametrize("batch_seeds", [False, True])
def test_it_ends_at_the_first_mask_update(batch_seeds, tmp_path, monkeypatch):
    monkeypatch.setitem(MODELS, "dying", dying)
    config = make_config(model="dying", compare="static,rigl", seeds=2, batch_seeds=batch_seeds, epochs=1)
    told = []
    for _ in range(2):
        log = Log()
        results = train.run_trials(config, DATA, tmp_path, log)
        assert [r.diverged_at for r in results if r.method == "rigl"] == [2, 2]
        assert all(r.accuracy is not None for r in results if r.method == "static")
        told.append([(r.digest, r.diverged_at) for r in results])
        assert [w.partition(":")[0] for w in log.warnings] == ["rigl-seed0", "rigl-seed1"]
        if len(told) == 1:
            assert all("all gradients of the sparse weights are 0 at step 2" in w for w in log.warnings)
    assert told[0] == told[1]
