"""Results that are kept as they are measured: a campaign goes on where it was cut."""

import dataclasses
import json
import re
import time
from pathlib import Path
from typing import Any

PARTS = "parts"


@dataclasses.dataclass(frozen=True)
class Kept:
    """The results in a folder, a file each."""

    folder: Path

    def _path(self, name: str) -> Path:
        plain = re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")
        return self.folder / PARTS / f"{plain}.json"

    def get(self, name: str) -> dict[str, Any] | None:
        """The result of a measurement, if it was made."""
        try:
            return json.loads(self._path(name).read_text())
        except (FileNotFoundError, ValueError):
            return None

    def put(self, name: str, result: dict[str, Any]) -> None:
        """Keeps a result, whole or not at all."""
        path = self._path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".unfinished")
        unfinished.write_text(json.dumps({"name": name, **result}, indent=2) + "\n")
        unfinished.replace(path)

    def is_done(self, name: str) -> bool:
        """Whether a measurement need not be made again: it was, or it can never be."""
        result = self.get(name)
        return result is not None and not result.get("unfinished", False)


@dataclasses.dataclass(frozen=True)
class Deadline:
    """A moment of `time.time`, which all processes see alike."""

    at: float

    @property
    def left(self) -> float:
        """Seconds until then."""
        return self.at - time.time()
