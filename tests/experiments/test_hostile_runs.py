"""Damaged and hostile files of a run, and links in its folder: one line that names the file, and nothing is done."""

import json
import os
from pathlib import Path

import pytest
from support.command_server import TINY

from dstee import _files, cli
from dstee._console import UsageError
from dstee.experiments import plot, records
from dstee.experiments.run_folder import read_manifest

DEEP = b"[" * 100_000 + b"]" * 100_000
NUMBER = b"9" * 100_000


# --- JSON ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b'{"a": NaN}', "NaN is not JSON"),
        (b'{"a": [-Infinity]}', "-Infinity is not JSON"),
        (b'{"a": 1e999}', "is not JSON"),
        (b'{"a": 1, "a": 1}', "duplicate key"),
        (b'[{"b": {"a": 1, "a": 2}}]', "duplicate key"),
        (DEEP, "nested too deeply"),
        (b"[" * 65 + b"]" * 65, "nested too deeply"),
        (b'{"a":' * 65 + b"1" + b"}" * 65, "nested too deeply"),
        (NUMBER, "more than 64 bits"),
        (b"-" + NUMBER, "more than 64 bits"),
        (b"18446744073709551616", "more than 64 bits"),
        (b"-9223372036854775809", "more than 64 bits"),
        (b"\xff\xff", "utf"),
        (b"[1] 2", "Extra data"),
    ],
)
def test_improper_json_is_refused(text, reason):
    with pytest.raises(ValueError, match=reason):
        _files.parse_json(text)


def test_proper_json_is_read():
    for value in (18446744073709551615, -9223372036854775808, 1e308, [[], {}, True, None, "x"], {"a": {"b": [1.5]}}):
        assert _files.parse_json(_files.dump_json(value)) == value
    assert _files.parse_json(b"[" * 63 + b"]" * 63)


def test_no_file_is_read_beyond_its_limit(tmp_path):
    (tmp_path / "x").write_bytes(b"a" * 11)
    assert _files.read_file(tmp_path / "x", 11) == b"a" * 11
    with pytest.raises(ValueError, match="more than 10 bytes"):
        _files.read_file(tmp_path / "x", 10)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="not a regular file"):
        _files.read_file(tmp_path / "pipe", 10)
    with pytest.raises(ValueError, match="not a regular file"):
        _files.read_file(Path("/dev/zero"), 10)


# --- the files of a run --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "a"
    assert cli.main(["train", "--out", str(out), "--method", "dst-ee", *TINY]) == 0
    return out


@pytest.fixture
def run(finished, tmp_path):
    """A copy of the run without its checkpoints."""
    for name in ("config.json", "results.json", "dst-ee-seed0/metrics.jsonl"):
        copy = tmp_path / "a" / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes((finished / name).read_bytes())
    return tmp_path / "a"


def changed(text, **entries):
    return json.dumps({**json.loads(text), **entries}).encode()


def without(text, key):
    return json.dumps({k: v for k, v in json.loads(text).items() if k != key}).encode()


MANIFESTS = {
    "deep": lambda text: DEEP,
    "deep settings": lambda text: b'{"format": "dstee-run", "config": ' + DEEP + b"}",
    "a list": lambda text: b"[1]",
    "a key twice": lambda text: text.replace(b"{", b'{"format": "dstee-run",', 1),
    "NaN": lambda text: text.replace(b'"lr": 0.1', b'"lr": NaN'),
    "a huge number": lambda text: text.replace(b'"lr": 0.1', b'"lr": ' + NUMBER),
    "an endless number": lambda text: text.replace(b'"lr": 0.1', b'"lr": 1e999'),
    "a setting that is an object": lambda text: text.replace(b'"lr": 0.1', b'"lr": {"a": 1}'),
    "a setting that is nothing": lambda text: text.replace(b'"lr": 0.1', b'"lr": null'),
    "a list of floats": lambda text: text.replace(b'"lr": 0.1', b'"lr": [0.5]'),
    "a long text": lambda text: text.replace(b'"lr": 0.1', b'"lr": "' + b"x" * 2000 + b'"'),
    "an unknown entry": lambda text: changed(text, more=1),
    "the version is true": lambda text: changed(text, version=True),
    "another version": lambda text: changed(text, version=2),
    "identity is a list": lambda text: changed(text, identity=[1]),
    "the digest is a number": lambda text: changed(text, data_digest=5),
    "config is a list": lambda text: changed(text, config=[1]),
    "no config": lambda text: without(text, "config"),
    "large": lambda text: text + b" " * (2 << 20),
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_hostile_config_files_are_refused(run, name, capsys):
    file = run / "config.json"
    good = file.read_bytes()
    file.write_bytes(MANIFESTS[name](good))
    assert file.read_bytes() != good
    with pytest.raises(UsageError, match=r"config\.json cannot be used: ") as caught:
        read_manifest(run)
    assert str(caught.value).startswith(f"{file} ")
    for command in (["train", "--resume", "--out", str(run)], ["plot", str(run)]):
        assert cli.main(command) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"dstee: error: {file} cannot be used: ") and error.count("\n") == 1 and len(error) < 1000


@pytest.mark.parametrize(
    "wrong", ['"epochs": true', '"epochs": 2.0', '"epochs": -2', '"epochs": "2"', '"epochs": 2, "epoch": 2', '"epochs": [2]']
)
def test_settings_that_no_training_has_are_refused(run, wrong, capsys):
    file = run / "config.json"
    file.write_text(file.read_text().replace('"epochs": 2', wrong))
    assert cli.main(["train", "--resume", "--out", str(run)]) == 2
    assert capsys.readouterr().err.startswith(f"dstee: error: {file} cannot be used: ")


def test_a_manifest_may_lack_what_can_be_done_without(run):
    for key in ("version", "dstee", "torch", "identity", "data_digest"):
        (run / "config.json").write_bytes(without((run / "config.json").read_bytes(), key))
        assert read_manifest(run)["config"]["epochs"] == 2


@pytest.mark.parametrize("name", ["config.json", "results.json", "dst-ee-seed0/metrics.jsonl"])
def test_what_is_no_file_is_not_waited_for(run, name, capsys):
    (run / name).unlink()
    os.mkfifo(run / name)
    with pytest.raises(UsageError, match="cannot be used: not a regular file"):
        records.read_digests(run) if name == "results.json" else plot.read_run(run)


RESULTS = {
    "deep": DEEP,
    "a list": b"[]",
    "no results": b"{}",
    "results is a dict": b'{"results": {}}',
    "more": b'{"results": [], "more": 1}',
    "results of numbers": b'{"results": [1]}',
    "a result without a digest": b'{"results": [{"method": "set", "seed": 0}]}',
    "twice": b'{"results": [], "results": []}',
    "torn": b'{"results": [{"meth',
}


@pytest.mark.parametrize("name", RESULTS)
def test_hostile_results_are_refused(run, name):
    (run / "results.json").write_bytes(RESULTS[name])
    with pytest.raises(UsageError, match=r"results\.json cannot be used: "):
        records.read_digests(run)


@pytest.mark.parametrize(("key", "value"), [("seed", True), ("seed", 0.0), ("method", 1), ("digest", None), ("more", 1)])
def test_hostile_entries_of_a_result_are_refused(run, key, value):
    results = json.loads((run / "results.json").read_bytes())["results"]
    assert list(records.read_digests(run)) == ["dst-ee-seed0"]
    for wrong in ([{**results[0], key: value}], results * 2):
        (run / "results.json").write_text(json.dumps({"results": wrong}))
        with pytest.raises(UsageError, match=r"results\.json cannot be used: "):
            records.read_digests(run)


def test_results_without_the_entries_that_0_1_0_did_not_write_are_read(run):
    results = json.loads((run / "results.json").read_bytes())["results"]
    old = {key: value for key, value in results[0].items() if key not in records._SINCE_0_1_0}
    (run / "results.json").write_text(json.dumps({"results": [old]}))
    assert records.read_digests(run) == {"dst-ee-seed0": old["digest"]}


MAY_BE = {"loss": [None], "exploration": [None], "layers": [None, []], "scores": [{}]}
JUNK = [True, None, "1", [], {}, -1, 1.5, 1e308, 1 << 63]


@pytest.mark.parametrize("kind", ["update", "epoch"])
def test_hostile_metrics_are_refused(run, kind):
    """Each entry of a record replaced by what it cannot be."""
    file = run / "dst-ee-seed0" / "metrics.jsonl"
    record = next(r for r in map(json.loads, file.read_bytes().splitlines()) if r["kind"] == kind)
    for key in record:
        for value in JUNK:
            if (key == "loss" and type(value) in (int, float)) or value in MAY_BE.get(key, []):
                continue
            file.write_text(json.dumps({**record, key: value}) + "\n")
            with pytest.raises(UsageError, match=r"metrics\.jsonl, line 1: not a metric of dstee"):
                plot.read_run(run)
        line = json.dumps(record)
        for text in (line[:-1] + f', "{key}": 1}}', line[:-1] + ', "more": 1}', json.dumps({key: record[key]}),
                     line.replace(f'"{key}": {json.dumps(record[key])}', f'"{key}": {"9" * 5000}')):  # fmt: skip
            file.write_text(text + "\n")
            with pytest.raises(UsageError, match="not a metric of dstee"):
                plot.read_run(run)


def test_a_configuration_file_is_bounded(tmp_path, capsys):
    for text in (
        b" " * (2 << 20) + b"{}",
        DEEP,
        b'{"lr": ' + NUMBER + b"}",
        b'{"lr": 1, "lr": 1}',
        b'{"lr": 1' + b"0" * 400 + b"}",
    ):
        (tmp_path / "c.json").write_bytes(text)
        assert cli.main(["train", "--out", str(tmp_path / "a"), "--config", str(tmp_path / "c.json")]) == 2
        error = capsys.readouterr().err
        assert "c.json is not a JSON object of settings" in error and error.count("\n") == 1


# --- links ---------------------------------------------------------------------------------------------------------------


def test_a_trial_folder_that_is_a_link_is_refused(run, tmp_path, capsys):
    mine = tmp_path / "mine"
    (run / "dst-ee-seed0").rename(mine)
    before = (mine / "metrics.jsonl").read_bytes()
    (run / "dst-ee-seed0").symlink_to(mine)
    for mode in ("--resume", "--overwrite"):
        assert cli.main(["train", "--out", str(run), mode, "--method", "dst-ee", *TINY]) == 2
        assert "dst-ee-seed0 is a symbolic link, which a run does not follow" in capsys.readouterr().err
        assert os.listdir(mine) == ["metrics.jsonl"] and (mine / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("exists", [True, False])
def test_a_lock_file_that_is_a_link_is_refused(tmp_path, capsys, exists):
    victim = tmp_path / "victim"
    if exists:
        victim.write_text("mine")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / ".lock").symlink_to(victim)
    assert cli.main(["train", "--out", str(tmp_path / "a"), *TINY]) == 2
    assert ".lock is a symbolic link" in capsys.readouterr().err
    assert victim.exists() == exists and (not exists or victim.read_text() == "mine")
    assert os.listdir(tmp_path / "a") == [".lock"]


def test_links_in_the_place_of_files_are_replaced(run, tmp_path, capsys):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    config = (run / "config.json").read_bytes()
    (tmp_path / "config").write_bytes(config)
    for name, target in {"config.json": tmp_path / "config", "results.json": victim, "curves.png": victim,
                         "dst-ee-seed0/metrics.jsonl": victim}.items():  # fmt: skip
        (run / name).unlink(missing_ok=True)
        (run / name).symlink_to(target)
    for name in ("config.json", "results.json", "curves.png"):  # where 0.1.0 wrote before it renamed
        (run / f".{name}.tmp").symlink_to(victim)
    assert cli.main(["train", "--out", str(run), "--resume"]) == 0
    assert victim.read_text() == "mine" and (tmp_path / "config").read_bytes() == config
    assert not [p for p in run.rglob("*") if p.is_symlink()]
    capsys.readouterr()


def test_what_a_killed_run_left_is_removed(run, capsys):
    trial, hexed = run / "dst-ee-seed0", ".0123456789abcdef"
    left = [run / f".{name}{more}.tmp" for name in ("config.json", "results.json", "curves.png") for more in ("", hexed)]
    left += [trial / f".{name}{more}.tmp" for name in ("metrics.jsonl", "checkpoint-0000000007.dst") for more in ("", hexed)]
    mine = [run / ".notes.tmp", trial / ".vimrc.tmp"]
    for path in (*left, *mine):
        path.write_text("x")
    assert cli.main(["train", "--out", str(run), "--resume"]) == 0
    assert not [p for p in left if p.exists()] and all(p.exists() for p in mine)
    assert not [p for p in run.rglob("*.tmp") if p not in mine]
    capsys.readouterr()
