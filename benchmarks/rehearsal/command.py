"""Divides a command that was watched into stages, one after the other."""

from collections.abc import Collection, Sequence
from pathlib import Path

from rehearsal.costs import Stage, constant_seconds
from rehearsal.full import padded
from rehearsal.watch import Mark, Watched


class Command:
    """A command that was watched. Each stage begins where the one before it ended."""

    def __init__(self, watched: Watched, device_notes: Path | None = None):
        """Takes what was seen, and the notes of `device_memory.py` if it ran in that."""
        self.watched = watched
        lines = device_notes.read_text().splitlines() if device_notes else []
        notes = [line.split() for line in lines]
        self._device = [(float(moment), int(size)) for moment, size in notes]
        self._begin = watched.begin

    def until(self, name: str, titles: Collection[str]) -> Stage:
        """The stage up to the first of some progress bars; it does not grow."""
        return self._stage(name, self.watched.marks_of(titles)[0].time)

    def through(
        self,
        name: str,
        titles: Collection[str],
        full: int,
        *,
        unit: str = "image",
        batch: int = 1,
        each: int = 1,
        to_the_end: bool = False,
    ) -> Stage:
        """The stage up to the end of some progress bars.

        Args:
          name: of the stage.
          titles: of its progress bars.
          full: its units at full size.
          unit: what it is counted in.
          batch: what a bar counts comes in batches of so many, and the last is padded.
          each: units for each thing that a bar counts.
          to_the_end: it lasts until the command ends.
        """
        marks = self.watched.marks_of(titles)
        steps = [(moment, each * done) for moment, done in progress(marks, batch)]
        begin = self._begin
        end = self.watched.end if to_the_end else marks[-1].time
        constant = constant_seconds(begin, end, steps)
        return self._stage(
            name, end, unit=unit, count=steps[-1][1], full=full, constant=constant
        )

    def _stage(self, name: str, end: float, **growth) -> Stage:
        begin, self._begin = self._begin, end
        whole = begin == self.watched.begin and end == self.watched.end
        return Stage(
            name,
            end - begin,
            host_bytes=self.watched.largest
            if whole
            else self.watched.resident_between(begin, end),
            device_bytes=max((size for at, size in self._device if at <= end), default=0),
            **growth,
        )


def progress(marks: Sequence[Mark], batch: int = 1) -> list[tuple[float, int]]:
    """Time, and rows of batches done by then over several progress bars.

    They may be side by side or one after the other; where a bar goes back, another one
    of its title has begun.
    """
    points, finished, current = [], 0, {}
    for mark in marks:
        done = padded(mark.done, batch)
        if done < current.get(mark.title, 0):
            finished += current[mark.title]
        current[mark.title] = done
        points.append((mark.time, finished + sum(current.values())))
    return points
