"""Finds a fault of gcc 12's AVX-512 code in compiled objects: a mask spilled as 16 bits and read back as 32.

Where a 16-bit mask is widened to 32 bits, gcc 12 can keep it in a mask register, store two bytes of it (kmovw) and read four:
the upper half is what lay on the stack before. Whether it does depends on the pressure on registers, hence on flags.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_FUNCTION = re.compile(r"^[0-9a-f]+ <(.+)>:$")
_INSTRUCTION = re.compile(r"^ *([0-9a-f]+):\t(\S+)\s*(.*)$")
_PLACE = re.compile(r"(BYTE|WORD|DWORD|QWORD|XMMWORD|YMMWORD|ZMMWORD)? ?(?:PTR )?\[(r[sb]p[^\]]*)\]")
_MASK_STORES = ("kmovw", "kmovb")


@dataclass(frozen=True)
class MaskSpill:
    """A place on the stack that two instructions of a function disagree about."""

    function: str
    stored: str
    read: str

    def __str__(self) -> str:
        return f"{self.function}: a mask stored by '{self.stored}' is read by '{self.read}'"


def disassemble(file: Path) -> str:
    """Raises FileNotFoundError where there is no objdump."""
    command = ["objdump", "-d", "-C", "-M", "intel", "--no-show-raw-insn", str(file)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def find(lines: Iterable[str]) -> list[MaskSpill]:
    """In the output of ``disassemble``: reads that a narrow store reaches on some way through its function."""
    found: list[MaskSpill] = []
    function, body = "", []
    for line in [*lines, "0 <end>:"]:
        if match := _FUNCTION.match(line):
            found += _find_in(function, body)
            function, body = match[1], []
        elif match := _INSTRUCTION.match(line):
            body.append((match[1], match[2], match[3]))
    return found


def _find_in(function: str, body: list[tuple[str, str, str]]) -> list[MaskSpill]:
    if not any(name in _MASK_STORES for _, name, _ in body):
        return []
    where = {address: i for i, (address, _, _) in enumerate(body)}
    reaching: list[dict[str, str] | None] = [None] * len(body)  # place on the stack -> the narrow store that came last
    found: dict[int, MaskSpill] = {}
    todo: list[tuple[int, dict[str, str]]] = [(0, {})]
    while todo:
        i, masks = todo.pop()
        while i < len(body):
            seen = reaching[i]
            if seen is not None and masks.keys() <= seen.keys():
                break
            masks = masks | (seen or {})
            reaching[i] = masks
            _, name, operands = body[i]
            masks = _after(function, i, name, operands, masks, found)
            if name.startswith("j") and (target := where.get(operands.split(" ")[0])) is not None:
                todo.append((target, masks))
            if name in ("jmp", "ret", "ud2"):
                break
            i += 1
    return [found[i] for i in sorted(found)]


def _after(
    function: str, i: int, name: str, operands: str, masks: dict[str, str], found: dict[int, MaskSpill]
) -> dict[str, str]:
    """What is stored narrowly behind instruction ``i``; enters it in ``found`` where it reads such a place widely."""
    place = _PLACE.search(operands)
    if not place or name == "lea":
        return masks
    slot, text = place[2], f"{name} {operands}"
    writes = operands.startswith(place[0]) and "," in operands and name.startswith(("mov", "kmov", "vmov"))
    if writes and name in _MASK_STORES:
        return masks | {slot: text}
    if writes:
        return {other: store for other, store in masks.items() if other != slot}
    if slot in masks and place[1] == "DWORD" and not name.startswith("v"):  # vectors: the place has served twice
        found[i] = MaskSpill(function, masks[slot], text)
    return masks
