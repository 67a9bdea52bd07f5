"""``make cuda-check``: compiles every CUDA kernel with nvcc, on any machine that has it, GPU or not.

Compiles csrc/cuda/*.cu for sm_80 and sm_90 against the headers of the installed torch (CPU wheels have them too), prints
registers and memory of each kernel, and fails on an error, a warning, a spill or a stack frame.
"""

from __future__ import annotations

import argparse
import ast
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ARCHS = (80, 90)


@dataclass(frozen=True)
class Kernel:
    """What ptxas says of one function for one architecture; memory in bytes. ``entry``: a kernel, not a called function."""

    name: str
    arch: str
    entry: bool = True
    registers: int = 0
    shared: int = 0
    stack: int = 0
    spill_stores: int = 0
    spill_loads: int = 0

    @property
    def fault(self) -> str:
        spills = self.spill_stores + self.spill_loads
        return "spill" if spills else "stack frame" if self.stack else ""


_ENTRY = re.compile(r"Compiling entry function '(.+?)' for '(\w+)'")
_PROPERTIES = re.compile(r"Function properties for (\S+)")
_FRAME = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+)(?:\+(\d+))? bytes smem")


def parse_ptxas(text: str) -> list[Kernel]:
    """The kernels of ``nvcc -Xptxas -v`` output, and the functions they call without inlining, in order."""
    found: dict[tuple[str, str], dict] = {}
    entry = function = arch = ""
    for line in text.splitlines():
        if match := _ENTRY.search(line):
            entry, arch = match.groups()
            function = entry
            found[entry, arch] = {"entry": True}
        elif match := _PROPERTIES.search(line):
            function = match[1]
            found.setdefault((function, arch), {"entry": function == entry})
        elif match := _FRAME.search(line):
            found[function, arch] |= dict(zip(("stack", "spill_stores", "spill_loads"), map(int, match.groups()), strict=True))
        elif match := _USED.search(line):
            shared = _SHARED.search(line)
            size = sum(int(part) for part in shared.groups() if part) if shared else 0
            found[entry, arch] |= {"registers": int(match[1]), "shared": size}
    return [Kernel(name, arch, **facts) for (name, arch), facts in found.items()]


def warnings_in(text: str) -> list[str]:
    """Warnings and errors in compiler output."""
    said = [line.strip() for line in text.splitlines() if re.search(r"\b(warning|error)\b", line, re.I)]
    # nvcc compiles once per architecture and says everything as often
    return list(dict.fromkeys(line for line in said if not line.startswith(("ptxas info", "Remark"))))


def from_setup(*names: str) -> list:
    """Constants of setup.py, without running it."""
    tree = ast.parse((ROOT / "setup.py").read_text())
    values = {
        target.id: statement.value
        for statement in tree.body
        if isinstance(statement, ast.Assign)
        for target in statement.targets
        if isinstance(target, ast.Name)
    }
    return [ast.literal_eval(values[name]) for name in names]


def torch_includes() -> list[str]:
    from torch.utils.cpp_extension import include_paths

    return include_paths()


def command(nvcc: str, source: Path, target: Path, includes: Iterable[str]) -> list[str]:
    flags, abi = from_setup("NVCC_FLAGS", "STABLE_ABI")
    archs = [part for arch in ARCHS for part in ("-gencode", f"arch=compute_{arch},code=sm_{arch}")]
    system = [part for path in includes for part in ("-isystem", path)]
    defines = ["-DUSE_CUDA", f"-DTORCH_TARGET_VERSION={abi}"]
    return [
        nvcc,
        *flags,
        *archs,
        *defines,
        *system,
        "-Xcompiler=-Wall,-fPIC",
        "-Xptxas=-v",
        "-c",
        str(source),
        "-o",
        str(target),
    ]


def find_nvcc() -> str | None:
    """Plain nvcc: torch's own look-up finds none where torch is a CPU wheel. Looks where setup.py does."""
    homes = [home for home in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")) if home]
    named = [shutil.which("nvcc", path=f"{home}/bin") for home in homes]
    return next(filter(None, [*named, shutil.which("nvcc"), shutil.which("nvcc", path="/usr/local/cuda/bin")]), None)


def readable(names: Sequence[str]) -> dict[str, str]:
    """Mangled name -> what stands in the source, without namespaces and arguments."""
    tool = shutil.which("cu++filt") or shutil.which("c++filt")
    if tool is None or not names:
        return {name: name for name in names}
    text = subprocess.run([tool], input="\n".join(names), capture_output=True, text=True, check=True).stdout
    return {name: shorten(line) for name, line in zip(names, text.splitlines(), strict=True)}


def shorten(name: str) -> str:
    name = name.replace("(anonymous namespace)::", "").replace("dstee::cuda::", "")
    name = re.sub(r"\((?:dstee::)?(?:\w+::)*\w+\)(?=-?\d)", "", name)  # the type of an enumerator
    depth = 0
    for i, letter in enumerate(name):
        depth += (letter == "<") - (letter == ">")
        if letter == "(" and depth == 0:
            name = name[:i]
            break
    return re.sub(r"^(static )?void ", "", name)


def table(kernels: Sequence[Kernel], names: dict[str, str]) -> str:
    width = max(len(names[k.name]) for k in kernels)
    lines = [f"{'kernel':{width}}  arch   registers  shared  stack  spills"]
    for k in kernels:
        spills = k.spill_stores + k.spill_loads
        registers, shared = (str(k.registers), str(k.shared)) if k.entry else ("", "")
        line = f"{names[k.name]:{width}}  {k.arch}  {registers:>9}  {shared:>6}  {k.stack:5}  {spills:6}"
        lines.append(line + (f"  <- {k.fault}" if k.fault else ""))
    return "\n".join(lines)


def judge(outputs: dict[str, tuple[int, str]]) -> tuple[list[Kernel], list[str]]:
    """Kernels and complaints of {file: (exit status, compiler output)}."""
    kernels, complaints = [], []
    for file, (status, text) in outputs.items():
        found = parse_ptxas(text)
        kernels += found
        said = warnings_in(text)
        complaints += said
        if status != 0 and not said:
            complaints.append(f"{file}: nvcc ended with status {status}")
        complaints += [f"{file}: {k.name} for {k.arch} has a {k.fault}" for k in found if k.fault]
    for kernel in {k.name for k in kernels if k.entry}:
        missing = {f"sm_{arch}" for arch in ARCHS} - {k.arch for k in kernels if k.name == kernel}
        complaints += [f"{kernel} was not compiled for {arch}" for arch in sorted(missing)]
    if not any(k.entry for k in kernels):
        complaints.append("ptxas named no kernel: its output has another form than this script reads")
    return kernels, list(dict.fromkeys(complaints))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, help="default: csrc/cuda/*.cu")
    parser.add_argument("--jobs", type=int, default=2, help="compilers at a time")
    options = parser.parse_args(arguments)
    nvcc = find_nvcc()
    if nvcc is None:
        print("cuda-check: skipped, nvcc was not found: the CUDA kernels were not compiled")
        return 0
    files = options.files or sorted((ROOT / "csrc/cuda").glob("*.cu"))
    if not files:
        print("cuda-check: no CUDA sources")
        return 1
    includes = torch_includes()

    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(options.jobs) as pool:

        def compile(file: Path) -> tuple[int, str]:
            line = command(nvcc, file, Path(folder) / f"{file.name}.o", includes)
            done = subprocess.run(line, capture_output=True, text=True)
            return done.returncode, done.stdout + done.stderr

        outputs = dict(zip((f.name for f in files), pool.map(compile, files), strict=True))

    kernels, complaints = judge(outputs)
    names = readable([*{k.name for k in kernels}])
    if kernels:
        print(table(sorted(set(kernels), key=lambda k: (names[k.name], k.arch)), names))
    for complaint in complaints[:40]:
        print("cuda-check: " + re.sub(r"\w+", lambda word: names.get(word[0], word[0]), complaint))
    entries = len({k.name for k in kernels if k.entry})
    verdict = "FAILED" if complaints else "no warnings, spills or stack frames"
    print(f"cuda-check: {len(files)} files, {entries} kernels, {verdict}")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
