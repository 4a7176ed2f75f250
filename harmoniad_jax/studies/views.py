"""A picture of views: what a network would learn to call normal."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from harmoniad_jax.config import Config
from harmoniad_jax.data.preprocess import measure_preprocessor
from harmoniad_jax.data.variation import view_of
from harmoniad_jax.errors import UserError, system_problem
from harmoniad_jax.features.reading import ImageReader
from harmoniad_jax.run.datasets import open_dataset
from harmoniad_jax.run.run import resolve_config
from harmoniad_jax.words import in_words

MARGIN, CAPTION = 4, 22
PAPER, INK = "white", "black"


def write_views(config: Config, path: Path, count: int) -> str:
    """Writes a PNG with a row for each product: its first training image, then its views.

    Args:
      config: of a run; `config.variation` says how images are varied.
      path: of the PNG.
      count: views of each image.

    Returns:
      How many products there are, in words.

    Raises:
      UserError: bad settings or data, or the file cannot be written.
    """
    if path.suffix.lower() != ".png":
        raise UserError(f"--output={path} is no PNG file; call it {path.name}.png.")
    config, encoder = resolve_config(config, for_training=False)
    dataset = open_dataset(config)
    data = config.data
    preprocessor = measure_preprocessor(
        dataset.train,
        side=data.image_side,
        patch=encoder.patch if data.fit == "aspect" else None,
        white_level=data.white_level,
        max_megapixels=data.max_megapixels,
    )
    first = {}
    for record in dataset.train:
        first.setdefault(record.category, record)
    reader = ImageReader(preprocessor, data.threads, variation=config.variation)
    rows = [
        [
            reader.take(view_of(record, view, config.variation, config.train.seed))
            for view in range(count + 1)
        ]
        for record in reader.hashed(list(first.values()))
    ]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sheet(list(first), rows).save(path)
    except OSError as error:
        raise UserError(system_problem(error, path)) from None
    return in_words(len(first), "product", "products")


def sheet(names: list[str], rows: list[list[np.ndarray]]) -> Image.Image:
    """Rows of pictures [h, w, 3] uint8, each under its name."""
    heights = [row[0].shape[0] + CAPTION + MARGIN for row in rows]
    widths = [sum(picture.shape[1] + MARGIN for picture in row) for row in rows]
    page = Image.new("RGB", (max(widths) + MARGIN, sum(heights) + MARGIN), PAPER)
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(14)
    top = MARGIN
    for name, row, height in zip(names, rows, heights, strict=True):
        left = MARGIN
        draw.text((left, top + 1), f"{name}: as it is, then its views", INK, font)
        for picture in row:
            page.paste(Image.fromarray(picture), (left, top + CAPTION))
            left += picture.shape[1] + MARGIN
        top += height
    return page
