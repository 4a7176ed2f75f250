"""Reads from a compiled program, as text, what its devices send each other."""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)
# Of the asynchronous forms, those whose type is (operands, results, ...).
LISTS_OPERANDS = tuple(kind for kind in KINDS if kind != "all-reduce")

BITS = {"pred": 8, "token": 0}  # whatever else there is has its bits in its name
ARRAY = re.compile(r"\b(pred|token|[a-z]+\d+\w*)\[([\d,]*)\]")
COMPUTATION = re.compile(r"(?P<entry>ENTRY )?%?(?P<name>[\w.\-]+) .*\{$")
COLLECTIVE = re.compile(
    rf" = (?P<type>.*?) (?P<kind>{'|'.join(KINDS)})(?P<start>-start)?\("
)
CALLED = re.compile(r"(?:calls|to_apply|body|condition|\w+_computation)=%?([\w.\-]+)")
BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
NAME = re.compile(r'op_name="([^"]*)"')


class Array(NamedTuple):
    """One array of an instruction's result."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        digits = re.search(r"\d+", self.dtype)
        bits = BITS[self.dtype] if self.dtype in BITS else int(digits[0])
        return -(-math.prod(self.shape) * bits // 8)


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective operation of a program that all devices run.

    Attributes:
      kind: one of `KINDS`.
      arrays: that each device holds after it.
      group: devices that take part in it together.
      name: what JAX says that it was made of; several, with ":" between them, where the
        compiler joined operations.
      times: that it runs in one call of the program, by what is known of its loops.
      in_open_loop: whether it also is in a loop of unknown length, counted once.
    """

    kind: str
    arrays: tuple[Array, ...]
    group: int
    name: str = ""
    times: int = 1
    in_open_loop: bool = False

    @property
    def num_bytes(self) -> int:
        """Of the whole arrays: before they are scattered, or after they are gathered."""
        result = sum(array.num_bytes for array in self.arrays)
        return self.times * result * (self.group if self.kind == "reduce-scatter" else 1)

    @property
    def sent_bytes(self) -> float:
        """That each device sends, where the devices of a group form a ring."""
        if self.kind == "collective-permute":
            return self.num_bytes
        passes = 2 if self.kind == "all-reduce" else 1
        return passes * self.num_bytes * (self.group - 1) / self.group


def collectives(text: str) -> list[Collective]:
    """Every collective of a compiled program, in the order of the text.

    Args:
      text: `jax.stages.Compiled.as_text()`.
    """
    computations = _computations(text)
    reached: dict[str, tuple[int, bool]] = {}

    def visit(name: str, times: int, is_open: bool) -> None:
        # Reached from several places, it runs as often as all of them say.
        before = reached.get(name, (0, False))
        reached[name] = (before[0] + times, before[1] or is_open)
        for line in computations.get(name, ()):
            loop = " while(" in line
            trips = TRIPS.search(line) if loop else None
            for called in _called(line):
                visit(
                    called,
                    times * (int(trips[1]) if trips else 1),
                    is_open or (loop and trips is None),
                )

    visit(_entry(text), 1, False)
    devices = _num_devices(text)
    return [
        dataclasses.replace(found, times=reached[name][0], in_open_loop=reached[name][1])
        for name, lines in computations.items()
        if name in reached
        for found in _in_lines(lines, devices)
    ]


def _in_lines(lines: list[str], devices: int) -> Iterator[Collective]:
    for line in lines:
        match = COLLECTIVE.search(line)
        if not match:
            continue
        written = match["type"]
        if match["start"] and match["kind"] in LISTS_OPERANDS:
            written = _parts(written)[1]
        arrays = tuple(
            Array(dtype, tuple(int(size) for size in shape.split(",") if size))
            for dtype, shape in ARRAY.findall(written)
        )
        name = NAME.search(line)
        yield Collective(
            match["kind"], arrays, group_size(line, devices), name[1] if name else ""
        )


def group_size(line: str, devices: int) -> int:
    """Devices in each replica group of an instruction, in any of the ways to write it.

    Args:
      line: the instruction.
      devices: all there are, which form one group where none is written.
    """
    if match := re.search(r"source_target_pairs=\{(.*?)\}\}", line):
        return len(set(re.findall(r"\d+", match[1])))
    if match := re.search(r"replica_groups=\[\d+,(\d+)\]<=", line):
        return int(match[1])
    if match := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        return match[1].count(",") + 1
    if match := re.search(r"replica_groups=mesh\[([^\]]*)\].*?\{([^}]*)\}", line):
        sizes = dict(re.findall(r"('\w+')=(\d+)", match[1]))
        # An axis may be split further: 'axis':(before)size.
        named = re.findall(r"('\w+')(?::\(\d+\)(\d+))?", match[2])
        return math.prod(int(part or sizes[axis]) for axis, part in named)
    return devices


def _parts(written: str) -> list[str]:
    """The elements of a written tuple type: "(f32[2], (f32[4], u32[]))" -> two."""
    parts, depth, start = [], 0, 1
    for place, letter in enumerate(written):
        depth += (letter in "([{") - (letter in ")]}")
        if (letter == "," and depth == 1) or (letter == ")" and depth == 0):
            parts.append(written[start:place])
            start = place + 1
    return parts


def _called(line: str) -> Iterator[str]:
    """The computations that an instruction calls."""
    yield from CALLED.findall(line)
    for names in BRANCHES.findall(line):
        yield from re.findall(r"[\w.\-]+", names)


def _computations(text: str) -> Mapping[str, list[str]]:
    """The instructions of each computation."""
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in text.splitlines():
        if line.startswith((" ", "\t")):
            lines.append(line)
        elif match := COMPUTATION.match(line):
            lines = found.setdefault(match["name"], [])
    return found


def _entry(text: str) -> str:
    """The computation that a call of the program begins with."""
    for line in text.splitlines():
        match = COMPUTATION.match(line)
        if match and match["entry"]:
            return match["name"]
    raise ValueError("the text has no ENTRY computation; expected that of a whole program")


def _num_devices(text: str) -> int:
    header = text.partition("\n")[0]
    counts = re.findall(r"(?:num_partitions|replica_count)=(\d+)", header)
    return math.prod(map(int, counts))
