"""``dstee info``: versions, how the compiled module was built, and which backend can run where."""

from __future__ import annotations

import importlib.metadata
import platform
import textwrap

import torch

import dstee
from dstee import backends, ops, reference
from dstee._console import one_line, terminal_width
from dstee.backends import native

__all__ = ["backend_lines", "info", "versions"]


def versions() -> dict[str, str]:
    """Of dstee and what its commands need, by package."""
    found = {"dstee": dstee.__version__, "torch": torch.__version__}
    for package in ("numpy", "rich", "matplotlib", "scikit-learn", "scipy"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def info() -> None:
    print(f"python {platform.python_version()} on {platform.platform()}")
    for package, version in versions().items():
        print(f"{package} {version}" + (': pip install "dstee[cli]"' if version == "not installed" else ""))
    print("\nbuild of dstee._C")
    for key, value in native.build_info().items():
        shown = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else value
        print(f"  {key}: {one_line(shown) or 'none'}")
    print(f"\nbackends (forced: {backends.forced() or 'none, the first that can run'})")
    width = terminal_width()
    for line in backend_lines():
        print(f"  {line}" if width is None else textwrap.fill(line, width, initial_indent="  ", subsequent_indent=" " * 6,
                                                              break_long_words=False, break_on_hyphens=False))  # fmt: skip


def backend_lines() -> list[str]:
    """One line per backend and device: which ops it can run there, or why it cannot."""
    names = [
        name
        for name, f in vars(reference).items()
        if getattr(f, "__module__", None) == reference.__name__ and hasattr(ops, name)
    ]
    devices = [torch.device("cpu")]
    if torch.cuda.is_available():
        devices += [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
    lines = []
    for device in devices:
        where = f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)
        for backend in backends.BACKENDS.values():
            reasons: dict[str, list[str]] = {}
            for name in names:
                reasons.setdefault(backend.why_not(name, device) or "", []).append(name)
            for reason, ops_of_reason in reasons.items():
                which = "" if len(reasons) == 1 else f" [{', '.join(ops_of_reason)}]"
                lines.append(f"{backend.name:10} {where:6} {'can run' if not reason else f'cannot run: {reason}'}{which}")
        try:
            chosen = backends.resolve("drop_grow_", device).name
            chosen += " (the same bits, but slow: full sorts)" if chosen == "reference" else ""
        except (ValueError, RuntimeError) as error:
            chosen = f"none: {one_line(error)}"
        lines.append(f"{'-> runs on':10} {where:6} {chosen}")
    return lines
