"""Grid files: which trainings they make, and what is refused."""

import pytest

from dstee._console import UsageError
from dstee.experiments.config import Config
from dstee.experiments.sweep.grid import parse_grid, read_grid


def grid(text, **more):
    return parse_grid(text.encode(), "g.toml", more)


def names(text):
    return [run.name for run in grid(text).runs]


CROSSED = """
seeds = 2
[settings]
every = 7
[grid]
method = ["dense", "rigl", "dst-ee"]
sparsity = [0.9, 0.95]
c = [0.001, 0.1]
"""


def test_lists_are_crossed_and_what_does_not_concern_a_method_makes_no_second_training():
    assert names(CROSSED) == [
        f"{one}-seed{seed}"
        for seed in (0, 1)
        for one in (
            "dense", "rigl-sparsity0.9", "rigl-sparsity0.95", "dst-ee-sparsity0.9-c0.001", "dst-ee-sparsity0.9-c0.1",
            "dst-ee-sparsity0.95-c0.001", "dst-ee-sparsity0.95-c0.1",
        )
    ]  # fmt: skip


def test_a_run_has_the_settings_of_its_cell():
    runs = {run.name: run.config for run in grid(CROSSED).runs}
    given = {"method": "dst-ee", "every": 7, "sparsity": 0.95, "c": 0.1, "seed": 1}
    assert runs["dst-ee-sparsity0.95-c0.1-seed1"] == Config.resolve(given)
    assert runs["dense-seed0"] == Config.resolve({"method": "dense"})


def test_variants_stand_beside_the_methods_with_settings_of_their_own():
    text = """
    seeds = [4]
    [settings]
    c = 0.01
    [grid]
    method = ["rigl"]
    sparsity = [0.9, 0.95]
    [[variant]]
    label = "SNFS, slow"
    method = "snfs"
    method_settings = {beta = 0.5}
    [[variant]]
    label = "DST-EE c_rel"
    method = "dst-ee"
    c_rel = 0.1
    sparsity = 0.5
    """
    runs = {run.name: run.config for run in grid(text).runs}
    assert list(runs) == [
        "rigl-sparsity0.9-seed4", "rigl-sparsity0.95-seed4", "snfs-slow-sparsity0.9-seed4", "snfs-slow-sparsity0.95-seed4",
        "dst-ee-c_rel-sparsity0.5-seed4",
    ]  # fmt: skip
    slow = runs["snfs-slow-sparsity0.9-seed4"]
    assert (slow.label, slow.method_settings) == ("SNFS, slow", (("beta", 0.5),))
    own = runs["dst-ee-c_rel-sparsity0.5-seed4"]
    assert (own.c_rel, own.c, own.sparsity) == (0.1, Config.c, 0.5)


def test_variants_may_stand_alone_and_one_method_may_be_a_setting():
    assert names('[[variant]]\nmethod = "set"\n[[variant]]\nmethod = "rigl"') == ["set-seed0", "rigl-seed0"]
    assert names('[settings]\nmethod = "set"\n[grid]\nhidden = [[8], [9, 7]]') == ["set-hidden8-seed0", "set-hidden9x7-seed0"]
    assert names("") == ["dst-ee-seed0"]


def test_cells_are_left_out_where_every_list_has_their_value():
    text = CROSSED + '[[skip]]\nmethod = ["rigl", "dst-ee"]\nsparsity = [0.9]\n[[skip]]\nc = [0.1]\nmethod = ["dst-ee"]'
    left = ["dense-seed0", "rigl-sparsity0.95-seed0", "dst-ee-sparsity0.95-c0.001-seed0"]
    assert names(text)[:3] == left and len(names(text)) == 6


def test_labels_in_any_script_have_folders_of_their_own():
    text = "".join(
        f"[[variant]]\nmethod = 'set'\nlabel = '{label}'\nlr = 0.{i}\n"
        for i, label in enumerate(["方法", "手法", "Größe", "a/b"])
    )
    found = names(text)
    assert len(set(found)) == 4 and all(name.isascii() for name in found) and found == names(text)
    assert found[2].startswith("gr-e-") and found[3] == "a-b-seed0"


def test_seeds_that_are_batched_make_one_run():
    text = "seeds = [3, 4, 5]\n[settings]\nbatch_seeds = true\nhidden = [8]\n[grid]\nmethod = ['set', 'rigl']"
    runs = grid(text).runs
    assert [run.name for run in runs] == ["set-seeds3to5", "rigl-seeds3to5"]
    assert runs[0].config.trials() == [("set", 3), ("set", 4), ("set", 5)] and runs[0].config.batch_seeds


def test_what_is_given_from_outside_goes_before_the_file():
    text = '[settings]\ndevice = "cpu"\n[grid]\nthreads = [1, 2]\nmethod = ["set"]'
    (run,) = grid(text, device="cuda", threads=3).runs
    assert (run.name, run.config.device, run.config.threads) == ("set-seed0", "cuda", 3)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("seeds = ", r"^g\.toml: it is not TOML"),
        ("sedes = 3", r"unknown entry 'sedes' \(did you mean 'seeds'\?\)"),
        ("[settings]\nsparisty = 0.9", r"\[settings\]: unknown setting 'sparisty' \(did you mean 'sparsity'\?\)"),
        ("[grid]\nsparisty = [0.9]", r"\[grid\]: unknown setting 'sparisty' \(did you mean 'sparsity'\?\)"),
        ("[[variant]]\nlabl = 'x'", r"\[\[variant\]\]: unknown setting 'labl' \(did you mean 'label'\?\)"),
        ("[grid]\nmethod = ['rgl']", r"method must be one of .* got 'rgl' \(did you mean 'rigl'\?\)"),
        ("[grid]\nmethod = 'rigl'", r"\[grid\] method must be a list of values, got 'rigl'"),
        ("[grid]\nsparsity = []", r"\[grid\] sparsity must be a list"),
        ("[grid]\nsparsity = [0.9, 1.5, 2.5]", r"sparsity must be in \[0, 1\), got 1.5: .*; sparsity must be .* got 2.5"),
        ("[grid]\nsparsity = ['a']", "sparsity must be a finite number"),
        ("[grid]\nlr = [1979-05-27]", "lr must be a finite number"),
        ("[grid]\nlr = [inf]", "lr must be a finite number"),
        ("[settings]\ncompare = true", "compare cannot stand here: list the methods"),
        ("[settings]\nseed = 3", "seed cannot stand here: seeds lists them"),
        ("[grid]\nlabel = ['x']", "label cannot stand here: give it to a"),
        ("[grid]\nbatch_seeds = [true]", r"\[grid\]: batch_seeds cannot stand here"),
        ("seeds = [0, 2]\n[settings]\nbatch_seeds = true", r"seeds that follow one another, got \[0, 2\]"),
        ("seeds = 0", "seeds must be their number"),
        ("seeds = true", "seeds must be their number"),
        ("seeds = [1, 1]", "a list of different seeds"),
        ("seeds = [-1]", "a list of different seeds"),
        ("seeds = 2\n[settings]\nseeds = 3", r"seeds is given 2 times, in seeds and \[settings\]"),
        ("variant = 3", "variant must be tables"),
        ("skip = [3]", "skip must be tables"),
        ("[[skip]]\nmethod = 'rigl'", r"\[\[skip\]\] method must be a list of values, got 'rigl'$"),
        ("[[skip]]\nmetod = ['rigl']", r"unknown setting 'metod' \(did you mean 'method'"),
        ("[[skip]]\nmethod = ['dst-ee']", "leaves all of them out"),
        ("[[skip]]\nmethod = ['rigel']", r"\[\[skip\]\] number 1 leaves nothing out"),
        ("[grid]\nmethod = ['set']\n[[variant]]\nlabel = 'RigL'", r"\[\[variant\]\] number 1 has no method"),
        ("[settings]\nepochs = 99999999999999999999", r"epochs must be below 2\^31, got 9+$"),
        ("[settings.data]\n'a:b' = 1", r"^g.toml: data must be of type str, got \{'a:b': 1\}$"),
        ("settings = 3", r"\[settings\] must be a table"),
        ("differs = 3", "differs must be a list of texts"),
        ("[[variant]]\nmethod = 'set'\nlr = 1.0\n[[variant]]\nmethod = 'set'", "two different trainings would be called set"),
        ("[grid]\nmethod = ['rigl']\nc = [0.1, 0.2]", r"\[grid\] c concerns none of the methods"),
        ("[[variant]]\nmethod = 'snfs'\nmethod_settings = {bta = 1}", r"no setting 'bta' \(did you mean 'beta'\?\)"),
        ("[[variant]]\nc = 0.1\nc_rel = 0.2", "c and c_rel are both given"),
        ("[settings]\nc = 0.1\nc_rel = 0.2", "c and c_rel are both given"),
        ("[grid]\nlr = [" + "0.1," * 1001 + "]\nmomentum = [" + "0.1," * 1001 + "]", "more than 100000 trainings"),
        ("[[variant]]\nlabel = '" + "a" * 101 + "'", "label must be one line"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_is_refused_in_one_line(text, reason):
    with pytest.raises(UsageError, match=reason) as caught:
        grid(text)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_none_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"x\.toml cannot be read: No such file"):
        read_grid(tmp_path / "x.toml")
    (tmp_path / "x.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="it is not TOML"):
        read_grid(tmp_path / "x.toml")
    (tmp_path / "x.toml").write_bytes(b"#" * ((1 << 20) + 1))
    with pytest.raises(UsageError, match="too much for such a file"):
        read_grid(tmp_path / "x.toml")
