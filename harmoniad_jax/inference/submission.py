"""Predictions of test images whose labels a publisher keeps, as its server takes them.

    OUTPUT/anomaly_images/OBJECT/SPLIT/NAME.tiff              float16, the anomaly map
    OUTPUT/anomaly_images_thresholded/OBJECT/SPLIT/NAME.png   255 where it is defective

This is the layout of MVTec AD 2. Its publisher's own script checks it and packs it up.
"""

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tifffile

from harmoniad_jax.data.images import decoded_size
from harmoniad_jax.data.mask_files import encode_mask
from harmoniad_jax.data.records import Record
from harmoniad_jax.errors import UserError, system_problem
from harmoniad_jax.inference.predictor import Predictor
from harmoniad_jax.inference.restore import open_trained
from harmoniad_jax.inference.trained import Trained
from harmoniad_jax.report.pictures import resize
from harmoniad_jax.run.datasets import split_records
from harmoniad_jax.words import in_words

logger = logging.getLogger(__name__)

SOURCE = "mvtec_ad_2"
SPLITS = ("test_private", "test_private_mixed")
LARGEST = float(np.finfo(np.float16).max)


def submit(
    workdir: Path,
    output: Path,
    *,
    data_dir: str | None = None,
    encoder: str | None = None,
    pixel_false_positive_rate: float | None = None,
) -> int:
    """Predicts the private test images of MVTec AD 2 with a trained run.

    Args:
      workdir: folder of a run that was trained on them, alone or with others.
      output: folder to write to, empty or not there. It is complete or absent.
      data_dir: where prepared data sets are, if not where they were.
      encoder: where the encoder is, if not where it was.
      pixel_false_positive_rate: share of the good pixels that may be called defective, in
        (0, 1), if not that of the run's settings.

    Returns:
      How many images there are.

    Raises:
      UserError: the run or its images are not there, no threshold was set, or the folder
        holds files or cannot be written.
    """
    given = {
        "data.data_dir": data_dir,
        "encoder.name": encoder,
        "calibration.pixel_false_positive_rate": pixel_false_positive_rate,
    }
    _check_output(output)
    trained = open_trained(workdir, {k: v for k, v in given.items() if v is not None})
    data = trained.run.config.data
    if SOURCE not in data.sources:
        raise UserError(
            f"{workdir} was trained on {', '.join(data.sources)}; the server takes "
            f"predictions of {SOURCE}."
        )
    if trained.calibration is None:
        raise UserError(
            f"{workdir} held no images out, so no pixel can be called defective. Train "
            f"with the validation images of {SOURCE}."
        )
    records = [
        record
        for split in SPLITS
        for record in split_records(data, SOURCE, split)
        if record.category in trained.run.dataset.categories
    ]
    partial = output.with_name(f".{output.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        _write(trained, records, partial)
        if output.exists():
            output.rmdir()
        partial.rename(output)
    except OSError as error:
        raise UserError(system_problem(error, output)) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    logger.info("%s in %s", in_words(len(records), "image", "images"), output)
    return len(records)


def _check_output(output: Path) -> None:
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(
            f"--output={output} is a file or holds files; name an empty folder."
        )


def _write(trained: Trained, records: Sequence[Record], folder: Path) -> None:
    """Writes the two files of each image; maps are scaled to its size."""
    predictor = Predictor(trained)
    categories = [record.category for record in records]
    for rows in trained.run.preprocessor.by_shape(categories).values():
        _write_shape(predictor, [records[row] for row in rows], folder)


def _write_shape(predictor: Predictor, records: Sequence[Record], folder: Path) -> None:
    """The same for images whose inputs are of one shape."""
    trained = predictor.trained
    rate = trained.run.config.calibration.pixel_false_positive_rate
    for some, prediction in predictor.batches(records, "private images"):
        for record, anomaly_map in zip(some, prediction.anomaly_maps, strict=True):
            width, height = decoded_size(record.image)
            values = resize(anomaly_map, (height, width))
            level = trained.calibration.of(record.category).pixel_threshold(rate)
            name = Path(record.image.path)
            tiff = folder / "anomaly_images" / name.with_suffix(".tiff")
            png = folder / "anomaly_images_thresholded" / name.with_suffix(".png")
            for path in (tiff, png):
                path.parent.mkdir(parents=True, exist_ok=True)
            # Half precision is what the server takes.
            half = np.clip(values, -LARGEST, LARGEST).astype(np.float16)
            tifffile.imwrite(tiff, half, compression="zlib")
            png.write_bytes(encode_mask(values > level))
