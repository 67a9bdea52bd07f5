"""Results of trainings read as rows: run folders, folders of them, results files, and whatever else lies there."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from support.command_server import TINY

from dstee import cli
from dstee._console import UsageError
from dstee.experiments.results.file import dump_rows, parse_rows
from dstee.experiments.results.rows import read_rows

KILLED = Path(__file__).parent / "data" / "run-0.1.0"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Two runs of five methods and two seeds, at 90 % and 80 %, one folder deeper than the other."""
    top = tmp_path_factory.mktemp("runs")
    shared = ["train", *TINY, "--compare", "--seeds", "2"]
    assert cli.main([*shared, "--sparsity", "0.9", "--out", str(top / "a")]) == 0
    assert cli.main([*shared, "--sparsity", "0.8", "--out", str(top / "b" / "c")]) == 0
    return top


@pytest.fixture
def runs(finished, tmp_path):
    return Path(shutil.copytree(finished, tmp_path / "runs"))


def edited(file, change):
    held = json.loads(file.read_text())
    change(held)
    file.write_text(json.dumps(held))


def test_the_rows_are_the_runs_trainings(finished):
    rows = read_rows([finished])
    assert len(rows) == 18  # dense is the same training at both sparsities
    by_name = {(row.method, row.seed, row.setting("sparsity")): row for row in rows}
    assert {key[0]: key[2] for key in by_name if key[0] == "dense"} == {"dense": None}
    row = by_name["dst-ee", 1, 0.8]
    assert row.label == "DST-EE" and row.source == str(finished / "b" / "c") and set(row.made_by) >= {"dstee", "torch"}
    held = json.loads((finished / "b" / "c" / "results.json").read_text())["results"]
    result = next(r for r in held if (r["method"], r["seed"]) == ("dst-ee", 1))
    assert result["accuracy"] == row.result.accuracy == row.result.score("accuracy") and row.result.score("auc") is None
    assert result["mean_density"] == row.result.mean_density and result["digest"] == row.result.digest
    lines = [json.loads(line) for line in (finished / "b/c/dst-ee-seed1/metrics.jsonl").read_text().splitlines()]
    assert [u[:3] for u in row.updates] == [(r["step"], r["exploration"], r["churn"]) for r in lines if r["kind"] == "update"]
    assert [len(u.layers) for u in row.updates] == [2] * 3 and row.updates[-1].exploration_limit == row.result.exploration_limit
    assert [e[:2] for e in row.epochs] == [(r["epoch"], r["accuracy"]) for r in lines if r["kind"] == "epoch"]


def test_a_row_has_the_settings_that_decide_it(finished):
    rows = {row.method: row for row in read_rows([finished / "a"])}
    assert "c" in rows["dst-ee"].settings and "c" not in rows["rigl"].settings and "every" in rows["rigl"].settings
    assert "every" not in rows["static"].settings and "sparsity" in rows["static"].settings
    assert "every" not in rows["dense"].settings and "epochs" in rows["dense"].settings
    assert not {"seed", "compare", "checkpoint_every"} & set(rows["dst-ee"].settings)


def test_settings_of_methods_and_labels_are_read(runs):
    def change(manifest):
        manifest["config"] |= {"method_settings": {"set.beta": 0.5, "rigl.beta": 0.7}, "label": "mine"}

    edited(runs / "a" / "config.json", change)
    rows = {row.method: row for row in read_rows([runs / "a"])}
    assert {row.label for row in rows.values()} == {"mine"}
    assert rows["set"].setting("beta") == 0.5 and rows["rigl"].setting("beta") == 0.7 and rows["dst-ee"].setting("beta") is None
    assert "beta" in rows["set"].setting_names() and "method_settings" not in rows["dst-ee"].settings


def test_a_results_file_holds_the_same_rows(finished, tmp_path):
    rows = read_rows([finished])
    text = dump_rows(rows, "dstee table x")
    again = parse_rows(text)
    assert dump_rows(again, "dstee table x") == text and {row.command for row in again} == {"dstee table x"}
    for one, other in zip(rows, again, strict=True):
        assert (one.label, one.method, one.seed, one.settings, one.made_by) == (
            other.label, other.method, other.seed, other.settings, other.made_by
        )  # fmt: skip
        assert one.result.accuracy == pytest.approx(other.result.accuracy, rel=1e-5)
        assert [u.exploration for u in one.updates] == pytest.approx([u.exploration for u in other.updates], rel=1e-4)
        assert [u.dead_units for u in one.updates] == pytest.approx([u.dead_units for u in other.updates], rel=1e-4)
        assert [e.accuracy for e in one.epochs] == pytest.approx([e.accuracy for e in other.epochs], rel=1e-5)
    assert len(text) < 1000 * len(rows) and text.count(b'"label"') == len(rows) == sum(
        b'"label"' in x for x in text.split(b"\n")
    )
    (tmp_path / "f.json").write_bytes(text)
    assert len(read_rows([finished, tmp_path / "f.json", finished / "a"])) == len(rows)  # the same trainings, once
    bare = parse_rows(dump_rows(rows, curves=False))
    assert not any(row.epochs or row.updates for row in bare)
    (tmp_path / "f.json").write_bytes(dump_rows(rows, curves=False))
    assert all(row.epochs for row in read_rows([tmp_path / "f.json", finished]))  # whoever has the curves gives them
    assert not any(row.epochs for row in read_rows([finished], curves=False))


def test_what_most_rows_share_stands_once(finished):
    rows = [replace(row, settings={**row.settings, "epochs": row.seed + 5}) for row in read_rows([finished])]
    rows[0] = replace(rows[0], settings={**rows[0].settings, "lr": 0.5})
    held = json.loads(dump_rows(rows))
    assert held["settings"]["lr"] == 0.1 and held["rows"][0]["settings"] == {"lr": 0.5}
    assert [row.settings for row in parse_rows(dump_rows(rows))] == [row.settings for row in rows]


def test_settings_that_rows_lack_are_not_shared(finished):
    """What one row has not, though its method could have it; c where another row has c_rel instead."""
    rows = read_rows([finished / "a"])
    del rows[4].settings["eps"], rows[4].settings["c"]
    rows[4].settings["c_rel"] = 0.1
    held = json.loads(dump_rows(rows))
    assert held["rows"][4]["settings"] == {"c_rel": 0.1} and held["rows"][9]["settings"] == {"c": 0.001, "eps": 1.0}
    assert [row.settings for row in parse_rows(dump_rows(rows))] == [row.settings for row in rows]


def test_two_results_of_one_training_are_refused(runs):
    shutil.copytree(runs / "a", runs / "again")
    assert len(read_rows([runs])) == 18
    edited(runs / "again" / "results.json", lambda held: held["results"][3].update(accuracy=0.5))
    with pytest.raises(UsageError, match=r"different results of the same training \(RigL, seed 0\): leave one"):
        read_rows([runs])
    edited(runs / "again" / "config.json", lambda held: held["config"].update(label="another"))
    assert len(read_rows([runs])) == 28


def test_a_diverged_training_has_no_accuracy(runs):
    file = runs / "a" / "results.json"
    edited(file, lambda held: held["results"][1].update(accuracy=None, diverged_at=7, scores={"auc": 0.5}))
    rows = read_rows([runs / "a"])
    assert rows[1].result.accuracy is None and rows[1].result.diverged_at == 7 and rows[1].result.score("auc") == 0.5
    assert parse_rows(dump_rows(rows))[1].result.diverged_at == 7


def test_results_of_0_1_0_are_read(runs):
    def older(held):
        for result in held["results"]:
            for name in ("exploration_limit", "dead_units", "mean_density", "scores", "diverged_at"):
                result.pop(name, None)

    edited(runs / "a" / "results.json", older)
    shutil.copy(KILLED / "config.json", runs / "a" / "config.json")
    edited(runs / "a" / "config.json", lambda held: held["config"].update(compare=True, seeds=2))
    rows = read_rows([runs / "a"])
    assert len(rows) == 10 and rows[0].result.mean_density is None and rows[4].setting("c") == 0.001
    assert rows[4].setting("train_limit") == 0 and dump_rows(parse_rows(dump_rows(rows))) == dump_rows(rows)


# --- what is refused -----------------------------------------------------------------------------------------------------


def test_what_holds_no_results_is_said(runs, tmp_path):
    warnings = []
    with pytest.raises(UsageError, match=r"there is no .*nowhere: name run folders"):
        read_rows([tmp_path / "nowhere"])
    with pytest.raises(UsageError, match=r"run-0\.1\.0 has no results yet .*dstee train --resume --out "):
        read_rows([KILLED])
    with pytest.raises(UsageError, match="none of its 1 runs has ended"):
        read_rows([KILLED.parent])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no run folder in it, three levels deep"):
        read_rows([tmp_path / "empty"])
    (runs / "a" / "results.json").unlink()
    assert len(read_rows([runs], warnings.append)) == 10
    assert warnings == [f"{runs}: 1 runs without results are left out, such as {runs / 'a'}"]


def test_it_looks_three_levels_deep_and_follows_no_link(runs, tmp_path):
    deep = tmp_path / "deep"
    shutil.copytree(runs / "a", deep / "1" / "2" / "3")
    assert len(read_rows([deep])) == 10
    (tmp_path / "deeper").mkdir()
    deep.rename(tmp_path / "deeper" / "0")
    with pytest.raises(UsageError, match="three levels"):
        read_rows([tmp_path / "deeper"])
    warnings = []
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "a").symlink_to(runs / "a")
    with pytest.raises(UsageError, match="no run folder"):
        read_rows([tmp_path / "linked"], warnings.append)
    assert len(warnings) == 1 and "is a symbolic link and not followed" in warnings[0]
    assert len(read_rows([tmp_path / "linked" / "a"])) == 10
    (runs / "a" / "results.json").rename(tmp_path / "mine")
    (runs / "a" / "results.json").symlink_to(tmp_path / "mine")
    with pytest.raises(
        UsageError, match=r"results\.json cannot be used: it is a symbolic link, .*; without it, .* makes it again$"
    ):
        read_rows([runs / "a"])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"method": "rigel"}, r"result 0: unknown method 'rigel' \(did you mean 'rigl'\?\)"),
        ({"method": ["set"]}, "unknown method"),
        ({"seed": True}, "seed True is not a whole number"),
        ({"seed": 1}, "dense-seed1 stands there twice"),
        ({"accuracy": 1.5}, r"accuracy 1.5 is not a number in 0\.\.1"),
        ({"accuracy": "0.5"}, "accuracy '0.5' is not a number"),
        ({"accuracy": None}, "has an accuracy, or the step at which it diverged"),
        ({"diverged_at": 5}, "has an accuracy, or the step at which it diverged"),
        ({"training_flops": -1}, "training_flops -1 is not a number >= 0"),
        ({"nnz": 1.5}, "nnz 1.5 is not a whole number"),
        ({"digest": 5}, "digest is no text"),
        ({"digest": "x" * 5000}, "digest is no text"),
        ({"scores": [1]}, "scores are no object"),
        ({"scores": {"auc": True}}, "the score 'auc' is True"),
        ({"scores": {"auc": 1.5}}, "the score 'auc' is 1.5, not another number"),
        ({"scores": {"accuracy": 0.5}}, "the score 'accuracy' is 0.5"),
        ({"more": 1}, "'more' missing or unknown"),
    ],
)
def test_hostile_results_are_refused(runs, change, reason):
    edited(runs / "a" / "results.json", lambda held: held["results"][0].update(change))
    with pytest.raises(UsageError, match=rf"results\.json cannot be used: result [05]: .*{reason.split(': ')[-1]}") as caught:
        read_rows([runs / "a"])
    assert str(caught.value).startswith(str(runs / "a" / "results.json"))


@pytest.mark.parametrize(
    "text", [b"", b"[]", b'{"results": {}}', b'{"results": []}', b'{"results": [1]}', b"[" * 10_000, b"\xff"]
)
def test_what_is_no_list_of_results_is_refused(runs, text):
    (runs / "a" / "results.json").write_bytes(text)
    with pytest.raises(UsageError, match=r"results\.json cannot be used: "):
        read_rows([runs / "a"])


@pytest.mark.parametrize(("name", "value"), [("method_settings", "text"), ("label", [1])])
def test_hostile_settings_of_a_run_are_refused(runs, name, value):
    edited(runs / "a" / "config.json", lambda held: held["config"].update({name: value}))
    with pytest.raises(UsageError, match=f"{name} of the run is no"):
        read_rows([runs / "a"])


def test_hostile_metrics_are_refused(runs):
    file = runs / "a" / "set-seed0" / "metrics.jsonl"
    whole = file.read_bytes()
    warnings = []
    file.write_bytes(whole + b'{"kind": "epo')
    assert len(read_rows([runs / "a"], warnings.append)) == 10 and "incomplete" in warnings[0]
    for line in (b"{}\n", b"[1]\n", whole.replace(b'"seed": 0', b'"seed": 1'), whole.replace(b'"set"', b'"rigl"')):
        file.write_bytes(whole + line)
        with pytest.raises(UsageError, match=r"metrics\.jsonl, line \d+: not a metric of dstee"):
            read_rows([runs / "a"])
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(UsageError, match="not a regular file"):
        read_rows([runs / "a"])
    file.unlink()
    assert [len(row.epochs) for row in read_rows([runs / "a"])].count(0) == 1


def updates(held, update):
    held["rows"][1]["updates"] = [update]


FILES = {
    "not ours": (lambda held: held.update(format="else"), "it is no results file"),
    "another version": (lambda held: held.update(version=2), "it has version 2, this dstee reads 1"),
    "the version is true": (lambda held: held.update(version=True), "it has version True"),
    "more": (lambda held: held.update(more=1), "unknown entry 'more'"),
    "a command that is a number": (lambda held: held.update(command=1), "'command' is no text"),
    "no rows": (lambda held: held.update(rows=[]), "'rows' is no list of 1 to"),
    "rows are an object": (lambda held: held.update(rows={}), "'rows' is no list of 1 to"),
    "settings are a list": (lambda held: held.update(settings=[]), "settings are no object"),
    "a setting is nested": (lambda held: held["settings"].update(lr={"a": 1}), "'lr' has no value of a setting"),
    "torch is a number": (lambda held: held.update(torch=2), "row 1: the version or the digest of the data is no text"),
    "a row is a number": (lambda held: held.update(rows=[1]), "row 1: a row is an object"),
    "a row without a label": (lambda held: held["rows"][0].pop("label"), "row 1: 'label' missing or unknown"),
    "an empty label": (lambda held: held["rows"][0].update(label=""), "row 1: it has no label and seed"),
    "a row with more": (lambda held: held["rows"][0].update(x=1), "row 1: 'x' missing or unknown"),
    "an unknown method": (lambda held: held["rows"][0].update(method="x"), "row 1: unknown method 'x'"),
    "a negative seed": (lambda held: held["rows"][0].update(seed=-1), "row 1: it has no label and seed"),
    "a result that is a list": (lambda held: held["rows"][0].update(result=[]), "row 1: 'result' is no object"),
    "a result without numbers": (lambda held: held["rows"][0].update(result={}), "missing or unknown"),
    "epochs are numbers": (lambda held: held["rows"][0].update(epochs=[1, 2]), "row 1: 'epochs' is no list of lists"),
    "an epoch is short": (lambda held: held["rows"][0].update(epochs=[[1]]), "row 1: 'epochs' is no list of lists"),
    "an epoch of a bad share": (lambda held: held["rows"][0].update(epochs=[[1, 2.0]]), "row 1: accuracy 2.0 is not in"),
    "an update of layers that are none": (lambda held: updates(held, [1, 0.5, 0.5, 1, 0, 3]), "row 2: layers is no"),
    "an update that is long": (lambda held: updates(held, [1, 0.5, 0.5, 1, 0, [1], 1]), "row 2: 'updates' is"),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_hostile_results_files_are_refused(finished, tmp_path, name):
    change, reason = FILES[name]
    held = json.loads(dump_rows(read_rows([finished / "a"])))
    change(held)
    (tmp_path / "f.json").write_text(json.dumps(held))
    with pytest.raises(UsageError, match=r"f\.json cannot be used: ") as caught:
        read_rows([tmp_path / "f.json"])
    assert reason in str(caught.value) and "\n" not in str(caught.value)
