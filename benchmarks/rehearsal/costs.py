"""What a stage of a rehearsal cost, and what it would cost at full size."""

import dataclasses
from collections.abc import Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class Stage:
    """The measured cost of a stage, and what it grows with.

    Attributes:
      name: of the stage.
      seconds: that it took.
      unit: what its seconds grow with; empty if they do not grow.
      count, full: of these units, as measured and at full size.
      constant: seconds of them that do not grow, such as compilation.
      host_bytes, device_bytes: peak of memory; 0 where it is not known.
      disk_bytes: that it left on disk.
      disk_count, disk_full: of what they grow with.
    """

    name: str
    seconds: float
    unit: str = ""
    count: int = 1
    full: int = 1
    constant: float = 0.0
    host_bytes: int = 0
    device_bytes: int = 0
    disk_bytes: int = 0
    disk_count: int = 1
    disk_full: int = 1

    def leaves(self, disk_bytes: int, count: int = 1, full: int = 1) -> "Stage":
        """The stage with what it leaves on disk, and what that grows with."""
        return dataclasses.replace(
            self, disk_bytes=disk_bytes, disk_count=count, disk_full=full
        )

    @property
    def seconds_per_unit(self) -> float:
        return (self.seconds - self.constant) / self.count

    @property
    def full_seconds(self) -> float:
        if not self.unit:
            return self.seconds
        return self.constant + self.seconds_per_unit * self.full

    @property
    def full_disk_bytes(self) -> float:
        return self.disk_bytes * self.disk_full / self.disk_count

    @property
    def is_full(self) -> bool:
        """Whether it was measured at full size."""
        return self.count == self.full and self.disk_count == self.disk_full

    @property
    def rule(self) -> str:
        """How it is extrapolated, in words."""
        if not self.unit:
            return "constant"
        return f"{self.constant:.1f} s + {self.seconds_per_unit:.3g} s per {self.unit}"

    def to_json(self) -> dict[str, Any]:
        extrapolated = {
            "count": self.full,
            "seconds": self.full_seconds,
            "disk_bytes": self.full_disk_bytes,
            "rule": self.rule,
        }
        return dataclasses.asdict(self) | {"extrapolated": extrapolated}


def constant_seconds(
    begin: float, end: float, progress: Sequence[tuple[float, int]]
) -> float:
    """The seconds of a stage that do not grow with its units.

    The first units carry what is done once, such as compilation; the pace is that of the
    second half. If all units were done at once, nothing is known to be constant, and
    extrapolation says too much rather than too little.

    Args:
      begin, end: of the stage.
      progress: time, and units done by then; ascending.
    """
    total = progress[-1][1]
    before = [point for point in progress if 0 < point[1] < total]
    if not before:
        return 0.0
    second_half = [point for point in before if 2 * point[1] >= total]
    moment, done = (second_half or before[-1:])[0]
    pace = (end - moment) / (total - done)
    return max(0.0, (end - begin) - pace * total)


def measured_table(stages: Sequence[Stage]) -> str:
    """What was measured, as Markdown."""
    rows = [
        (
            stage.name,
            _counted(stage.count, stage.unit),
            f"{stage.seconds:,.1f}",
            bytes_text(stage.host_bytes),
            bytes_text(stage.device_bytes),
            bytes_text(stage.disk_bytes),
        )
        for stage in stages
    ]
    total = (
        f"{sum(stage.seconds for stage in stages):,.1f}",
        bytes_text(max(stage.host_bytes for stage in stages)),
        bytes_text(max(stage.device_bytes for stage in stages)),
        bytes_text(sum(stage.disk_bytes for stage in stages)),
    )
    header = ("stage", "of", "seconds", "host memory", "device memory", "disk")
    return _table(header, [*rows, ("all", "", *total)])


def extrapolated_table(stages: Sequence[Stage]) -> str:
    """What follows for the full size, as Markdown."""
    rows = [
        (
            stage.name,
            _counted(stage.full, stage.unit),
            f"{stage.full_seconds:,.0f}",
            bytes_text(stage.full_disk_bytes),
            "measured" if stage.is_full and stage.unit else stage.rule,
        )
        for stage in stages
    ]
    total = (
        f"{sum(stage.full_seconds for stage in stages):,.0f}",
        bytes_text(sum(stage.full_disk_bytes for stage in stages)),
    )
    header = ("stage", "of", "seconds", "disk", "seconds follow from")
    return _table(header, [*rows, ("all", "", *total, "")])


def bytes_text(size: float) -> str:
    """A number of bytes in readable units; a dash for none."""
    if not size:
        return "-"
    if size < 1e6:
        return f"{size / 1e3:.1f} kB"
    return f"{size / 1e6:.1f} MB" if size < 1e9 else f"{size / 1e9:,.2f} GB"


def _counted(count: int, unit: str) -> str:
    return f"{count:,} {unit}{'s' if count != 1 else ''}" if unit else ""


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    left, right = "---", "---:"
    numbers = {"seconds", "host memory", "device memory", "disk"}
    ruler = [right if name in numbers else left for name in header]
    lines = [header, ruler, *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
