"""What each command loads, seen in a fresh interpreter: nothing that it does not use."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import dstee

PACKAGE = Path(dstee.__file__).parent
HEAVY = ("bench", "rich", "matplotlib", "sklearn", "pandas", "safetensors", "jinja2")
PROBE = """
import sys
from dstee.cli import main
try:
    status = main(sys.argv[1:])
except SystemExit as stopped:
    status = stopped.code
inner = [name.removeprefix("dstee.").removeprefix("experiments.") for name in sys.modules if name.startswith("dstee.exp")]
parts = {name.split(".")[0] for name in inner}
others = {name.removeprefix("dstee.").split(".")[0] for name in sys.modules} & set(%r)
print("loaded", status, *sorted(parts - {"experiments"} | others))
"""


def loaded_by(*command):
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run(
        [sys.executable, "-c", PROBE % (HEAVY,), *command],
        capture_output=True, text=True, timeout=120, env=environment, cwd=PACKAGE.parent, check=True,
    )  # fmt: skip
    _, status, *names = done.stdout.splitlines()[-1].split()
    return int(status), set(names)


CONFIG = {"config", "data", "method_settings", "models", "references"}


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("--version", set()),
        ("--help", set()),
        ("info", {"info"}),
        ("train --help", CONFIG),
        ("verify-resume --help", CONFIG),
        ("plot --help", set()),
        ("sweep --help", {"sweep"}),
        ("reproduce --help", {"sweep", "reproduce"}),
        ("table --help", {"tables"}),
        ("bench --help", {"bench"}),
    ],
)
def test_a_command_loads_what_it_uses(command, expected):
    assert loaded_by(*command.split()) == (0, expected)


def test_a_picture_needs_no_trainer(tmp_path):
    status, names = loaded_by("plot", str(Path(__file__).parent / "data" / "run-0.1.0"), "--output", str(tmp_path / "x.png"))
    assert status == 0 and "matplotlib" in names and not names & {"bench", "trial", "train", "commands", "rich", "sklearn"}
