"""Thresholds that were measured after a model was made, in a file beside it.

The model itself stays as it is. The file keeps every calibration, so that the latest can be
undone. Whoever opens the model uses the latest: predict, the runtime, the server.
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harmoniad_jax.errors import UserError
from harmoniad_jax.folders import write_whole
from harmoniad_jax.run.normality import GoodImages

FILE = "thresholds.json"  # in the folder of a run; NAME.thresholds.json beside a file
FORMAT_VERSION = 1
# Settings that are younger than the first of these files, as older models have them: the
# fingerprint of such a model was made without them.
NEWER = (("background_share", 0.0),)


@dataclasses.dataclass(frozen=True)
class Entry:
    """A calibration.

    Attributes:
      time: when it was measured, ISO 8601, UTC.
      source: folder of the photos.
      images: how many of each category were measured.
      good_images: what the model is used with.
      undone: whether it was taken back.
    """

    time: str
    source: str
    images: dict[str, int]
    good_images: GoodImages
    undone: bool = False

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "good_images": self.good_images.to_json()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Entry":
        return cls(**{**values, "good_images": GoodImages.from_json(values["good_images"])})


def path_beside(model: Path) -> Path:
    """Where the calibrations of a run's folder, or of an exported file, are kept."""
    return model / FILE if model.is_dir() else model.with_suffix(f".{FILE}")


def latest(model: Path, own: GoodImages | None) -> GoodImages | None:
    """What a model is to be used with: the latest calibration, or its own.

    Args:
      model: a run's folder, or an exported file.
      own: what it was made with.

    Raises:
      UserError: the file is damaged, or of another training or export.
    """
    entry = latest_entry(model, own)
    return entry.good_images if entry else own


def latest_entry(model: Path, own: GoodImages | None) -> Entry | None:
    """The latest calibration that stands; None: those of training hold. See `latest`."""
    standing = [entry for entry in read(model, own) if not entry.undone]
    return standing[-1] if standing else None


def read(model: Path, own: GoodImages | None) -> list[Entry]:
    """All calibrations of a model, oldest first; see `latest`."""
    path = path_beside(model)
    if not path.is_file():
        return []
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        version, whose = int(stored["format_version"]), stored["of"]
        entries = stored["entries"]
        if version <= FORMAT_VERSION:
            entries = [Entry.from_json(values) for values in entries]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{path} is damaged ({type(error).__name__}: {error}). Bring it back from a "
            "copy, or delete it to use the thresholds of training."
        ) from None
    if version > FORMAT_VERSION:
        raise UserError(
            f"{path} was written by a later version of this program: update this one, or "
            "delete the file to use the thresholds of training."
        )
    if whose != _fingerprint(own):
        raise UserError(
            f"{path} holds thresholds of another training or export. Delete it, and "
            "calibrate again if the thresholds of the model itself do not fit."
        )
    return entries


def add(model: Path, own: GoodImages | None, entry: Entry) -> None:
    """Stores a calibration, which is the latest from now on."""
    _write(model, own, [*read(model, own), entry])


def undo(model: Path, own: GoodImages | None) -> Entry:
    """Takes the latest calibration back; it stays in the file.

    Raises:
      UserError: there is none.
    """
    entries = read(model, own)
    places = [place for place, entry in enumerate(entries) if not entry.undone]
    if not places:
        raise UserError(
            f"{model} has the thresholds of training: there is nothing to undo."
        )
    undone = dataclasses.replace(entries[places[-1]], undone=True)
    entries[places[-1]] = undone
    _write(model, own, entries)
    return undone


def _write(model: Path, own: GoodImages | None, entries: Sequence[Entry]) -> None:
    values = {
        "format_version": FORMAT_VERSION,
        "of": _fingerprint(own),
        "entries": [entry.to_json() for entry in entries],
    }
    write_whole(path_beside(model), json.dumps(values) + "\n")


def _fingerprint(own: GoodImages | None) -> str:
    """Of what a model was made with: other scores of held-out images are another network.

    An export after `calibrate` has its thresholds, and so another fingerprint too.
    """
    values = own.to_json() if own else None
    if values:
        settings = values["settings"].items()
        values["settings"] = dict(one for one in settings if one not in NEWER)
    text = json.dumps(values, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
