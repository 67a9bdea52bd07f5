"""Compiles csrc with every C++ compiler that is installed, as ``setup.py`` does; a warning fails. A step of ``make check``.

The objects must not hold what the linker could share between files but only some processors can run, nor masks that gcc 12
spills wrongly (mask_spills.py). Nothing is linked or run: ``make sanitize`` does that.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from compile_checks import mask_spills
from compile_checks.cuda_check import ROOT, from_setup, torch_includes, warnings_in
from cpu_host.build import COMPILERS, find_compilers

WIDE = ("loops_avx2.cpp", "loops_avx512.cpp")


def command(compiler: str, source: Path, target: Path) -> list[str]:
    import pybind11

    flags, warnings, abi = from_setup("FLAGS", "WARNINGS", "STABLE_ABI")
    folders = [*torch_includes(), pybind11.get_include(), sysconfig.get_paths()["include"]]
    system = [part for folder in folders for part in ("-isystem", folder)]
    defines = [f"-DTORCH_TARGET_VERSION={abi}"]
    return [compiler, *flags, *warnings, "-Werror", "-fPIC", *defines, *system, "-c", str(source), "-o", str(target)]


def shared_symbols(names: str) -> list[str]:
    """Functions in the output of ``nm`` that the linker merges with those of other files."""
    found = [match[1] for line in names.splitlines() if (match := re.match(r"[0-9a-f]+ [WVu] (.+)$", line))]
    return [name for name in found if not name.startswith("DW.ref.")]


def check_object(source: str, target: Path) -> list[str]:
    """Complaints about an object for processors with AVX."""
    names = subprocess.run(["nm", "-C", str(target)], capture_output=True, text=True, check=True).stdout
    shared = [f"{source}: other files may get its {name}, which needs AVX" for name in shared_symbols(names)]
    return shared + [f"{source}: {spill}" for spill in mask_spills.find(mask_spills.disassemble(target).splitlines())]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, help="default: csrc/*.cpp and csrc/cpu/*.cpp")
    parser.add_argument("--compiler", action="append", help="default: every one that is installed; may be repeated")
    parser.add_argument("--jobs", type=int, default=2, help="compilers at a time")
    options = parser.parse_args(arguments)
    compilers = options.compiler or find_compilers()
    files = options.files or [*sorted((ROOT / "csrc").glob("*.cpp")), *sorted((ROOT / "csrc/cpu").glob("*.cpp"))]
    complaints: list[str] = []
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(options.jobs) as pool:

        def compile(task: tuple[str, Path]) -> list[str]:
            compiler, source = task
            target = Path(folder) / f"{compiler.replace('/', '_')}-{source.name}.o"
            done = subprocess.run(command(compiler, source, target), capture_output=True, text=True)
            said = warnings_in(done.stderr)[:5]
            if done.returncode != 0:
                return [f"{compiler}: {line}" for line in said or [f"{source.name} failed"]]
            return [f"{compiler}: {text}" for text in check_object(source.name, target)] if source.name in WIDE else []

        for found in pool.map(compile, [(compiler, source) for compiler in compilers for source in files]):
            complaints += found
    for complaint in complaints[:40]:
        print(f"cpp-check: {complaint}")
    missing = [] if options.compiler else [name for name in COMPILERS if not find_compilers([name])]
    verdict = "FAILED" if complaints else "no warnings, no mask spilled wrongly"
    print(
        f"cpp-check: {len(files)} files with {', '.join(compilers) or 'no compiler'}: {verdict}"
        + (f"; not found: {', '.join(missing)}" if missing else "")
    )
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
