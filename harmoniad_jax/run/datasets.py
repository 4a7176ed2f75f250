"""From the settings to the images of a run: found, drawn or prepared."""

import dataclasses
import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path

from harmoniad_jax.config import Config, DataConfig
from harmoniad_jax.data import synthetic
from harmoniad_jax.data.folder import folder_dataset
from harmoniad_jax.data.named_folders import NamedFolders, named_folders_dataset
from harmoniad_jax.data.records import Dataset, Record, check_categories, join
from harmoniad_jax.data.sources import TEST
from harmoniad_jax.data.table import table_dataset
from harmoniad_jax.errors import UserError
from harmoniad_jax.folders import cache_folder
from harmoniad_jax.words import in_words

logger = logging.getLogger(__name__)


def open_dataset(config: Config) -> Dataset:
    """Lists the configured images; draws the demo and prepares public data sets first.

    Raises:
      UserError: nothing there, or something wrong with it, or no label to test with.
    """
    dataset = _open_sources(config.data)
    if not config.data.validation:
        dataset = dataclasses.replace(dataset, held_out=())
    if unlabelled := sum(not record.is_labelled for record in dataset.test):
        raise UserError(
            f"config.data.test_split is {config.data.test_split!r}: "
            f"{in_words(unlabelled, 'image has', 'images have')} no label, so nothing can "
            "be measured. For a server that has the labels: python -m harmoniad_jax.submit."
        )
    return dataset


def _open_sources(data: DataConfig) -> Dataset:
    """All sources, joined where there are several."""
    if len(data.sources) == 1:
        return _open(data.sources[0], data, data.categories)
    wanted: dict[str, list[str]] = {source: [] for source in data.sources}
    for name in data.categories:
        source, slash, category = name.partition("/")
        if not slash or source not in wanted:
            raise UserError(
                f"data.categories names {name!r}; with several sources a category is "
                f"called SOURCE/CATEGORY, and the sources are {', '.join(wanted)}."
            )
        wanted[source].append(category)
    return join(
        {
            source: _open(source, data, names)
            for source, names in wanted.items()
            if names or not data.categories
        }
    )


def split_records(data: DataConfig, source: str, split: str) -> Sequence[Record]:
    """The images of a split of a prepared data set, as a run on `data` calls them.

    Raises:
      UserError: it is not prepared, or has no such split.
    """
    dataset, _ = _prepared(source, data, split)
    return (dataset if len(data.sources) == 1 else join({source: dataset})).test


def _open(source: str, data: DataConfig, categories: Sequence[str]) -> Dataset:
    """One source, with its own names of the categories."""
    if source in ("folder", "demo") and data.test_split != TEST:
        raise UserError(
            f"data.test_split is {data.test_split!r}, but a folder of images has "
            f"{TEST!r} alone; other splits are of prepared data sets."
        )
    if source == "folder":
        return _folder(data, categories)
    if source == "demo":
        return folder_dataset(_draw_demo(data), categories)
    dataset, manual_folder = _prepared(source, data, data.test_split)
    check_categories(
        categories,
        dataset.categories,
        f"the prepared {source}",
        f"To add more, put them into {manual_folder} and "
        f"run python -m tfds_builders.prepare {source} --overwrite.",
    )
    return dataset.select(categories) if categories else dataset


def _prepared(source: str, data: DataConfig, split: str) -> tuple[Dataset, Path]:
    """A public data set, prepared if it is not yet, and where its archives belong."""
    # Imported late: folders of images need no TFDS, which is slow to load.
    from harmoniad_jax.data.prepared import prepared_dataset
    from tfds_builders.prepare import manual_folder, prepare

    folder = prepare(source, data.manual_dir, data.data_dir)
    dataset = prepared_dataset(folder, split)
    return dataset, manual_folder(data.manual_dir, data.data_dir)


def _folder(data: DataConfig, categories: Sequence[str]) -> Dataset:
    """Images in a folder: in the MVTec layout, in a table, or in folders by name."""
    root = Path(data.root).expanduser()
    if data.csv:
        path = Path(data.csv).expanduser()
        base = root if data.root else None
        return table_dataset(path, base, categories, data.normal_split_ratio)
    if data.normal_dir:
        named = NamedFolders(
            *(data.normal_dir, data.abnormal_dir, data.normal_test_dir, data.mask_dir),
            test_share=data.normal_split_ratio,
        )
        return named_folders_dataset(root, named, categories)
    return folder_dataset(root, categories)


def _draw_demo(data: DataConfig) -> Path:
    """The demo's folder, drawn if it is not there yet."""
    root = Path(data.root).expanduser()
    root = root if data.root else cache_folder() / f"demo-{drawing_version()}"
    logger.info("demo images are in %s", root)
    try:
        synthetic.write_demo_dataset(root)
    except OSError as error:
        raise UserError(
            f"the demo images cannot be written ({error}); give another folder with "
            "--config.data.root=FOLDER."
        ) from None
    return root


def drawing_version() -> str:
    """Eight digits that change with the program that draws the demo."""
    return hashlib.sha256(Path(synthetic.__file__).read_bytes()).hexdigest()[:8]
