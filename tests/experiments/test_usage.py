"""Command lines that cannot be used, by every command: two short lines, what was meant, status 2; and readers that go away."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from support.command_server import TINY

from bench import cli as bench_cli
from dstee import _console, cli

pytestmark = pytest.mark.usefixtures("quiet_place")
ROOT = Path(cli.__file__).resolve().parents[1]

# argument list, how the command is called, what is wrong
UNUSABLE = [
    ("", "usage: dstee COMMAND ... [options]; dstee --help lists them", "required: COMMAND"),
    ("trian --epochs 3", "usage: dstee COMMAND ... [options]", r"command 'trian' is unknown \(did you mean 'train'\?\)"),
    ("--verson", "usage: dstee COMMAND ...", r"unknown option --verson \(did you mean --version\?\)"),
    ("train --sparsty 0.5", "usage: dstee train [options]; dstee train --help", r"--sparsty \(did you mean --sparsity\?\)"),
    ("train --batch_size=8 --nonsense", "usage: dstee train", r"option --batch_size \(did you mean --batch-size\?\)"),
    ("train --learning-rate 0.1", "usage: dstee train", r"--learning-rate \(did you mean --lr\?\)"),
    ("train -seed 3", "usage: dstee train", r"unknown option -seed \(did you mean --seed\?\)"),
    ("train --xyz", "usage: dstee train", r"error: unknown option --xyz\n"),
    ("train --epo 3", "usage: dstee train", r"unknown option --epo \(did you mean --epochs\?\)"),
    ("train --epochs x", "usage: dstee train", "--epochs: expected a whole number, got 'x'"),
    ("train --epochs 1.5", "usage: dstee train", "--epochs: expected a whole number, got '1.5'"),
    ("train --lr fast", "usage: dstee train", "--lr: expected a number, got 'fast'"),
    ("train --hidden 3,x", "usage: dstee train", "--hidden: expected whole numbers as 512,256, got '3,x'"),
    ("train --method rgil", "usage: dstee train", r"--method 'rgil' is unknown \(did you mean 'rigl'\?\): expected"),
    ("train digits", "usage: dstee train", "unexpected argument 'digits'"),
    ("train --resume --overwrite", "usage: dstee train", "--overwrite: not allowed with argument --resume"),
    ("train --out", "usage: dstee train", "--out: expected one argument"),
    ("verify-resume --foo", "usage: dstee verify-resume [options]", "unknown option --foo"),
    ("verify-theory --dims 3", "usage: dstee verify-theory [options]", r"--dims \(did you mean --dim\?\)"),
    ("verify-theory --dim x", "usage: dstee verify-theory", "--dim: expected a whole number"),
    ("sweep", "usage: dstee sweep --out DIR GRID.toml [options]; dstee sweep --help", "required: GRID.toml, --out"),
    ("sweep g.toml --job 2", "usage: dstee sweep", r"unknown option --job \(did you mean --jobs\?\)"),
    ("reproduce table9", "usage: dstee reproduce", r"'table9' is unknown \(did you mean 'table[1-4]'\?\)"),
    ("info now", "usage: dstee info [options]", "unexpected argument 'now'"),
    ("plot", "usage: dstee plot RUN_DIR [RUN_DIR ...] [options]", "required: RUN_DIR"),
    ("figure fig3 a", "usage: dstee figure --output FILE KIND RUNS", "required: --output"),
    ("table a --baselin x", "usage: dstee table RUNS [RUNS ...] [options]", r"\(did you mean --baseline\?\)"),
    ("bench --densty 0.1", "usage: dstee bench", r"unknown option --densty \(did you mean --density\?\)"),
    ("bench --repeats many", "usage: dstee bench", "--repeats: expected a whole number, got 'many'"),
    ("bench comapre a b", "usage: dstee bench [options]", r"command 'comapre' is unknown \(did you mean 'compare'\?\)"),
    ("bench compare a.json", "usage: dstee bench compare A.json B.json [options]; dstee bench compare", "required: B.json"),
    ("bench compare a b --margn 1", "usage: dstee bench compare", r"--margn \(did you mean --margin\?\)"),
    ("bench ranks --rank 2", "usage: dstee bench ranks [options]", r"--rank \(did you mean --ranks\?\)"),
    ("bench --shapes mlp --densty 0.1", "usage: dstee bench", r"unknown option --densty \(did you mean --density\?\)"),
    ("bench --backends nativ", "usage: dstee bench", r"--backends 'nativ' is unknown \(did you mean 'native'\?\)"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "usage", "reason"), UNUSABLE)
def test_a_command_line_that_cannot_be_parsed(words, usage, reason, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(words.split())
    out, err = capsys.readouterr()
    assert stopped.value.code == 2 and out == "" and err.count("\n") == 2
    assert err.startswith(usage) and re.search(reason, err), err
    assert re.match(r"dstee: error: ", err.splitlines()[1])
    assert re.match(r"usage: (dstee(?: [a-z-]+)*)(?= ).*; \1 --help lists them\n", err), err


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("bench compare a.json b.json", r"a\.json cannot be read: No such file"),
        ("bench report a.json", r"a\.json cannot be read: No such file"),
        ("bench ranks --ranks 0", "--ranks 0: expected 1 to 64"),
        ("bench ranks --methods x", "--methods x: expected of"),
        ("bench model --gpu h100 --measured a.json", r"a\.json cannot be read"),
        ("bench --plugin no_such", r"--plugin: ModuleNotFoundError: No module named 'no_such'"),
        ("bench --plugin broken", r"--plugin: ZeroDivisionError: division by zero"),
        ("plot nowhere", "nowhere holds no run"),
        ("table nowhere", "there is no nowhere"),
        ("figure fig3 nowhere --output x.png", "there is no nowhere"),
        ("sweep nowhere.toml --out x", r"nowhere\.toml cannot be read: No such file"),
        ("train --config nowhere.json", r"--config nowhere\.json cannot be read: No such file"),
        ("train --sparsity 95", r"sparsity must be in \[0, 1\), got 95.0: 95 % is 0.95"),
        ("train --sparsity 100", r"sparsity must be in \[0, 1\), got 100.0$"),
        ("train --drop-fraction 30", r"drop_fraction must be in \(0, 1\], got 30.0: 30 % is 0.3"),
        ("train --sparsity -0.5", r"sparsity must be in \[0, 1\), got -0.5$"),
        ("train --seed -1", r"seed must be in 0\.\.2\^31-1, got -1"),
        ("train --seeds 0", r"seeds must be in 1\.\.1000, got 0"),
        ("train --lr -1e-3", r"lr must be >= 0, got -0\.001"),
        ("train --compare rigl,rgil", r"compare: unknown method 'rgil' \(did you mean 'rigl'\?\)"),
        ("train --method snfs --set bta=0.9", r"snfs has no setting 'bta' \(did you mean 'beta'\?\)"),
        ("train --data mnits", r"unknown data set 'mnits' \(did you mean 'mnist'\?\)"),
        ("train --data mnist", r"--data mnist needs the folder of mnist\.npz: pass --data-dir DIR or set DSTEE_DATA"),
        ("train --data mnist --data-dir nowhere", r"no file nowhere/mnist\.npz"),
        ("train --model mpl", r"unknown .*'mpl' \(did you mean 'mlp'\?\)"),
        (
            "train --data takes_folder:load",
            r"--data takes_folder:load asks for folder, but is called with data_dir, the folder of the data, or",
        ),
        ("train --resume", r"--resume needs --out DIR"),
        ("train --out /proc/x", r"the run folder /proc/x \(--out\) cannot be written: "),
        ("sweep broken.toml --out x", r"broken\.toml: it is not TOML"),
    ],
)
def test_what_was_asked_for_cannot_be_done(words, reason, capsys, tmp_path, monkeypatch):
    (tmp_path / "broken.py").write_text("1 / 0\n")
    (tmp_path / "takes_folder.py").write_text("def load(folder): pass\n")
    (tmp_path / "broken.toml").write_text("seeds = = 2\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert cli.main(words.split()) == 2
    out, err = capsys.readouterr()
    assert (
        out == ""
        and err.count("\n") == 1
        and re.search(f"^dstee: error: .*{reason.rstrip('$')}" + "$" * reason.endswith("$"), err)
    )


def test_bench_alone_has_the_same_statuses(capsys):
    with pytest.raises(SystemExit) as stopped:
        bench_cli.main(["--densty", "0.1"])
    assert stopped.value.code == 2 and "usage: python -m bench" in capsys.readouterr().err
    assert bench_cli.main(["compare", "a.json", "b.json"]) == 2
    assert "a.json cannot be read" in capsys.readouterr().err


def test_help_documents_every_status(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--help"])
    text = capsys.readouterr().out
    assert stopped.value.code == 0
    for status in ("0", "1", "2", "3", "130, 143", str(_console.UNREAD)):
        assert re.search(rf"^  {status}  ", text, re.M), status


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("finished") / "a"
    assert cli.main(["train", "--out", str(out), *TINY]) == 0
    return out


@pytest.fixture
def trained(finished, tmp_path, capsys):
    """The run ``a``, in the working directory."""
    shutil.copytree(finished, tmp_path / "a")
    capsys.readouterr()


# --- readers that go away ------------------------------------------------------------------------------------------------


@pytest.fixture
def unread(monkeypatch):
    """Standard output is a pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    stream = open(writer, "w")  # noqa: SIM115  # closed below
    monkeypatch.setattr(sys, "stdout", stream)
    yield
    stream.close()


@pytest.mark.parametrize(
    "words",
    [
        "--help", "--version", "train --help", "bench --help", "info", "table a", "table a --format csv", "plot a",
        "figure cost a --output x.png", "train --out b", "train --out a --resume", "bench model --gpu h100",
        "verify-theory --seeds 1 --rounds 2 --max-rounds 4 --dim 4",
    ],
)  # fmt: skip
def test_nobody_reads(words, trained, capsys, request):
    request.getfixturevalue("unread")
    more = TINY if words == "train --out b" else []
    assert cli.main([*words.split(), *more]) == _console.UNREAD
    assert "Traceback" not in capsys.readouterr().err and "error" not in capsys.readouterr().err


def test_a_training_goes_on_when_its_reader_goes(tmp_path, monkeypatch, capsys):
    """As with ``| head -1``: only what stands at the end of it is not read."""
    reader, writer = os.pipe()
    done = threading.Thread(target=lambda: (os.read(reader, 10), os.close(reader)))
    done.start()
    with monkeypatch.context() as here, open(writer, "w") as stream:
        here.setattr(sys, "stdout", stream)
        assert cli.main(["train", "--out", "b", *TINY]) == _console.UNREAD
    done.join()
    assert {"results.json", "curves.png"} <= {path.name for path in (tmp_path / "b").iterdir()}
    assert not re.search("error|Traceback", capsys.readouterr().err)


def test_python_ends_quietly_too():
    """What is left in a stream is written once more as Python ends."""
    command = f"{sys.executable} -m dstee info | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120, check=True)
    assert (done.stdout, done.stderr) == (f"{_console.UNREAD}\n", "")


def test_a_full_device_is_told_in_one_line(monkeypatch, capsys):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert cli.main(["info"]) == 2
    assert capsys.readouterr().err == "dstee: error: the output cannot be written: No space left on device\n"


# --- packages that are missing -------------------------------------------------------------------------------------------


def calls_of_needs():
    for folder in ("dstee", "bench"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "needs":
                    yield file.relative_to(ROOT), [getattr(arg, "value", None) for arg in node.args]


def extras():
    text = (ROOT / "pyproject.toml").read_text()
    section = text.partition("[project.optional-dependencies]\n")[2].partition("\n\n")[0]
    return {
        name: set(re.findall(r'"([\w-]+)', packages)) for name, packages in re.findall(r"^(\w+) = \[(.*)\]$", section, re.M)
    }


def test_messages_name_the_extra_that_brings_the_package():
    known = extras()
    assert {"cli", "report", "export", "triton"} <= known.keys()
    calls = list(calls_of_needs())
    assert len(calls) >= 15
    for file, (_, package, extra) in calls:
        if isinstance(extra, str):
            assert extra in known, (file, extra)
            assert package in known[extra] or not isinstance(package, str), (file, package, extra)
    assert _console.needs("x", "rich", "cli") == 'x needs rich: pip install "dstee[cli]"'


def test_no_other_message_says_how_to_install():
    """But for those on the compiled module, which is in no extra."""
    allowed = {"dstee/_console.py", "dstee/backends/native.py", "dstee/experiments/info.py"}
    for folder in ("dstee", "bench"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            name = file.relative_to(ROOT).as_posix()
            assert "pip install" not in file.read_text() or name in allowed, name


@pytest.mark.parametrize(
    ("package", "words", "text"),
    [
        ("rich", "train --data digits", 'the command line needs rich: pip install "dstee[cli]"'),
        ("filelock", "train --data digits", 'a run folder needs filelock: pip install "dstee[cli]"'),
        ("sklearn", "train --data digits", '--data digits needs scikit-learn: pip install "dstee[cli]"'),
        ("matplotlib.figure", "plot a", 'the picture needs matplotlib: pip install "dstee[cli]"'),
        ("matplotlib.figure", "figure cost a --output x.png", 'the picture needs matplotlib: pip install "dstee[cli]"'),
    ],
)
def test_a_package_that_is_missing(package, words, text, trained, capsys, monkeypatch):
    for name in [name for name in sys.modules if name == package or name.startswith(f"{package}.")]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, package, None)
    assert cli.main(words.split()) == 2
    assert capsys.readouterr().err == f"dstee: error: {text}\n" and not Path("runs").exists()
