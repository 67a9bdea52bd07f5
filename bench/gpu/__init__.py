"""``make gpu``: builds, tests, times and profiles the CUDA kernels on this machine's GPU, with the Python that runs it.

Installs nothing, takes less than nine minutes, and keeps what it has when stopped: ``<gpu>-<date>-<time>.json`` is written
after every stage, and ``<gpu>-<date>-<time>-<kind>.log`` beside it hold all that the stages print. The figures are those of
``python -m bench --device cuda``, whose result files are taken into the JSON file.
"""

from __future__ import annotations

__all__: list[str] = []
