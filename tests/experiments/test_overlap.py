"""What masks have in common: counted by hand and by sets, from masks that a run kept; and styles that tell methods apart."""

import itertools
import math
import random
from pathlib import Path

import pytest
import torch
from experiments.test_train import DATA, Log, make_config

from dstee import CheckpointError
from dstee._console import UsageError
from dstee.experiments import checkpoint, train
from dstee.experiments.config import method_keys
from dstee.experiments.figures.overlap import jaccard, mask_overlap, overlaps
from dstee.experiments.final_state import final_masks
from dstee.experiments.kept_masks import kept_rounds, load_masks
from dstee.experiments.records import write_results
from dstee.experiments.results.rows import read_rows
from dstee.experiments.run_folder import Manifest, RunFolder, read_manifest
from dstee.experiments.styles import STYLES, shade, style_of, styles_of
from dstee.methods import METHODS


def test_jaccard_by_hand():
    one = {"a": torch.tensor([1, 1, 0, 0], dtype=torch.bool), "b": torch.tensor([[1, 0], [1, 0]], dtype=torch.bool)}
    other = {"a": torch.tensor([1, 0, 1, 0], dtype=torch.bool), "b": torch.tensor([[1, 0], [0, 0]], dtype=torch.bool)}
    # Both: 1 + 1. Either: 3 + 2. By chance 2 * 2 / 4 + 2 * 1 / 4 = 1.5 in both, of 7 - 1.5.
    assert jaccard(one, other) == (2 / 5, 1.5 / 5.5)
    assert jaccard(one, one)[0] == 1
    with pytest.raises(ValueError, match="different layers"):
        jaccard(one, {"a": one["a"]})


def test_random_masks_have_about_what_is_expected_in_common():
    generator, draw = random.Random(3), []
    for _ in range(300):
        masks = []
        for active in (30, 50):
            mask = torch.zeros(200, dtype=torch.bool)
            mask[generator.sample(range(200), active)] = True
            masks.append({"a": mask})
        draw.append(jaccard(*masks))
    assert sum(one for one, _ in draw) / 300 == pytest.approx(draw[0][1], rel=0.03)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A comparison of three methods over two seeds that kept its masks, and the one of dense that has none."""
    folder = tmp_path_factory.mktemp("overlap") / "run"
    config = make_config(compare="dense,static,rigl,str", seeds=2, keep_masks=True)
    manifest: Manifest = {
        "dstee": "0", "torch": "0", "identity": config.identity(), "data_digest": DATA.digest, "config": config.to_dict(),
    }  # fmt: skip
    held = RunFolder(folder, manifest)
    write_results(folder, train.run_trials(config, DATA, folder, Log()))
    held.close()
    return folder


def test_masks_of_rounds_and_of_the_end(runs):
    folder = runs / "rigl-seed0"
    files = kept_rounds(folder)
    assert list(files) == list(range(9))
    found = [load_masks(file) for file in files.values()]
    assert [(one.round, one.step) for one in found] == [(n, 2 * n) for n in range(9)]
    last = final_masks(folder, print)
    assert last.round == 8 and last.step == 24
    saved = checkpoint.load(max(folder.glob("checkpoint-*.dst")))["model"]
    for name, mask in last.masks.items():
        assert torch.equal(mask, found[-1].masks[name]) and not saved[name][~mask].any()
    assert final_masks(runs / "dense-seed0", print) is None
    assert final_masks(runs / "str-seed1", print).round == 1 and list(kept_rounds(runs / "static-seed0")) == [0]


def test_heat_maps_of_rounds_seeds_and_methods(runs):
    rows = read_rows([runs], curves=False)
    rounds, seeds, methods = overlaps(rows, None, print)
    assert rounds.title == "mask rounds of RigL, seed 0" and list(rounds.labels) == [str(n) for n in range(9)]
    assert seeds.title == "seeds of static, at the end" and list(seeds.labels) == ["0", "1"]
    assert methods.title == "methods of seed 0, at the end" and list(methods.labels) == ["static", "STR", "RigL"]
    sets = [
        {(name, i) for name, mask in load_masks(file).masks.items() for i in mask.flatten().nonzero().flatten().tolist()}
        for file in kept_rounds(runs / "rigl-seed0").values()
    ]
    for i, j in itertools.product(range(9), repeat=2):
        assert rounds.values[i][j] == pytest.approx(len(sets[i] & sets[j]) / len(sets[i] | sets[j]))
    figure = mask_overlap(rows, "rounds,methods", print)
    assert [axes.get_title().split("\n")[0] for axes in figure.axes[:2]] == [rounds.title, methods.title]
    texts = [t.get_text() for t in figure.axes[1].texts]
    assert texts == [f"{methods.values[i][j]:.2f}" for i in range(3) for j in range(3) if i != j]
    assert f"at random {methods.random[0][1]:.3f}" in figure.axes[1].get_title()
    image = figure.axes[1].images[0]
    assert image.get_clim() == (0, 1) and math.isnan(float(image.get_array().filled(math.nan)[0][0]))


@pytest.mark.parametrize(
    ("between", "pick", "text"),
    [
        ("round", lambda row: True, r"--between: unknown 'round' \(did you mean 'rounds'\?\)"),
        ("rounds", lambda row: row.method == "static", "no training kept the masks of its updates"),
        ("seeds", lambda row: row.seed == 0, "no method has masks of two seeds"),
        ("methods", lambda row: row.method == "rigl", "no seed has masks of two methods"),
        (None, lambda row: row.method == "static" and row.seed == 0, "there are no two masks to compare"),
        (None, lambda row: row.method == "dense", "there are no two masks to compare"),
    ],
)
def test_masks_that_are_not_there_are_said(runs, between, pick, text):
    with pytest.raises(UsageError, match=text):
        mask_overlap([row for row in read_rows([runs], curves=False) if pick(row)], between, print)


BITS = torch.tensor([3], dtype=torch.uint8)


@pytest.mark.parametrize(
    ("tree", "text"),
    [
        ({"step": 1, "round": 1}, "holds no masks"),
        ({"step": 1, "round": -1, "masks": {}}, "its step and round are no numbers"),
        ({"step": 1, "round": 1, "masks": {"a": {"shape": [9], "bits": BITS}}}, r"a mask of the shape \[9\] has not the bits"),
        ({"step": 1, "round": 1, "masks": {"a": {"shape": [-1], "bits": BITS}}}, "impossible shape"),
        ({"step": 1, "round": 1, "masks": {"a": {"shape": [8], "bits": BITS.int()}}}, "has not the bits of one"),
        ({"step": 1, "round": 1, "masks": {"a": {"bits": BITS}}}, "shape"),
        ({"step": 1, "round": 1, "masks": {"a": BITS}}, "masks-0000000001"),
    ],
)
def test_files_that_hold_no_masks_are_refused(tmp_path, tree, text):
    path = tmp_path / "masks-0000000001.dst"
    checkpoint.save(path, tree)
    with pytest.raises(CheckpointError, match=text):
        load_masks(path)


def test_an_older_run_is_replaced_with_its_masks(runs, tmp_path):
    folder = tmp_path / "run"
    (folder / "rigl-seed0").mkdir(parents=True)
    for name in ("config.json", "rigl-seed0/masks-0000000003.dst"):
        (folder / name).write_bytes((runs / name).read_bytes())
    (folder / "rigl-seed0/ignored-0000000004.json").write_text("{}")
    manifest = read_manifest(folder)
    del manifest["format"], manifest["version"]
    RunFolder(folder, manifest, "overwrite").close()
    assert not Path(folder / "rigl-seed0").exists()


# --- styles --------------------------------------------------------------------------------------------------------------


def test_every_method_has_a_style_that_can_be_told_without_its_colour():
    ours = {key for key in method_keys() if key not in METHODS or METHODS[key].__module__.startswith("dstee.")}
    assert STYLES.keys() == ours  # other tests may have registered others
    assert len({style.color for style in STYLES.values()}) == len(STYLES)
    assert len({(str(style.dashes), style.marker) for style in STYLES.values()}) == len(STYLES)


def test_other_methods_have_a_style_of_their_key():
    assert style_of("mine") == style_of("mine") and style_of("mine").color not in {s.color for s in STYLES.values()}
    assert len({style_of(f"mine{i}") for i in range(40)}) > 30


def test_lines_of_one_method_have_its_colour_and_layers_are_shades_of_it():
    assert styles_of(["rigl", "set"]) == [STYLES["rigl"], STYLES["set"]]
    first, other, second = styles_of(["rigl", "set", "rigl"])
    assert other == STYLES["set"] and first.color == second.color == STYLES["rigl"].color
    assert first.dashes != second.dashes and first.marker != second.marker
    grey = [sum(int(shade("#0072B2", i, 6)[j : j + 2], 16) for j in (1, 3, 5)) for i in range(6)]
    assert grey == sorted(grey, reverse=True) and len(set(grey)) == 6
