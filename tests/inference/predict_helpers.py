"""What tests of predict share: images drawn and written, tables and folders read back."""

import csv

import numpy as np
import pytest
from hostile_images import noise
from PIL import Image

# Pillow warns of what it mends, such as EXIF data that are cut off.
ignore_pillow = pytest.mark.filterwarnings("ignore:::PIL")

COLUMNS = [
    *("path", "score", "normalised_score", "threshold"),
    *("verdict", "category", "boxes", "note", "error"),
]


def write_image(path, image=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = noise() if image is None else image
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    image.save(path, **options)
    return path


def rows_of(folder):
    """The rows of predictions.csv, as another program reads them."""
    with (folder / "predictions.csv").open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    assert reader.fieldnames == COLUMNS
    assert all(None not in row and None not in row.values() for row in rows)
    return rows


def files_of(folder):
    """Relative path and content of every file below a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
