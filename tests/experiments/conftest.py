"""Fixtures shared by the tests that run commands."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.command_server import shared_server

from dstee import cli


@pytest.fixture(scope="module")
def server():
    return shared_server()


@pytest.fixture
def quiet_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder, no data, and this checkout for the processes that a command starts."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DSTEE_DATA", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(Path(cli.__file__).parents[1]))
