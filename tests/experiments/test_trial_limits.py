"""A training that is too long to be listed is refused before it begins."""

import pytest

from dstee._console import UsageError
from dstee.experiments import data
from dstee.experiments.config import Config
from dstee.experiments.trial import Trial, task_of


def test_more_steps_than_can_be_listed_are_refused():
    config = Config.resolve({"data": "digits", "method": "set", "epochs": 2**31 - 1, "hidden": [4]})
    dataset = task_of(config).prepare(data.load("digits", None), config)
    with pytest.raises(UsageError, match="2147483647 epochs of 20 steps are more than 10,000,000 steps"):
        Trial(config, "set", 0, dataset)
