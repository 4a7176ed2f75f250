"""Miniatures of the public data sets: drawn here, with what a builder shall make of them.

A miniature is a mapping of file names to contents, as the original has them, quirks and
stray files included. The expectation is noted while the files are drawn, so it owes
nothing to the code that is tested.
"""

import csv
import functools
import io
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

import tfds_builders
from harmoniad_jax.errors import UserError
from tfds_builders.prepare import prepare

# What systems and publishers leave beside the images.
STRAY = ("license.txt", "readme.txt", "Thumbs.db", ".DS_Store", "._000.png")
SKIP = {name: tfds.decode.SkipDecoding() for name in ("image", "mask")}


class Drawn(NamedTuple):
    """An image as it shall come out of a prepared data set; the mask is bool."""

    split: str
    category: str
    defect: str
    path: str
    image: bytes
    mask: np.ndarray


class Miniature(NamedTuple):
    """The files of a data set, by name below its top folder, and what is expected."""

    name: str
    top: str
    files: dict[str, bytes]
    expected: list[Drawn]

    def part(self, *categories: str) -> "Miniature":
        """A partial copy: only some categories, and what is of no category."""
        others = {drawn.category for drawn in self.expected} - set(categories)
        return self._replace(
            files={
                name: content
                for name, content in self.files.items()
                if not others & set(Path(name).parts)
            },
            expected=[drawn for drawn in self.expected if drawn.category in categories],
        )


def encode(pixels, file_format):
    buffer = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(buffer, file_format)
    return buffer.getvalue()


def draw_image(name, size, mode="RGB"):
    """Noise that differs from file to file, in the format of its suffix."""
    width, height = size
    noise = np.random.default_rng(zlib.crc32(name.encode())).integers(
        0, 256, (height, width, 3), np.uint8
    )
    file_format = {".jpg": "JPEG"}.get(Path(name).suffix.lower(), Path(name).suffix[1:])
    return encode(Image.fromarray(noise).convert(mode), file_format)


def draw_defect(name, size):
    """[H, W] bool, a rectangle somewhere."""
    width, height = size
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    mask = np.zeros((height, width), bool)
    top, left = rng.integers(0, height - 4), rng.integers(0, width - 4)
    mask[top : top + 4, left : left + 3] = True
    return mask


def in_order(expected):
    return sorted(expected, key=lambda d: (d.split == "test", d.category, d.path))


def stray_files(*folders):
    return {f"{folder}{name}": b"\0\1 no image" for folder in folders for name in STRAY}


@functools.cache
def mvtec():
    """Three categories: in colour, in greyscale, and one whose name has an underscore."""
    files, expected = stray_files("", "bottle/", "grid/train/good/", "grid/test/cut/"), []
    files["__MACOSX/bottle/train/good/._000.png"] = b"\0"
    files["__MACOSX/bottle/train/good/000.png"] = b"\0"
    kinds = {"bottle": ("RGB", (20, 16)), "grid": ("L", (24, 24)), "metal_nut": ("RGB",)}
    for category, (mode, *size) in kinds.items():
        for split, defect, count in (
            ("train", "good", 5),
            ("test", "good", 2),
            ("test", "cut", 3),
            ("test", "bent_lead", 2),
        ):
            for index in range(count):
                shape = size[0] if size else (16 + index, 18)  # every size
                path = f"{category}/{split}/{defect}/{index:03}.png"
                files[path] = draw_image(path, shape, mode)
                mask = np.zeros(shape[::-1], bool)
                if defect != "good":
                    mask = draw_defect(path, shape)
                    # 8 bits as shipped, 1 bit as in copies that were scaled down.
                    pixels = mask if index else mask.astype(np.uint8) * 255
                    truth = f"{category}/ground_truth/{defect}/{index:03}_mask.png"
                    files[truth] = encode(pixels, "PNG")
                expected.append(Drawn(split, category, defect, path, files[path], mask))
    return Miniature("mvtec_ad", "mvtec_anomaly_detection", files, in_order(expected))


@functools.cache
def visa():
    """Two categories with a split of their own; masks hold the number of a defect."""
    files, expected, rows = stray_files("", "candle/", "pcb1/Data/Masks/Anomaly/"), [], []
    files["pcb1/image_anno.csv"] = b"image,label,mask\n"
    files["split_csv/2cls_fewshot.csv"] = b"object,split,label,image,mask\n"
    for category, size in (("candle", (20, 16)), ("pcb1", (17, 23))):
        for split, kind, numbers in (
            ("train", "Normal", (0, 2, 3, 7)),
            ("test", "Normal", (1, 4)),
            ("test", "Anomaly", (0, 1, 2)),
        ):
            for number in numbers:
                stem = f"{number:03}" if kind == "Anomaly" else f"{number:04}"
                path = f"{category}/Data/Images/{kind}/{stem}.JPG"
                files[path] = draw_image(path, size)
                mask, truth, defect = np.zeros(size[::-1], bool), "", "good"
                if kind == "Anomaly":
                    defect, mask = "anomaly", draw_defect(path, size)
                    truth = f"{category}/Data/Masks/Anomaly/{stem}.png"
                    pixels = Image.fromarray(mask.astype(np.uint8) * (number + 1))
                    if number == 2:
                        pixels.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
                    files[truth] = encode(pixels, "PNG")
                label = "normal" if kind == "Normal" else "anomaly"
                rows.append((category, split, label, path, truth))
                expected.append(Drawn(split, category, defect, path, files[path], mask))
    files["split_csv/1cls.csv"] = split_table(reversed(rows))
    return Miniature("visa", "VisA", files, in_order(expected))


def split_table(rows, header=("object", "split", "label", "image", "mask")):
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerows([header, *rows])
    return text.getvalue().encode()


@functools.cache
def btad():
    """Three products, each with suffixes of its own; some masks are empty or lost."""
    files, expected = stray_files("", "01/", "03/ground_truth/ko/"), []
    kinds = {"01": ("bmp", "png"), "02": ("png", "png"), "03": ("bmp", "bmp")}
    lost, empty = {("03", 1), ("03", 2)}, {("02", 0), ("03", 0)}
    for category, (image_suffix, mask_suffix) in kinds.items():
        for split, folder, count in (
            ("train", "ok", 4),
            ("test", "ok", 2),
            ("test", "ko", 4),
        ):
            for index in range(count):
                size = (18, 14) if category == "03" else (16, 16)
                path = f"{category}/{split}/{folder}/{index:04}.{image_suffix}"
                files[path] = draw_image(path, size)
                mask, defect = np.zeros(size[::-1], bool), "good"
                if folder == "ko":
                    defect = "ko"
                    if (category, index) not in lost | empty:
                        mask = draw_defect(path, size)
                    if (category, index) not in lost:
                        truth = f"{category}/ground_truth/ko/{index:04}.{mask_suffix}"
                        pixels = mask.astype(np.uint8) * 255
                        files[truth] = encode(pixels, mask_suffix)
                expected.append(Drawn(split, category, defect, path, files[path], mask))
    return Miniature("btad", "BTech_Dataset_transformed", files, in_order(expected))


MINIATURES = {"mvtec_ad": mvtec, "visa": visa, "btad": btad}


def write_folder(files, folder):
    for name, content in files.items():
        path = Path(folder) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return Path(folder)


def write_tar(files, path, top="", **options):
    """A tar of files and of the folders above them, compressed by its suffix."""
    suffix = path.suffix[1:].lower()
    compression = {"tar": "", "tgz": "gz", "txz": "xz"}.get(suffix, suffix)
    path.parent.mkdir(parents=True, exist_ok=True)
    folders = {top.rstrip("/")} - {""}
    with tarfile.open(path, f"w:{compression}", **options) as archive:
        for name, content in files.items():
            for folder in reversed(Path(top + name).parents):
                if str(folder) not in {*folders, "."}:
                    entry = tarfile.TarInfo(str(folder))
                    entry.type = tarfile.DIRTYPE
                    archive.addfile(entry)
                    folders.add(str(folder))
            add_to_tar(archive, top + name, content)
    return path


def add_to_tar(archive, name, content=b"", **attributes):
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    for key, value in attributes.items():
        setattr(entry, key, value)
    archive.addfile(entry, io.BytesIO(content))


def write_zip(files, path, top="", compression=zipfile.ZIP_DEFLATED):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", compression) as archive:
        for folder in sorted({str(Path(top + name).parent) for name in files} - {"."}):
            archive.mkdir(folder)
        for name, content in files.items():
            archive.writestr(top + name, content)
    return path


def drawn_records(name, data_dir):
    """What a prepared data set holds, read by TFDS alone, without decoding of its own."""
    builder = tfds.builder(name, data_dir=data_dir)
    categories = builder.info.features["category"]
    labels = builder.info.features["label"]
    records = []
    for split in builder.info.splits:
        for row in builder.as_data_source(split, decoders=SKIP):
            with Image.open(io.BytesIO(row["mask"])) as mask:
                assert (mask.format, mask.mode) == ("PNG", "L")
                pixels = np.asarray(mask)
            assert set(np.unique(pixels)) <= {0, 255}
            defect = row["defect"].decode()
            anomalous = labels.int2str(row["label"]) == "anomalous"
            assert anomalous == (defect != "good")
            records.append(
                Drawn(
                    split,
                    categories.int2str(row["category"]),
                    defect,
                    row["path"].decode(),
                    row["image"],
                    pixels == 255,
                )
            )
    return records


def assert_same(records, expected):
    assert [record[:4] for record in records] == [drawn[:4] for drawn in expected]
    for record, drawn in zip(records, expected, strict=True):
        assert record.image == drawn.image, record.path
        np.testing.assert_array_equal(record.mask, drawn.mask, record.path)


def assert_prepared(miniature, data_dir):
    """The prepared data set is the miniature, and nothing else was left."""
    assert_same(drawn_records(miniature.name, data_dir), miniature.expected)
    assert leftovers(data_dir, miniature.name) == ["1.0.0"]


def leftovers(data_dir, name):
    """What lies in the folder of a data set, but for the lock."""
    folder = Path(data_dir) / name
    there = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    return [entry for entry in there if entry != ".lock"]


def error_of(name, manual, data_dir, **options):
    """What is said of bad input: one line; and nothing is left behind."""
    with pytest.raises(UserError) as error:
        prepare(name, str(manual), str(data_dir), **options)
    message = str(error.value)
    assert len(message.splitlines()) == 1, message
    assert message.isprintable(), message
    if not options:
        files = [path for path in Path(data_dir).rglob("*") if path.is_file()]
        assert files in ([], [Path(data_dir) / name / ".lock"])
        assert leftovers(data_dir, name) == []
        assert not tfds_builders.BUILDERS[name](data_dir=str(data_dir)).is_prepared()
    return message
