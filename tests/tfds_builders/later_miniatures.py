"""Miniatures of the data sets with more than training and test images, quirks included.

A `Drawn` of these also has what the originals have besides: see `Extras`.
"""

import functools
import io
import json
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from miniatures import (
    SKIP,
    Drawn,
    Miniature,
    draw_defect,
    draw_image,
    encode,
    stray_files,
)
from PIL import Image


class Extras(NamedTuple):
    """Masks [K, H, W] bool, K saturations, and the sample; by the path of the image."""

    masks: dict[str, np.ndarray]
    saturations: dict[str, tuple[float, ...]]
    sample: dict[str, str]


def drawn(files, split, category, defect, path, size, mode="RGB"):
    """Draws an image into `files`; gives it with a black mask."""
    files[path] = draw_image(path, size, mode)
    return Drawn(split, category, defect, path, files[path], np.zeros(size[::-1], bool))


def in_order(expected, splits):
    return sorted(expected, key=lambda d: (splits.index(d.split), d.category, d.path))


@functools.cache
def mpdd():
    """Two categories in the layout of MVTec AD; what a Mac left behind lies beside."""
    files, expected = stray_files("", "tubes/test/good/"), []
    files["__MACOSX/tubes/test/anomalous/._000.png"] = b"\0"
    for category, defects in (
        ("tubes", ("anomalous",)),
        ("metal_plate", ("major_rust", "total_rust")),
    ):
        for split, defect, count in (
            ("train", "good", 6),
            ("test", "good", 2),
            *(("test", name, 2) for name in defects),
        ):
            for index in range(count):
                path = f"{category}/{split}/{defect}/{index:03}.png"
                one = drawn(files, split, category, defect, path, (20, 20))
                if defect != "good":
                    one = one._replace(mask=draw_defect(path, (20, 20)))
                    truth = f"{category}/ground_truth/{defect}/{index:03}_mask.png"
                    files[truth] = encode(one.mask.astype(np.uint8) * 255, "PNG")
                expected.append(one)
    return Miniature("mpdd", "MPDD", files, in_order(expected, ("train", "test")))


AD_2_SPLITS = ("train", "validation", "test", "test_private", "test_private_mixed")


@functools.cache
def mvtec_ad_2():
    """Two objects, one of them grey and wide; five splits, two of them without labels."""
    files, expected = stray_files("", "vial/", "can/test_private/"), []
    for category, mode, size in (("can", "RGB", (24, 16)), ("vial", "L", (14, 20))):
        for split, folder, names in (
            ("train", "train/good", [f"{i:03}_regular" for i in range(6)]),
            ("validation", "validation/good", [f"{i:03}_regular" for i in range(3)]),
            ("test", "test_public/good", ["000_regular", "000_overexposed"]),
            ("test", "test_public/bad", ["000_regular", "000_shift_1", "001_regular"]),
            ("test_private", "test_private", ["000_regular", "001_regular"]),
            ("test_private_mixed", "test_private_mixed", ["000_mixed", "001_mixed"]),
        ):
            for name in names:
                path = f"{category}/{folder}/{name}.png"
                defect = folder.rpartition("/")[2]
                defect = "unlabelled" if "private" in defect else defect
                one = drawn(files, split, category, defect, path, size, mode)
                if defect == "bad":
                    one = one._replace(mask=draw_defect(path, size))
                    truth = f"{category}/test_public/ground_truth/bad/{name}_mask.png"
                    files[truth] = encode(one.mask.astype(np.uint8) * 255, "PNG")
                expected.append(one)
    return Miniature("mvtec_ad_2", "mvtec_ad_2", files, in_order(expected, AD_2_SPLITS))


# Kinds of defects by the number that marks them: threshold, and whether it is relative.
LOCO_KINDS = {251: (1.0, True), 252: (5, False), 253: (0.25, True), 255: (1000, False)}
LOCO_SPLITS = ("train", "validation", "test")


@functools.cache
def mvtec_loco():
    """Two objects; up to three masks an image, overlapping ones too, and one lost."""
    files, expected = stray_files("", "pushpins/", "pushpins/ground_truth/"), []
    extras = Extras({}, {}, {})
    rows = [
        {
            "defect_name": f"kind {number}",
            "pixel_value": number,
            "saturation_threshold": threshold,
            "relative_saturation": relative,
        }
        for number, (threshold, relative) in LOCO_KINDS.items()
    ]
    size = (22, 14)
    for category in ("pushpins", "juice_bottle"):
        files[f"{category}/defects_config.json"] = json.dumps(rows).encode()
        for split, defect, masks_of in (
            ("train", "good", [()] * 6),
            ("validation", "good", [()] * 3),
            ("test", "good", [()] * 2),
            ("test", "logical_anomalies", [(251,), (252, 253, 252), (255,)]),
            ("test", "structural_anomalies", [(251,), (253, 251), ()]),
        ):
            for index, numbers in enumerate(masks_of):
                path = f"{category}/{split}/{defect}/{index:03}.png"
                one = drawn(files, split, category, defect, path, size)
                masks, saturations = [], []
                for place, number in enumerate(numbers):
                    mask = draw_defect(f"{path}{place}", size)
                    mask[place, :8] = True
                    truth = f"{category}/ground_truth/{defect}/{index:03}/{place:03}.png"
                    files[truth] = encode(mask.astype(np.uint8) * number, "PNG")
                    threshold, relative = LOCO_KINDS[number]
                    pixels = threshold * mask.sum() if relative else threshold
                    saturations.append(min(pixels, mask.sum()) / mask.size)
                    masks.append(mask)
                extras.masks[path] = np.array(masks).reshape(-1, *size[::-1])
                extras.saturations[path] = tuple(saturations)
                expected.append(one._replace(mask=extras.masks[path].any(0)))
    miniature = Miniature(
        "mvtec_loco", "mvtec_loco_anomaly_detection", files, in_order(expected, LOCO_SPLITS)
    )
    return miniature, extras


@functools.cache
def real_iad():
    """Two objects from two or three sides; a side without defect of a defective product."""
    files, expected, extras = stray_files("", "audiojack/OK/"), [], Extras({}, {}, {})
    split_files = {}
    for category, mark in (("audiojack", "__"), ("toy_brick", "_")):
        table = {"meta": {"prefix": f"{category}/", "normal_class": "OK"}}
        table |= {"train": [], "test": []}
        for split, folder, number, classes in (
            *(("train", "OK", n, ("OK", "OK")) for n in range(1, 5)),
            ("test", "OK", 9, ("OK", "OK", "OK")),
            ("test", "NG/BX", 1, ("BX", "OK", "BX")),
            ("test", "NG/HS", 1, ("HS", "HS")),
        ):
            for view, kind in enumerate(classes, 1):
                sample = f"{folder}/S{number:04}"
                name = folder.replace("/", "_")
                stem = f"{sample}/{category}{mark}{number:04}_{name}_C{view}_2023"
                path = f"{category}/{stem}.jpg"
                defect = "good" if kind == "OK" else kind
                one = drawn(files, split, category, defect, path, (18, 18))
                row = {"category": category, "anomaly_class": kind}
                row |= {"image_path": f"{stem}.jpg", "mask_path": None}
                if defect != "good":
                    one = one._replace(mask=draw_defect(path, (18, 18)))
                    row["mask_path"] = f"{stem}.png"
                    files[f"{category}/{stem}.png"] = encode(
                        one.mask.astype(np.uint8) * 255, "PNG"
                    )
                table[split].append(row)
                extras.sample[path] = sample
                expected.append(one)
        split_files[f"realiad_jsons/{category}.json"] = json.dumps(table).encode()
        # Other splits lie beside; they are not taken.
        split_files[f"realiad_jsons_sv/{category}.json"] = b"{}"
    miniature = Miniature(
        "real_iad", "realiad_1024", files, in_order(expected, ("train", "test"))
    )
    return miniature, extras, split_files


@functools.cache
def robust_ad():
    """Two products under the conditions of training and two others; one without masks."""
    files, expected = stray_files("", "PCB/"), []
    files["README.md"] = b"about"
    for category, prefix, has_masks in (
        ("PCB", "pcb_data_dir", True),
        ("PiledBags", "piled_bags_data_dir", False),
    ):
        for folder, split in (
            ("train", "train"),
            ("test0", "test"),
            ("test1", "test1"),
            ("test2", "test2"),
        ):
            rows, top = [], f"{category}/{prefix}_{folder}"
            for label, place in enumerate(("normal", "anomaly")):
                for index in range(4 if folder == "train" and not label else 2):
                    name = f"{place}/{index}.jpg"
                    defect = "anomaly" if label else "good"
                    path = f"{top}/{name}"
                    one = drawn(files, split, category, defect, path, (20, 16))
                    row = {"file_name": name, "label": label, "mask": None}
                    if label and has_masks:
                        one = one._replace(mask=draw_defect(path, (20, 16)))
                        truth = f"{top}/masks/{index}.png"
                        files[truth] = encode(one.mask.astype(np.uint8) * 255, "PNG")
                        # As seen from the top, or from the folder.
                        row["mask"] = truth if index else f"masks/{index}.png"
                    rows.append(row)
                    if folder != "train" or not label:
                        expected.append(one)
            lines = [json.dumps(row) for row in rows]
            files[f"{top}/metadata.jsonl"] = ("\n".join(lines) + "\n").encode()
    splits = ("train", "test", "test1", "test2")
    return Miniature("robust_ad", "RobustAD", files, in_order(expected, splits))


def records_with_extras(name, data_dir):
    """What a prepared data set holds, read by TFDS alone; and labels by path."""
    builder = tfds.builder(name, data_dir=data_dir)
    features, records = builder.info.features, []
    skip = SKIP | ({"masks": SKIP["mask"]} if "masks" in features else {})
    extras, labels = Extras({}, {}, {}), {}
    for split in builder.info.splits:
        for row in builder.as_data_source(split, decoders=skip):
            path = row["path"].decode()
            with Image.open(io.BytesIO(row["mask"])) as image:
                mask = np.asarray(image) > 0
            category = features["category"].int2str(row["category"])
            records.append(
                Drawn(split, category, row["defect"].decode(), path, row["image"], mask)
            )
            labels[path] = int(row["label"])
            if "sample" in row:
                extras.sample[path] = row["sample"].decode()
            if "masks" in row:
                count = len(row["saturations"])
                with Image.open(io.BytesIO(row["masks"])) as image:
                    stacked = np.asarray(image) > 0
                stacked = stacked.reshape(-1, *mask.shape)
                extras.masks[path] = stacked if count else stacked[:0]
                extras.saturations[path] = tuple(row["saturations"].tolist())
    return records, extras, labels
