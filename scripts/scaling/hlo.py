"""Collectives in the text of a compiled program: what moves between devices."""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f32": 4}
BYTES |= {"s32": 4, "u32": 4, "f64": 8, "s64": 8, "u64": 8, "c64": 8, "c128": 16}
LINE = re.compile(
    rf"= (?P<result>\(.*?\)|\S+) (?P<kind>{'|'.join(KINDS)})(?P<start>-start)?\("
)
ARRAY = re.compile(r"(?P<dtype>[a-z]+\d*)\[(?P<shape>[\d,]*)\]")
LISTED_GROUPS = re.compile(r"replica_groups=\{\{(?P<first>[\d,]*)\}")
COUNTED_GROUPS = re.compile(r"replica_groups=\[\d+,(?P<size>\d+)\]")


class Collective(NamedTuple):
    """One array that a collective moves.

    Attributes:
      kind: one of `KINDS`.
      shape: of the array on a device: after an all-gather, before a reduce-scatter.
      size: of that array in bytes.
      devices: that take part together.
      source: the JAX operation that it comes from.
    """

    kind: str
    shape: tuple[int, ...]
    size: int
    devices: int
    source: str

    @property
    def sent(self) -> float:
        """Bytes that each device sends, as rings do it.

        An all-reduce is a reduce-scatter and an all-gather, each of which sends all parts
        but one (Patarasuk and Yuan 2009).
        """
        if self.kind == "collective-permute":
            return self.size
        share = (self.devices - 1) / self.devices
        return (2 if self.kind == "all-reduce" else 1) * share * self.size


def collectives(text: str, devices: int) -> Iterator[Collective]:
    """The collectives of a program, each once, also where it stands in a loop.

    Args:
      text: of a compiled module, `compiled.as_text()`.
      devices: of the program, for collectives over all of them.
    """
    for line in text.splitlines():
        match = LINE.search(line)
        if match is None:
            continue
        kind, arrays = match["kind"], ARRAY.findall(match["result"])
        if match["start"] and kind in ("all-gather", "collective-permute"):
            # What is begun returns its operands and then its results.
            arrays = arrays[len(arrays) // 2 :]
        together = _group_size(line, devices)
        name = re.search(r'op_name="([^"]*)"', line)
        for dtype, dimensions in arrays:
            shape = tuple(int(size) for size in dimensions.split(",") if size)
            size = math.prod(shape) * BYTES[dtype]
            if kind == "reduce-scatter":
                size *= together
            yield Collective(kind, shape, size, together, name[1] if name else "")


def _group_size(line: str, devices: int) -> int:
    if match := LISTED_GROUPS.search(line):
        return len(match["first"].split(",")) if match["first"] else devices
    if match := COUNTED_GROUPS.search(line):
        return int(match["size"])
    return devices
