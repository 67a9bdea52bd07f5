"""Crops and flips of images in memory, against a loop over images."""

import random

import pytest
import torch

from dstee.experiments.data import Dataset


def one_by_one(x, noise, pad):
    """Each image out of a larger one of zeros, whose numbers are drawn as the code under test says it draws them."""
    generator = torch.Generator().manual_seed(noise)
    n, channels, height, width = x.shape
    offsets = torch.randint(2 * pad + 1, (2, n, 1), generator=generator)
    flips = torch.rand(n, generator=generator) < 0.5
    found = []
    for i, image in enumerate(x):
        canvas = torch.zeros(channels, height + 2 * pad, width + 2 * pad)
        canvas[:, pad : pad + height, pad : pad + width] = image
        top, left = int(offsets[0, i]), int(offsets[1, i])
        crop = canvas[:, top : top + height, left : left + width]
        found.append(torch.stack([crop[:, :, width - 1 - j] for j in range(width)], 2) if flips[i] else crop)
    return torch.stack(found)


@pytest.mark.parametrize(("shape", "pad"), [((9, 3, 32, 32), 4), ((5, 1, 8, 6), 4), ((4, 2, 3, 7), 1), ((1, 1, 1, 1), 0)])
def test_crops_and_flips_are_those_of_a_loop(shape, pad):
    g = torch.Generator().manual_seed(1)
    x = torch.randn(shape, generator=g)
    images = Dataset("a", x, torch.arange(len(x)), x[:1], torch.zeros(1).long(), pad=pad, classes=len(x))
    for noise in (0, 3, 2**40 + 1):
        indices = torch.randperm(len(x), generator=g)
        got, labels = images.fetch(indices, noise)
        assert torch.equal(got, one_by_one(x[indices], noise, pad)) and torch.equal(labels, indices)
        assert torch.equal(images.fetch(indices, noise)[0], got) and torch.equal(images.fetch(indices)[0], x[indices])


def test_pixels_are_standardised_before_the_margin_is_put_around():
    """Black pixels are not 0 then: the margin is the mean of the images, as where they are padded after it."""
    x = torch.full((40, 2, 4, 4), 10, dtype=torch.uint8)
    images = Dataset("a", x, torch.zeros(40).long(), x, torch.zeros(40).long(), mean=(4.0, 10.0), std=(2.0, 5.0), classes=1)
    got = images.fetch(torch.arange(40), 1)[0]
    assert set(got[:, 0].unique().tolist()) == {0.0, 3.0} and set(got[:, 1].unique().tolist()) == {0.0}
    assert images.fetch(torch.arange(40))[0][:, 0].unique().tolist() == [3.0]


def test_every_offset_and_both_directions_occur():
    x = torch.arange(1, 17, dtype=torch.float32).view(1, 1, 4, 4).expand(3000, 1, 4, 4)
    images = Dataset("a", x, torch.zeros(3000).long(), x, torch.zeros(3000).long(), pad=1, classes=1)
    got = images.fetch(torch.arange(3000), random.Random(0).randrange(2**40))[0]
    kinds, counts = got.view(3000, 16).unique(dim=0, return_counts=True)
    assert len(kinds) == 18 and int(counts.min()) > 100 and int(counts.max()) < 240  # 3000 / 18 = 167
