"""Folders of images: which files, which labels, which pixels, and that the number of threads decides none of them."""

import json
import random
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from support.torchvision_oracle import import_torchvision

from dstee import cli
from dstee._console import UsageError
from dstee.experiments import commands, data
from dstee.experiments.config import Config
from dstee.experiments.data import DATA_SETS, image_folders
from dstee.experiments.tasks.classification import Classification

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """Two classes, six images for training and three for the test, of sizes of their own."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for part, count in (("train", 3), ("val", 1)):
        for label, name in enumerate(("n01", "n02")):
            (folder / part / name / "more").mkdir(parents=True)
            for i in range(count + (part == "val") * label):
                coarse = rng.integers(0, 256, (5 + i, 7 + label, 3), np.uint8)
                image = Image.fromarray(coarse).resize((60 + 40 * i, 50 + 30 * label), Image.Resampling.BICUBIC)
                image.save(folder / part / name / ("more" if i == 2 else ".") / f"{i}.{'png' if i else 'JPEG'}")
            (folder / part / name / "notes.txt").write_text("no image")
    return folder


@pytest.fixture
def folder(original, tmp_path):
    shutil.copytree(original, tmp_path / "imagenet")
    return tmp_path / "imagenet"


def load(folder, workers=1):
    return data.load("imagenet", str(folder)).reading(workers)


def test_labels_are_folders_and_all_images_are_found(folder):
    images = load(folder)
    assert (images.classes, images.shape, images.size("train"), images.size("test"), images.size("validation")) == (
        2, (3, 224, 224), 6, 3, 0,
    )  # fmt: skip
    part = images._parts["train"]
    assert sorted(zip(part.names, part.labels.tolist(), strict=True)) == [
        ("n01/0.JPEG", 0), ("n01/1.png", 0), ("n01/more/2.png", 0), ("n02/0.JPEG", 1), ("n02/1.png", 1), ("n02/more/2.png", 1),
    ]  # fmt: skip
    assert part.labels.tolist() not in ([0, 0, 0, 1, 1, 1], [1, 1, 1, 0, 0, 0])
    assert images._parts["test"].names == ["n01/0.JPEG", "n02/0.JPEG", "n02/1.png"]
    above = data.load("imagenet", str(folder.parent))  # the folder imagenet of $DSTEE_DATA
    assert above.digest == images.digest


def test_files_and_labels_are_torchvisions(folder):
    torchvision = import_torchvision()
    images = load(folder)
    theirs = torchvision.datasets.ImageFolder(str(folder / "val"))
    assert [(str(folder / "val" / name), label) for name, label in zip(images._parts["test"].names,
            images._parts["test"].labels.tolist(), strict=True)] == theirs.samples  # fmt: skip
    t = torchvision.transforms
    middle = t.Compose([t.Resize(256), t.CenterCrop(224), t.PILToTensor()])
    got = torch.cat([x for x, _ in images.batches_of("test", 2)])
    normal = t.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    for x, (image, _) in zip(got, theirs, strict=True):
        assert torch.allclose(x, normal(middle(image) / 255), atol=1e-5)
    image = theirs[1][0]
    box = image_folders._box(*image.size, random.Random("4 2"))
    crop = t.functional.resized_crop(image, box[1], box[0], box[3], box[2], [224, 224])
    mine = np.asarray(image_folders._random_crop(image, random.Random("4 2")))
    assert np.array_equal(mine, np.asarray(crop)) or np.array_equal(mine, np.asarray(crop)[:, ::-1])


def test_the_test_sees_the_middle(folder):
    """A picture of stripes: which columns and rows of the scaled one there are."""
    ramp = np.zeros((256, 512, 3), np.uint8)
    ramp[..., 0], ramp[..., 1] = (np.arange(512) // 2)[None], np.arange(256)[:, None]
    Image.fromarray(ramp).save(folder / "val" / "n02" / "1.png")
    last = torch.cat([x for x, _ in load(folder).batches_of("test", 1)])[2]
    pixels = last * torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1) + torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    pixels = (255 * pixels).round().int()
    assert torch.equal(pixels[0], ((torch.arange(224) + 144) // 2).int().expand(224, 224))
    assert torch.equal(pixels[1], (torch.arange(224) + 16).int()[:, None].expand(224, 224)) and not pixels[2].any()


def test_crops_are_those_that_were_announced(folder):
    """Area and ratio within their limits, every place is reached, and a shape that no crop fits gets the middle."""
    rng = random.Random(0)
    boxes = [image_folders._box(40, 30, rng) for _ in range(3000)]
    assert all(x >= 0 and y >= 0 and x + w <= 40 and y + h <= 30 and w > 0 and h > 0 for x, y, w, h in boxes)
    shares = [w * h / 1200 for _, _, w, h in boxes]
    ratios = [w / h for _, _, w, h in boxes if w * h > 300]
    assert 0.07 < min(shares) < 0.1 and max(shares) > 0.95 and 0.7 < min(ratios) < 0.8 and 1.25 < max(ratios) < 1.42
    assert {x for x, _, w, _ in boxes if w == 20} == set(range(21)) and {0} == {y for _, y, _, h in boxes if h == 30}
    assert image_folders._box(100, 10, rng)[1:] == (0, 13, 10) and image_folders._box(1, 1, rng) == (0, 0, 1, 1)
    assert image_folders._box(9, 300, rng)[2:] == (9, 12)


def test_threads_and_announcements_change_no_bit(folder):
    plain, pooled = load(folder), load(folder, 5)
    batches = [(torch.tensor([4, 1, 3]), 7), (torch.tensor([0, 2]), 8), (torch.tensor([5]), None), (torch.tensor([4, 1]), 9)]
    expected = [plain.fetch(*batch) for batch in batches]
    pooled.prefetch(batches[:3])
    pooled.fetch(torch.tensor([2, 2]), 1)  # not announced
    pooled.prefetch(iter(batches[1:]))  # the first one is not wanted any more
    for (x, y), batch in zip(expected, batches, strict=True):
        again = pooled.fetch(*batch)
        assert torch.equal(x, again[0]) and torch.equal(y, again[1])
    assert not pooled._coming
    (x, _), (other, _) = plain.fetch(torch.tensor([4, 1, 3]), 8), plain.fetch(torch.tensor([3, 4, 1]), 8)
    assert not torch.equal(x, expected[0][0]) and torch.equal(x[[2, 0, 1]], other)  # a sample's noise is its own
    for (x, y), (z, w) in zip(plain.batches_of("test", 500), pooled.batches_of("test", 500), strict=True):
        assert torch.equal(x, z) and torch.equal(y, w)


def test_processes_read_what_they_judge(folder):
    images = load(folder)
    everything = list(images.batches_of("test", 1))
    (folder / "val" / "n02" / "0.JPEG").write_bytes(b"damaged")
    for first, expected in ((0, everything[::2]), (1, None)):
        batches = images.batches_of("test", 1, first, 2)
        if expected is None:
            with pytest.raises(UsageError, match=r"n02/0\.JPEG"):
                list(batches)
        else:
            assert all(torch.equal(x, z) for (x, _), (z, _) in zip(batches, expected, strict=True))
    assert list(images.batches_of("test", 3, 1, 2)) == []


def test_parts_are_cut_from_the_ends(folder):
    images = load(folder)
    cut = images.limited(5).held_out(2)
    assert (cut.size("train"), cut.size("validation"), cut.size("test")) == (3, 2, 3) and images.size("train") == 6
    x = torch.cat([x for x, _ in cut.batches_of("validation", 1)])
    assert torch.equal(x, images.fetch(torch.tensor([3, 4]))[0]) and torch.equal(cut.fetch(torch.tensor([2]))[0],
                                                                                images.fetch(torch.tensor([2]))[0])  # fmt: skip
    assert len({images.digest, images.limited(5).digest, cut.digest, images.limited(5).held_out(1).digest}) == 4
    assert images.limited(0) is images and images.held_out(0) is images
    with pytest.raises(UsageError, match="train_limit must be at most the 6"):
        images.limited(7)
    with pytest.raises(UsageError, match="validation must be less than the 6"):
        images.held_out(6)


def test_other_files_have_another_digest(folder):
    before = load(folder).digest
    assert load(folder, 3).digest == before
    (folder / "train" / "n01" / "1.png").rename(folder / "train" / "n01" / "3.png")
    renamed = load(folder).digest
    with open(folder / "val" / "n01" / "0.JPEG", "ab") as file:
        file.write(b"x")
    assert len({before, renamed, load(folder).digest}) == 3


def test_what_is_no_image_is_named(folder):
    path = folder / "val" / "n02" / "1.png"
    whole = path.read_bytes()
    bomb = bytearray(whole)
    bomb[16:24] = (60_000).to_bytes(4, "big") * 2
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"
    for content in (b"", b"no image", whole[:60], whole[: len(whole) // 2], bytes(bomb), postscript):
        path.write_bytes(content)
        with pytest.raises(UsageError, match=r"val/n02/1\.png cannot be read as an image \(.*repair or remove it"):
            list(load(folder, 2).batches_of("test", 9))
    path.write_bytes(whole)
    (folder / "train" / "n02" / "9.png").symlink_to(folder / "nowhere")
    with pytest.raises(UsageError, match=r"train/n02/9\.png cannot be read: No such file"):
        load(folder)


def test_grey_and_transparent_images_are_three_channels(folder):
    for mode in ("L", "RGBA", "CMYK", "I;16", "1", "P"):
        Image.new(mode, (50, 40)).save(folder / "val" / "n01" / "x.tif")
        assert next(load(folder).batches_of("test", 9))[0].shape == (4, 3, 224, 224)


def test_folders_that_do_not_fit_are_refused(folder, tmp_path, monkeypatch):
    shutil.move(folder / "val" / "n02", folder / "val" / "n03")
    with pytest.raises(UsageError, match=r"the class n02 is in one of .*train and .*val alone"):
        load(folder)
    shutil.move(folder / "val" / "n03", tmp_path / "away")
    shutil.move(folder / "train" / "n02", tmp_path / "away2")
    (folder / "val" / "n01" / "0.JPEG").unlink()
    with pytest.raises(UsageError, match=r"val/n01 has no images, expected files that end in \.jpg"):
        load(folder)
    shutil.rmtree(folder / "val" / "n01")
    with pytest.raises(UsageError, match="val has no folders, expected one for each class"):
        load(folder)
    shutil.rmtree(folder / "val")
    with pytest.raises(UsageError, match=r"val cannot be read \(No such file or directory\): --data-dir takes"):
        load(folder)
    monkeypatch.delenv("DSTEE_DATA", raising=False)
    with pytest.raises(UsageError, match="--data imagenet needs the folder of train/ and val/"):
        data.load("imagenet", None)


def test_a_training_has_the_same_bits_whatever_reads(folder, tmp_path, capsys, monkeypatch):
    """Resumed in the midst of an epoch, with another number of threads."""
    monkeypatch.setattr(commands, "keep_final", lambda *args: None)
    options = ["--data", "imagenet", "--data-dir", str(folder), "--model", "strided-cnn", "--batch-size", "2", "--epochs", "2",
               "--warmup-epochs", "1", "--sparsity", "0.8", "--every", "2", "--checkpoint-every", "2"]  # fmt: skip
    digests = []
    for workers in ("1", "3"):
        out = tmp_path / workers
        assert cli.main(["train", *options, "--workers", workers, "--out", str(out)]) == 0
        assert "6 training and 3 test images" in capsys.readouterr().out
        digests.append(json.loads((out / "results.json").read_text())["results"][0]["digest"])
    run = tmp_path / "3"
    (newest,) = (path for path in run.glob("*/checkpoint-*.dst") if path.name.endswith("6.dst"))
    newest.unlink()
    (run / "results.json").unlink()
    assert cli.main(["train", "--out", str(run), "--resume", "--workers", "2", "--data-dir", str(folder)]) == 0
    digests.append(json.loads((run / "results.json").read_text())["results"][0]["digest"])
    assert len(set(digests)) == 1
    (folder / "train" / "n01" / "1.png").write_bytes(b"damaged")
    assert cli.main(["train", *options, "--out", str(tmp_path / "b")]) == 2
    assert "train/n01/1.png cannot be read as an image" in capsys.readouterr().err


def test_the_task_announces_what_it_will_fetch(folder):
    config = Config.resolve({"data": "imagenet", "model": "strided-cnn", "batch_size": 2})
    images = Classification.prepare(load(folder), config)
    task = Classification(config, 5, images, torch.device("cpu"))
    left = []
    for step in range(1, 6):
        task.loss(step)
        left.append(len(images._coming))
    assert left == [2, 1, 0, 2, 1]  # three batches an epoch; all that was announced was fetched


def test_the_settings_are_those_of_the_field():
    settings = DATA_SETS["imagenet"].settings
    assert (settings["model"], settings["epochs"], settings["label_smoothing"], settings["warmup_epochs"]) == (
        "resnet50", 100, 0.1, 5,
    )  # fmt: skip
