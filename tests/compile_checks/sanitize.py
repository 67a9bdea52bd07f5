"""``make sanitize``: the CPU kernels under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer.

Builds the program of tests/cpu_host with each compiler that is installed, and runs random updates on every instruction set of
this processor with two threads. Every build must print the same digest, those under FLAGS without sanitizers too; and each
sanitizer must find a fault that is there on purpose, so that a clean report means something.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from compile_checks import mask_spills
from cpu_host.build import BuildError, build, find_compilers


@dataclass(frozen=True)
class Variant:
    """Flags, and for each mode of the program in which a fault is planted what the sanitizer says of it."""

    flags: tuple[str, ...]
    planted: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        return " ".join(flag for flag in self.flags if flag not in ("-g", "-fno-sanitize-recover=all"))


PLAIN = Variant(("-O3",))
ADDRESS = Variant(
    ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
    (("write", "ERROR: AddressSanitizer"), ("undefined", "signed integer overflow")),
)
THREAD = Variant(("-O1", "-g", "-fsanitize=thread"), (("race", "data race"),))
# What users have in CXXFLAGS, and -finstrument-functions and -fsanitize=null, under which gcc 12 once spilled masks wrongly.
FLAGS = [
    Variant(tuple(text.split()))
    for text in (
        "-O0", "-Os", "-O3 -march=native", "-O3 -flto", "-O3 -fno-strict-aliasing", "-O3 -ffast-math", "-Ofast",
        "-O3 -ffp-contract=fast", "-O3 -finstrument-functions", "-O1 -fsanitize=null",
    )
]  # fmt: skip


def has_sanitizers(compiler: str, folder: Path) -> bool:
    """Whether its libraries are installed."""
    source = folder / "probe.cpp"
    source.write_text("int main() {}\n")
    return all(
        subprocess.run([compiler, f"-fsanitize={kind}", source, "-o", folder / "probe"], capture_output=True).returncode == 0
        for kind in ("address,undefined", "thread")
    )


def run(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """It ends with status 0 only if no sanitizer reported anything."""
    # Without randomised addresses: those of new kernels lie where ThreadSanitizer expects its own.
    prefix = ["setarch", "-R"] if Path("/usr/bin/setarch").exists() else []
    options = os.environ | {"ASAN_OPTIONS": "detect_leaks=0", "TSAN_OPTIONS": "halt_on_error=1"}
    return subprocess.run([*prefix, str(program), *arguments], capture_output=True, text=True, env=options, timeout=1200)


def examine(compiler: str, variant: Variant, cases: int, folder: Path) -> tuple[str, list[str]]:
    """What the program prints last, and complaints."""
    try:
        program = build(compiler, variant.flags, folder)
    except BuildError as error:
        return "", [str(error)]
    done = run(program, "check", str(cases))
    lines = done.stdout.splitlines()
    complaints = []
    if done.returncode != 0:
        complaints += [f"ended with status {done.returncode}", *lines[:5], *done.stderr.splitlines()[:12]]
    for mode, report in variant.planted:
        found = run(program, mode)
        if found.returncode == 0 or report not in found.stderr:
            complaints.append(f"the planted fault '{mode}' was not found")
    spills = mask_spills.find(mask_spills.disassemble(program).splitlines())
    return lines[-1] if lines else "", complaints + [str(spill) for spill in spills]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("compilers", nargs="*", help="default: those that are installed")
    parser.add_argument("--cases", type=int, default=300, help="random updates of each build")
    parser.add_argument("--quick", action="store_true", help="AddressSanitizer and ThreadSanitizer with one compiler only")
    options = parser.parse_args(arguments)
    compilers = options.compilers or find_compilers()
    if options.quick:
        compilers = compilers[:1]
    if not compilers:
        print("sanitize: skipped, no compiler was found")
        return 0
    digests: set[str] = set()
    failed = False
    with tempfile.TemporaryDirectory() as name:
        for compiler in compilers:
            sanitizers = [ADDRESS, THREAD] if has_sanitizers(compiler, Path(name)) else []
            if not sanitizers:
                print(f"sanitize: {compiler} has no sanitizers here")
            for variant in [PLAIN, *sanitizers, *([] if options.quick else FLAGS)]:
                folder = Path(name) / f"{compiler} {variant}".replace(" ", "")
                last, complaints = examine(compiler, variant, options.cases, folder)
                digests |= {last} - {""}
                if len(digests) > 1:
                    complaints.append("other bits than the first build")
                failed |= bool(complaints)
                print(f"sanitize: {compiler} {variant}: {last}" + "".join(f"\n  {text}" for text in complaints), flush=True)
    print("sanitize: " + ("FAILED" if failed else "no reports, every planted fault found, the same bits everywhere"))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
