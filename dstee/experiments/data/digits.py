"""scikit-learn's digits, which need no file."""

from __future__ import annotations

import torch

from dstee._console import UsageError, needs
from dstee.experiments.data.images import Dataset, standardised

__all__ = ["load_digits"]

_TEST = 500


def load_digits(data_dir: str | None) -> Dataset:
    """1,797 real 8x8 images, of which 500 are the test set, the same for every seed."""
    try:
        from sklearn import datasets
    except ImportError as error:
        raise UsageError(needs("--data digits", "scikit-learn", "cli")) from error
    images, labels = (torch.from_numpy(array) for array in datasets.load_digits(return_X_y=True))
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    test, train = shuffled[:_TEST], shuffled[_TEST:]
    return standardised("digits", (1, 8, 8), images[train], labels[train], images[test], labels[test])
