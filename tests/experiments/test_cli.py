"""The command line as a person meets it: what it prints, writes and returns, with good input and bad."""

import errno
import fcntl
import json
import os
import pty
import re
import select
from pathlib import Path

import pytest
import torch
from support.command_server import TINY, digests

from dstee import _files, cli
from dstee.experiments import checkpoint, commands, info, plot, run_folder
from dstee.experiments.config import COMPARED

pytestmark = pytest.mark.usefixtures("quiet_place")


def plain(text):
    """No control characters but line breaks."""
    return all(c == "\n" or c.isprintable() for c in text)


# --- a whole run ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compared(server, tmp_path_factory):
    """``dstee train --compare`` in a process of its own, in an environment that asks for colour: folder, stdout, stderr."""
    base = tmp_path_factory.mktemp("runs")
    streams = [base / "stdout", base / "stderr"]
    colour = {"FORCE_COLOR": "1", "TTY_COMPATIBLE": "1", "CLICOLOR_FORCE": "1", "COLUMNS": "40"}
    argv = ["train", "--data", "digits", "--compare", "--seeds", "2", "--out", base / "demo", *TINY]
    server.start(argv, streams, colour)
    status = server.wait()
    assert status == 0, streams[1].read_text()
    return base / "demo", streams[0].read_bytes(), streams[1].read_bytes()


def test_comparison_ends_with_table_picture_and_metrics(compared):
    out, stdout, _ = compared
    text = stdout.decode()
    for name in ("dense", "static", "SET", "RigL", "DST-EE"):
        figures = r"\d+\.\d\d ± \d+\.\d\d +[01]\.\d{4} +\d\.\d{3}x +\d\.\d{3}x +[01]\.\d{3} +[01]\.\d{3} +\d+\.\d%"
        assert re.search(f"^{name} +{figures}", text, re.M), name
    assert "accuracy %" in text and "(2 seeds)" in text and "backend" in text and "sparsity=0.9" in text
    assert max(map(len, text[text.index("accuracy %") :].splitlines()[:10])) <= 80
    assert re.search(r"^dense .*\nat initialisation +\nstatic .*\ndynamic +\n(.+\n){3}", text, re.M)
    assert (out / "curves.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert sorted(p.name for p in out.iterdir() if p.is_dir()) == sorted(
        f"{method}-seed{seed}" for method in ("dense", "static", "set", "rigl", "dst-ee") for seed in (0, 1)
    )


def test_piped_output_has_no_control_characters(compared):
    for stream in compared[1:]:
        assert b"\x1b" not in stream and b"\r" not in stream
        assert plain(stream.decode())


def test_metrics_are_strict_json_lines(compared):
    out, *_ = compared
    for file in out.glob("*/metrics.jsonl"):
        records = [_files.parse_json(line) for line in file.read_bytes().splitlines()]
        assert [r["epoch"] for r in records if r["kind"] == "epoch"] == [1, 2]
        updates = [r for r in records if r["kind"] == "update"]
        if file.parent.name.startswith(("dense", "static")):
            assert not updates
        else:
            assert [r["step"] for r in updates] == [4, 8, 12] and [r["round"] for r in updates] == [1, 2, 3]
            assert sorted(r["exploration"] for r in updates) == [r["exploration"] for r in updates]


def test_relations_between_the_methods(compared):
    out, *_ = compared
    results = json.loads((out / "results.json").read_text())["results"]
    by_method = {r["method"]: r for r in results if r["seed"] == 0}
    numel = 64 * 16 + 16 * 10
    assert by_method["dense"]["nnz"] == numel and by_method["dense"]["training_flops"] == 1
    for method in ("static", "set", "rigl", "dst-ee"):
        result = by_method[method]
        assert result["nnz"] == round(0.1 * numel) and result["inference_flops"] == pytest.approx(0.1, abs=1e-3)
        assert result["kernel_seconds"] > 0
    static, rigl, set_, dstee = (by_method[m] for m in ("static", "rigl", "set", "dst-ee"))
    assert static["exploration"] == pytest.approx(0.1, abs=1e-3)
    assert static["exploration"] < rigl["exploration"] <= dstee["exploration"] <= 0.15
    assert all(r["exploration"] <= r["exploration_limit"] for r in results)
    assert static["exploration"] == static["exploration_limit"] < set_["exploration_limit"] == dstee["exploration_limit"] < 1
    assert by_method["dense"]["exploration_limit"] == 1 and by_method["dense"]["dead_units"] == 0
    assert all(0 <= r["dead_units"] <= 1 for r in results)
    # RigL: updates at 4, 8 and 12 of 20 steps, each with a dense weight gradient
    f = rigl["inference_flops"]
    assert rigl["training_flops"] == pytest.approx((17 * 3 * f + 3 * (2 * f + 1)) / (20 * 3))
    assert all(r["mean_density"] == r["nnz"] / r["numel"] for r in results)
    assert static["training_flops"] == set_["training_flops"] < rigl["training_flops"] == dstee["training_flops"]
    assert len({r["digest"] for r in results}) == len(results)


def test_saved_configuration_reproduces_each_training_alone(compared, capsys, tmp_path):
    out, *_ = compared
    assert cli.main(["train", "--config", str(out / "config.json"), "--seeds", "1", "--seed", "1", "--out", "again"]) == 0
    expected = {name: digest for name, digest in digests(out).items() if name.endswith("seed1")}
    assert digests(tmp_path / "again") == expected and len(expected) == 5
    assert cli.main(["train", "--method", "set", "--out", "alone", *TINY]) == 0
    assert digests(tmp_path / "alone") == {"set-seed0": digests(out)["set-seed0"]}
    capsys.readouterr()


def test_plot_draws_again_from_the_lines_alone(compared, capsys, tmp_path):
    out, *_ = compared
    before = (out / "curves.png").read_bytes()
    (out / "curves.png").unlink()
    assert cli.main(["plot", str(out)]) == 0
    assert (out / "curves.png").read_bytes() == before
    assert cli.main(["plot", str(out), str(out), "--output", "two.png"]) == 0
    assert (tmp_path / "two.png").stat().st_size > 10_000
    assert cli.main(["plot", str(out), str(out)]) == 2
    assert "--output" in capsys.readouterr().err


def test_curves_that_are_drawn_are_those_in_the_file(compared):
    out, *_ = compared
    _, curves = plot.read_run(out)
    assert set(curves) == set(COMPARED)
    records = [json.loads(line) for line in (out / "rigl-seed1" / "metrics.jsonl").read_text().splitlines()]
    assert curves["rigl"].updates[1] == [(r["step"], r["exploration"]) for r in records if r["kind"] == "update"]
    assert curves["rigl"].epochs[1] == [(r["epoch"], r["accuracy"]) for r in records if r["kind"] == "epoch"]


def test_plot_leaves_out_a_torn_line_and_refuses_a_broken_one(capsys):
    assert cli.main(["train", "--out", "a", *TINY]) == 0
    file = Path("a/dst-ee-seed0/metrics.jsonl")
    whole = file.read_bytes()
    file.write_bytes(whole + b'{"kind": "epo')
    capsys.readouterr()
    assert cli.main(["plot", "a"]) == 0
    assert "the last line is incomplete" in capsys.readouterr().err
    for broken in (b"{}\n", b"[1]\n", b'{"kind": "epoch", "method": "x"}\n', whole.replace(b"accuracy", b"accurac"), b"\xff\n"):
        file.write_bytes(whole + broken)
        assert cli.main(["plot", "a"]) == 2
        assert re.fullmatch(r"dstee: error: .*metrics\.jsonl, line \d+: not a metric.*\n", capsys.readouterr().err)


def test_in_a_terminal_there_is_a_bar(server, tmp_path):
    """A real pseudo-terminal: the bar with loss, accuracy and R, then the table; status 0."""
    main, side = pty.openpty()
    server.start(["train", "--out", tmp_path / "a", *TINY], [os.ttyname(side)] * 2, {"TERM": "xterm", "COLUMNS": "150"})
    shown = b""
    while select.select([main], [], [], 60)[0]:
        try:
            shown += os.read(main, 65536)
        except OSError:  # nobody has the other side open any more
            break
        if side >= 0:
            os.close(side)
            side = -1
    os.close(main)
    assert server.wait() == 0
    assert b"\x1b[" in shown and re.search(rb"loss +\d", shown) and b"accuracy" in shown and re.search(rb"R 0\.\d", shown)


# --- a run folder is somebody's ------------------------------------------------------------------------------------------


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_run_is_never_overwritten_silently(tmp_path, capsys):
    assert cli.main(["train", "--out", "a", *TINY]) == 0
    before = contents(tmp_path / "a")
    for options, reason in (
        ([], "already holds a run: continue it"),
        (["--c", "0.5"], r"another configuration \(c is 0.001 there, 0.5 here\)"),
        (["--c", "0.5", "--seed", "4", "--resume"], "c is 0.001 there, 0.5 here; seed is 0 there, 4 here"),
    ):
        capsys.readouterr()
        assert cli.main(["train", "--out", "a", *TINY, *options]) == 2
        error = capsys.readouterr().err
        assert re.search(reason, error) and error.count("\n") == 1
        assert contents(tmp_path / "a") == before
    (tmp_path / "a" / "notes.txt").write_text("mine")
    assert cli.main(["train", "--out", "a", *TINY, "--c", "0.5", "--overwrite"]) == 0
    assert (tmp_path / "a" / "notes.txt").read_text() == "mine"
    assert json.loads((tmp_path / "a" / "config.json").read_text())["config"]["c"] == 0.5


def test_default_folders_are_new_ones(tmp_path, capsys):
    for _ in range(2):
        assert cli.main(["train", "--method", "static", *TINY]) == 0
    assert sorted(os.listdir(tmp_path / "runs")) == ["digits-static", "digits-static-2"]
    capsys.readouterr()


def test_resuming_a_finished_run_changes_nothing(tmp_path, capsys):
    assert cli.main(["train", "--out", "a", *TINY]) == 0
    before = contents(tmp_path / "a")
    assert cli.main(["train", "--out", "a", "--resume"]) == 0
    after = contents(tmp_path / "a")
    assert {k: v for k, v in after.items() if k != "config.json"} == {k: v for k, v in before.items() if k != "config.json"}
    capsys.readouterr()


def test_a_folder_in_use_is_refused(tmp_path, capsys):
    assert cli.main(["train", "--out", "a", *TINY]) == 0
    manifest = run_folder.read_manifest(tmp_path / "a")
    holder = run_folder.RunFolder(tmp_path / "a", {k: manifest[k] for k in ("config", "identity", "data_digest")}, "resume")
    try:
        assert cli.main(["train", "--out", "a", "--resume"]) == 2
        assert "in use by another training" in capsys.readouterr().err
    finally:
        holder.close()
    assert cli.main(["train", "--out", "a", "--resume"]) == 0
    capsys.readouterr()


def test_a_file_system_without_locks_is_no_obstacle(tmp_path, capsys, monkeypatch):
    def unsupported(*args):
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    assert cli.main(["train", "--out", "a", *TINY]) == 0
    capsys.readouterr()


# --- errors --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--sparsity", "1"], r"sparsity must be in \[0, 1\), got 1.0"),
        (["--sparsity", "0.9999"], "sparsity"),
        (["--sparsity", "0.99", "--distribution", "uniform-dense-first"], "dense first layer"),
        (["--epochs", "0", "--lr", "-1"], "epochs must be >= 1, got 0; lr must be >= 0"),
        (["--batch-size", "5000"], "batch_size must be at most the 1297 training samples, got 5000"),
        (["--every", "1", "--epochs", "100000", "--batch-size", "100"], "at most 32765 are counted"),
        (["--momentum", "0"], "nesterov needs a momentum"),
        (["--data", "mnist"], "--data-dir DIR or set DSTEE_DATA"),
        (["--data", "mnist", "--data-dir", "nowhere"], r"no file nowhere/mnist\.npz: .*--data-dir"),
        (["--config", "nowhere.json"], "--config nowhere.json cannot be read: No such file"),
        (["--config", "list.json"], "--config list.json is not a JSON object"),
        (["--config", "typo.json"], r"unknown setting 'epoch' \(did you mean 'epochs'\?\)"),
        (["--resume"], "--resume needs --out DIR"),
        (["--out", "list.json/run"], r"the run folder list.json/run \(--out\) cannot be written: Not a directory"),
        (["--out", "list.json"], r"\(--out\) cannot be written: File exists"),
        (["--out", "full"], "full holds other files and no run"),
        (["--out", "foreign"], r"foreign/config\.json cannot be used"),
        (["--out", "bad\x1b[31m\n/x", "--epochs", "0"], "epochs"),
    ],
)
def test_bad_input_is_one_line_status_2_and_leaves_nothing(tmp_path, capsys, arguments, reason):
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "typo.json").write_text('{"epoch": 3}')
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("x")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "config.json").write_text('{"name": "something else"}')
    before = contents(tmp_path)
    assert cli.main(["train", *TINY, *arguments]) == 2
    captured = capsys.readouterr()
    assert re.fullmatch(r"dstee: error: [^\n]+\n", captured.err) and re.search(reason, captured.err) and plain(captured.err)
    assert captured.out == "" and {k: v for k, v in contents(tmp_path).items() if not k.endswith(".lock")} == before


@pytest.mark.parametrize(
    "arguments", [["train", "--sparsty", "0.5"], ["train", "--epo", "3"], ["train", "--epochs", "x"], [], ["fly"]]
)
def test_unknown_options_have_argparse_s_status(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == 2 and "usage: dstee" in capsys.readouterr().err


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: b"",
        lambda data: b"PK\x03\x04" + data,
        lambda data: b"\x80\x04." + data,
    ],
)
def test_a_run_without_a_whole_checkpoint_cannot_be_resumed(tmp_path, capsys, damage, monkeypatch):
    monkeypatch.setattr(commands, "keep_final", lambda *args: None)  # as if it had been killed just before its end
    assert cli.main(["train", "--out", "a", *TINY]) == 0
    Path("a/results.json").unlink()
    for file in (tmp_path / "a").glob("*/checkpoint-*.dst"):
        file.write_bytes(damage(file.read_bytes()))
    before = {k: v for k, v in contents(tmp_path / "a").items() if k != "config.json"}
    capsys.readouterr()
    assert cli.main(["train", "--out", "a", "--resume"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and all(line.startswith("dstee: warning: skipped a checkpoint: ") for line in lines[:2])
    assert re.match(r"dstee: error: .*none of 2 checkpoints is whole", lines[2])
    assert {k: v for k, v in contents(tmp_path / "a").items() if k != "config.json"} == before


def test_a_full_disk_has_status_2(tmp_path, capsys, monkeypatch):
    real = _files.write_atomic

    def full(path, parts):
        if path.suffix == ".dst":
            raise OSError(28, "No space left on device")
        real(path, parts)

    monkeypatch.setattr(checkpoint, "write_atomic", full)
    monkeypatch.setattr(run_folder, "PAUSE", 0)
    assert cli.main(["train", "--out", "a", *TINY]) == 2
    error = capsys.readouterr().err
    assert len(re.findall("training goes on", error)) == 2 and "(3 of 3 times): make room" in error


def test_a_disk_that_is_full_at_the_start_leaves_no_folder(tmp_path, capsys, monkeypatch):
    def full(path, parts):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run_folder, "write_atomic", full)
    assert cli.main(["train", "--out", "a", *TINY]) == 2
    assert capsys.readouterr().err == "dstee: error: the run folder a (--out) cannot be written: No space left on device\n"
    assert os.listdir(tmp_path) == []


def test_every_device_is_listed_with_the_reason(monkeypatch):
    """Two GPUs that are not there: the native backend has no kernels for them, the reference has."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device.index}")
    lines = info.backend_lines()
    for i in (0, 1):
        assert any(re.match(rf"native +cuda:{i} \(GPU {i}\) cannot run: .+", line) for line in lines)
        assert any(re.match(rf"reference +cuda:{i} \(GPU {i}\) can run", line) for line in lines)
        assert any(re.match(rf"-> runs on +cuda:{i} \(GPU {i}\) reference", line) for line in lines)


def test_names_from_files_are_no_formulas(tmp_path, capsys):
    for name, c in (("a$^{$", "0.1"), ("b$_", "0.2")):
        assert cli.main(["train", "--out", name, *TINY, "--c", c]) == 0
        file = tmp_path / name / "config.json"
        file.write_text(file.read_text().replace('"erk"', '"$\\\\frac{' + name + '"'))
    assert cli.main(["plot", "a$^{$", "b$_", "--output", "out.png"]) == 0
    capsys.readouterr()


def test_a_backend_that_cannot_run_is_an_error(capsys, monkeypatch):
    monkeypatch.setenv("DSTEE_BACKEND", "abacus")
    assert cli.main(["train", *TINY]) == 2
    assert "unknown backend 'abacus'" in capsys.readouterr().err
    assert cli.main(["info"]) == 0
    assert "unknown backend" in capsys.readouterr().out


def test_the_reference_backend_trains_to_the_same_bits(tmp_path, capsys, monkeypatch):
    assert cli.main(["train", "--out", "a", *TINY]) == 0
    monkeypatch.setenv("DSTEE_BACKEND", "reference")
    assert cli.main(["train", "--out", "b", *TINY]) == 0
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    capsys.readouterr()


def test_info_names_versions_build_and_backends(capsys):
    assert cli.main(["info"]) == 0
    text = capsys.readouterr().out
    for part in ("dstee 0.", "torch 2.", "numpy ", "scikit-learn ", "build of dstee._C", "reference  cpu    can run"):
        assert part in text
    assert re.search(r"^  native +cpu +(can run|cannot run: .+)$", text, re.M) and plain(text)
