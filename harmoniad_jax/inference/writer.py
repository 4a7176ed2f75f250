"""What predictions leave on disk: a table, anomaly maps, overlays."""

import csv
import hashlib
import io
import json
import math
import os
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np
from PIL import Image

from harmoniad_jax.errors import UserError, system_problem
from harmoniad_jax.inference.result import ImageResult
from harmoniad_jax.report.pictures import ColourScale, colour_bar, overlay, resize

CSV_FILE = "predictions.csv"
# Its name until all rows are in it.
PARTIAL_FILE = "predictions.partial.csv"
COLUMNS = (
    "path",
    "score",
    "normalised_score",
    "threshold",
    "verdict",
    "category",
    "boxes",
    "note",
    "error",
)
# What spreadsheets take for the beginning of a formula.
FORMULA = ("=", "+", "-", "@", "\t", "\r")
# Bytes of a file name, on the usual file systems.
LONGEST_NAME = 255
# Of normalised maps.
SCALE = ColourScale(0.0, 1.0)
NORMALISED_THRESHOLD = 0.5
# Longer side of an overlay in pixels.
OVERLAY_SIDE = 1024
# Pixels of a map that is written; that of a larger image is scaled down to them.
LARGEST_MAP = 500e6


class PredictionWriter:
    """Writes predictions into a folder, one after the other; a context manager.

    The table has its name only if it was left without an error: `predictions.csv` is whole
    and of the maps beside it, or not there. Until then, and after an interruption, the
    rows are in `predictions.partial.csv`.
    """

    def __init__(
        self,
        folder: Path,
        *,
        maps: str = "png",
        map_size: str = "image",
        overlays: bool = True,
        overwrite: bool = False,
    ):
        """Makes the folder.

        Args:
          folder: to write to.
          maps: "png" (16 bit, the normalised map, 32768 at the pixel threshold), "npy"
            (float32, the anomaly map) or "none".
          map_size: pixels of the maps: those of the "image" or of the "model".
          overlays: whether to draw the maps over the images.
          overwrite: whether the folder may hold files already; those of the same name
            are replaced, others stay.

        Raises:
          UserError: the folder cannot be made, or holds files.
        """
        self.folder = folder
        self._maps, self._map_size, self._overlays = maps, map_size, overlays
        if folder.exists() and not folder.is_dir():
            raise UserError(f"--output={folder} is a file; name a folder.")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            taken = {path.name for path in folder.iterdir()}
        except OSError as error:
            raise UserError(
                f"--output={folder} cannot be made. {system_problem(error)}"
            ) from None
        if taken and not overwrite:
            whose = " of a call that did not finish" if PARTIAL_FILE in taken else ""
            raise UserError(
                f"--output={folder} holds files{whose}; name an empty folder, or add "
                "--overwrite."
            )

    def __enter__(self) -> "PredictionWriter":
        (self.folder / CSV_FILE).unlink(missing_ok=True)
        # A file name may hold bytes that are no text: they are spelt out.
        self._file: IO[str] = (self.folder / PARTIAL_FILE).open(
            "w", newline="", encoding="utf-8", errors="backslashreplace"
        )
        self._rows = csv.DictWriter(self._file, COLUMNS)
        self._rows.writeheader()
        return self

    def __exit__(self, error_type: type[BaseException] | None, *_) -> None:
        self._file.close()
        if error_type is None:
            (self.folder / PARTIAL_FILE).replace(self.folder / CSV_FILE)

    def write(self, name: PurePosixPath, result: ImageResult) -> None:
        """Writes one image's row and map, and its overlay if it has a thumbnail.

        Args:
          name: of the image, relative; that of its files.
          result: of the image.
        """
        verdicts = {None: "", False: "good", True: "defective"}
        self._write_row(
            name,
            score=f"{result.score:.6g}",
            normalised_score=_number(result.normalised_score),
            threshold=_number(result.threshold),
            verdict=verdicts[result.is_defective],
            category=_no_formula(result.category or ""),
            boxes=json.dumps([list(box) for box in result.boxes]),
            note=result.note,
        )
        normalised, thumbnail = result.normalised_map, result.thumbnail
        if self._maps == "npy":
            # By way of memory: numpy does not say that a disk is full.
            content = io.BytesIO()
            np.save(content, self._sized(result, "npy"))
            self._path("maps", name, ".npy").write_bytes(content.getbuffer())
        elif self._maps == "png" and normalised is not None:
            levels = np.round(self._sized(result, "png") * 65535).astype(np.uint16)
            Image.fromarray(levels).save(self._path("maps", name, ".png"))
        if self._overlays and thumbnail is not None and normalised is not None:
            drawn = draw_overlay(thumbnail, normalised)
            Image.fromarray(drawn).save(self._path("overlays", name, ".jpg"), quality=90)

    def write_error(self, name: PurePosixPath, error: str) -> None:
        """Writes the row of an image that could not be read."""
        self._write_row(name, error=_no_formula(" ".join(error.split())))

    def _write_row(self, name: PurePosixPath, **cells: Any) -> None:
        path = str(name)
        if path.startswith(FORMULA):
            path = f"./{path}"  # the same file, and no formula
        self._rows.writerow({"path": path, **cells})
        self._file.flush()

    def _sized(self, result: ImageResult, kind: str) -> np.ndarray:
        """The map that is written, [H, W] float32."""
        values = result.anomaly_map if kind == "npy" else result.normalised_map
        if self._map_size == "model":
            return values
        width, height = result.size
        shrink = max(math.sqrt(width * height / LARGEST_MAP), 1.0)
        return resize(values, (int(height / shrink), int(width / shrink)))

    def _path(self, kind: str, name: PurePosixPath, suffix: str) -> Path:
        """OUT/maps/sub/a.jpg.png: the image's own suffix stays, for its namesakes."""
        path = self.folder / kind / name.with_name(_short(name.name, suffix) + suffix)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


def draw_overlay(image: np.ndarray, normalised_map: np.ndarray) -> np.ndarray:
    """The image, and beside it the same with the map over it and a colour bar below.

    Args:
      image: [H, W, 3] uint8.
      normalised_map: [H', W'] float32 in [0, 1], 0.5 at the pixel threshold, which is
        outlined.

    Returns:
      [H + h, 2 W, 3] uint8.
    """
    heated = overlay(image, normalised_map, SCALE, NORMALISED_THRESHOLD)
    bar = colour_bar(image.shape[1], SCALE, NORMALISED_THRESHOLD)
    beside = np.concatenate([np.full_like(bar, 255), bar], axis=1)
    return np.concatenate([np.concatenate([image, heated], axis=1), beside])


def _no_formula(text: str) -> str:
    """Text that a spreadsheet takes for text."""
    return f"'{text}" if text.startswith(FORMULA) else text


def _short(name: str, suffix: str) -> str:
    """A file name to which a suffix can be added; its end gives way to a hash."""
    encoded = os.fsencode(name)
    if len(encoded) + len(suffix) <= LONGEST_NAME:
        return name
    digest = hashlib.sha256(encoded).hexdigest()[:16]
    kept = encoded[: LONGEST_NAME - len(suffix) - len(digest)]
    return kept.decode("utf-8", errors="ignore") + digest


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"
