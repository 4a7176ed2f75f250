"""Masks of defects on the grid of the anomaly maps."""

from collections.abc import Sequence

import numpy as np
import scipy.ndimage

from harmoniad_jax.data.mask_files import read_mask
from harmoniad_jax.data.records import Record
from harmoniad_jax.errors import UserError

EIGHT_CONNECTED = np.ones((3, 3), int)


def read_masks(
    records: Sequence[Record], shape: tuple[int, int], rule: str
) -> tuple[np.ndarray, np.ndarray, int]:
    """Masks of test images on the evaluation grid.

    Args:
      records: N test images.
      shape: (H', W') of the grid.
      rule: see `resize_mask`.

    Returns:
      masks [N, H', W'] bool; known [N] bool, False where a defective image has no mask
      or an empty one; and how many defects only their largest cell kept alive.
    """
    masks = np.zeros((len(records), *shape), bool)
    known = np.ones(len(records), bool)
    rescued = 0
    for row, record in enumerate(records):
        if record.mask is not None:
            masks[row], lost = resize_mask(read_mask(record.mask), shape, rule)
            rescued += lost
        known[row] = not record.is_anomalous or masks[row].any()
    return masks, known, rescued


def read_regions(
    records: Sequence[Record], shape: tuple[int, int], rule: str
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The masks that are kept apart, on the evaluation grid.

    Args:
      records: N test images.
      shape: (H', W') of the grid.
      rule: see `resize_mask`.

    Returns:
      For each image its masks [K, H', W'] bool, which may overlap, none of them empty; and
      [K] float64 cells: when so many of a mask are found, its defect is.

    Raises:
      UserError: the masks of an image are damaged.
    """
    regions, saturations = [], []
    for record in records:
        count = len(record.saturations)
        masks = np.zeros((0, *shape), bool)
        if record.masks is not None:
            stacked = read_mask(record.masks)
            if len(stacked) % count:
                raise UserError(
                    f"{record.masks} cannot be divided by {count}; prepare its data set "
                    "again with python -m tfds_builders.prepare NAME --overwrite."
                )
            parts = np.split(stacked, count)
            masks = np.stack([resize_mask(part, shape, rule)[0] for part in parts])
        # What marks nothing cannot be found.
        marks = masks.any(axis=(1, 2))
        regions.append(masks[marks])
        cells = shape[0] * shape[1]
        saturations.append(np.array(record.saturations, float)[marks] * cells)
    return regions, saturations


def resize_mask(
    mask: np.ndarray, shape: tuple[int, int], rule: str = "half"
) -> tuple[np.ndarray, int]:
    """Scales a mask to the evaluation grid by area.

    Args:
      mask: [H0, W0] bool.
      shape: (H', W') of the grid.
      rule: "half": a cell is defective where at least half of it is; "any": where any
        of it is, which grows every defect (only to compare with older tables).

    Returns:
      [H', W'] bool, and the number of 8-connected defects that the rule would have
      lost; of each of these, the cell that it covers most is kept.
    """
    if not mask.any():
        return np.zeros(shape, bool), 0
    vertical, horizontal = map(averaging_matrix, mask.shape, shape)
    cover = vertical @ mask.astype(np.float32) @ horizontal.T
    # Sums of products round: a millionth decides neither half nor any.
    cells = cover > 1e-6 if rule == "any" else cover >= 0.5 - 1e-6

    lost = []
    regions, _ = scipy.ndimage.label(mask, EIGHT_CONNECTED)
    for number, (rows, columns) in enumerate(scipy.ndimage.find_objects(regions), 1):
        region = (regions[rows, columns] == number).astype(np.float32)
        cover = vertical[:, rows] @ region @ horizontal[:, columns].T
        if not cells[cover > 0].any():
            lost.append(cover.argmax())
    cells.ravel()[lost] = True
    return cells, len(lost)


def averaging_matrix(pixels: int, cells: int) -> np.ndarray:
    """[cells, pixels] float32: the share of every cell that each pixel covers.

    Exact for any ratio, where Pillow's box filter takes pixels whole, by their centres.
    """
    edges = np.arange(cells + 1) * pixels / cells
    first = np.maximum(edges[:-1, None], np.arange(pixels))
    last = np.minimum(edges[1:, None], np.arange(pixels) + 1)
    return (np.maximum(last - first, 0.0) * cells / pixels).astype(np.float32)
