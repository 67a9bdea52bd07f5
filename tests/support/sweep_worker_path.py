"""Where the process is that stands in for a sweep's own."""

from pathlib import Path

FAKE = Path(__file__).with_name("sweep_worker.py")
