"""White of images deeper than 8 bits: stated, measured once for a set, or refused."""

import logging
import struct
import zlib

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from harmoniad_jax.data import images
from harmoniad_jax.data.images import decode, decoded_size, is_deep
from harmoniad_jax.data.levels import Levels
from harmoniad_jax.data.preprocess import Preprocessor, measure_preprocessor
from harmoniad_jax.data.records import Record
from harmoniad_jax.errors import UserError

SHARE = np.tile(np.linspace(40, 160, 24) / 255, (20, 1))
SHARE[5:9, 5:9] = 230 / 255
EXPECTED = np.round(SHARE * 255).astype(int)


def shares(white, dtype=np.uint16):
    """The scene on a scale of 0 to white."""
    values = SHARE * white
    return (values.round() if np.dtype(dtype).kind in "ui" else values).astype(dtype)


def rgb(values):
    return np.repeat(values[..., None], 3, axis=-1)


def save(path, values, **options):
    if path.suffix == ".png":
        path.write_bytes(imagecodecs.png_encode(values))
    else:
        tifffile.imwrite(path, values, **options)
    return path


def packed(path, values, bits):
    """An uncompressed grey TIFF whose samples are packed, written by hand."""
    rows = []
    for row in values:
        text = "".join(format(int(value), f"0{bits}b") for value in row)
        text = text.ljust(-(-len(text) // 8) * 8, "0")
        rows.append(int(text, 2).to_bytes(len(text) // 8, "big"))
    data = b"".join(rows)
    height, width = values.shape
    tags = [
        *((256, 4, width), (257, 4, height), (258, 3, bits), (259, 3, 1), (262, 3, 1)),
        *((273, 4, 8), (277, 3, 1), (278, 4, height), (279, 4, len(data))),
    ]
    directory = len(tags).to_bytes(2, "little")
    for code, kind, value in tags:
        directory += code.to_bytes(2, "little") + kind.to_bytes(2, "little")
        directory += (1).to_bytes(4, "little") + value.to_bytes(4, "little")
    offset = (8 + len(data)).to_bytes(4, "little")
    path.write_bytes(b"II*\0" + offset + data + directory + bytes(4))
    return path


def pixels_of(preprocessor, path):
    image = preprocessor.decode(path).image
    return np.asarray(image.convert("RGB")).astype(int)


def seen(path, others=()):
    """What a run sees of an image that it was trained on, with others."""
    records = [Record(file, "any") for file in (path, *others)]
    return pixels_of(measure_preprocessor(records, side=8), path)


def assert_seen(pixels, tolerance=1):
    assert np.abs(pixels - EXPECTED[..., None]).max() <= tolerance


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("name", ["a.png", "a.tif", "rgb.png", "rgb.tif"])
def test_a_sensors_bits_in_a_16_bit_file_are_measured(tmp_path, name, bits):
    values = shares(2**bits - 1)
    values = rgb(values) if name.startswith("rgb") else values
    options = {"photometric": "rgb"} if name == "rgb.tif" else {}
    assert_seen(seen(save(tmp_path / name, values, **options)))


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_a_packed_tiff_states_its_bits(tmp_path, bits):
    path = packed(tmp_path / "a.tif", shares(2**bits - 1), bits)
    # Even among images that are measured otherwise.
    assert_seen(seen(path, [save(tmp_path / "b.tif", shares(65535))]))
    assert_seen(np.asarray(decode(path).image.convert("RGB")).astype(int))


def test_a_tiff_may_state_its_largest_value(tmp_path):
    path = save(tmp_path / "a.tif", shares(3000), extratags=[(281, "H", 1, 3000, True)])
    assert_seen(seen(path))


@pytest.mark.parametrize(
    ("white", "dtype"),
    [(1, "f4"), (255, "f4"), (65535, "f4"), (1, "f8"), (1, "f2"), (5.5, "f4")]
    + [(2**32 - 1, "u4"), (4095, "u4"), (4095, "i2"), (65535, "i4")],
)
def test_other_types_have_one_scale(tmp_path, white, dtype):
    path = save(tmp_path / "a.tif", shares(white, dtype))
    if white == 5.5:  # not a usual scale: the brightest value is white
        assert seen(path).max() == 255
    else:
        assert_seen(seen(path))


@pytest.mark.parametrize("bits", [12, 16])
def test_an_inverted_tiff_is_turned_back(tmp_path, bits):
    values = 65535 - shares(2**bits - 1)
    assert_seen(seen(save(tmp_path / "a.tif", values, photometric="miniswhite")))


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_separate_planes_are_joined(tmp_path, compression):
    values = shares(65535)
    pixels = seen(
        save(
            tmp_path / "a.tif",
            np.stack([values, values // 2, values]),
            photometric="rgb",
            planarconfig="separate",
            compression=compression,
        )
    )
    assert np.abs(pixels[..., 1] - EXPECTED / 2).max() <= 1
    assert_seen(pixels[..., ::2])


def test_one_pixel_darkens_no_image(tmp_path):
    """A hot pixel, in an image and in the set."""
    values = np.tile(shares(1.0, "f4"), (4, 4))  # it is less than one in a thousand
    others = [save(tmp_path / f"{index}.tif", values) for index in range(3)]
    values[0, 0] = 1.004
    pixels = seen(save(tmp_path / "hot.tif", values), others)[:20, :24]
    assert pixels[0, 0, 0] == 255
    pixels[0, 0] = EXPECTED[0, 0]
    assert_seen(pixels)


def test_negative_values_are_not_clipped(tmp_path):
    pixels = seen(save(tmp_path / "a.tif", shares(255, "f4") - 100))[..., 0]
    assert pixels.min() == 0
    assert np.all(np.diff(pixels[0]) > 0)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_numbers_name_the_file_and_the_place(tmp_path, value):
    values = shares(1.0, "f4")
    values[3, 7] = value
    path = save(tmp_path / "broken.tif", values)
    with pytest.raises(UserError, match=r"broken\.tif .*row 3, column 7"):
        measure_preprocessor([Record(path, "any")], side=8)
    with pytest.raises(UserError, match=r"broken\.tif .*not finite"):
        Preprocessor(8).load(path)


def test_white_can_be_set(tmp_path):
    path = save(tmp_path / "a.png", shares(2000))
    record = Record(path, "any")
    preprocessor = measure_preprocessor([record], side=8, white_level=2000)
    assert_seen(pixels_of(preprocessor, path))


def test_a_new_image_has_the_scale_of_training(tmp_path):
    """Half as bright stays half as bright; twice as bright is noted."""
    trained = save(tmp_path / "a.png", shares(4095))
    preprocessor = measure_preprocessor([Record(trained, "any")], side=8)
    dim = preprocessor.decode(save(tmp_path / "dim.png", shares(2047)))
    assert np.abs(np.asarray(dim.image).astype(int) - EXPECTED / 2).max() <= 1
    assert dim.note == ""
    bright = preprocessor.decode(save(tmp_path / "bright.png", shares(8190)))
    assert np.asarray(bright.image).max() == 255
    assert "above white" in bright.note


@pytest.mark.parametrize("values", [shares(4095), shares(255, "f4"), shares(4095, "u4")])
def test_what_nobody_knows_is_refused(tmp_path, values):
    """A run that was trained on 8 bits, and an image whose white would be a guess."""
    path = save(tmp_path / "a.tif", values)
    with pytest.raises(UserError, match="--white_level=VALUE"):
        Preprocessor(8).load(path)


@pytest.mark.parametrize(
    "values", [shares(65535), shares(1, "f4"), shares(2**32 - 1, "u4")]
)
def test_what_uses_its_range_is_read_without_being_measured(tmp_path, values):
    assert_seen(pixels_of(Preprocessor(8), save(tmp_path / "a.tif", values)))


def test_nothing_is_measured_on_images_of_eight_bits(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(EXPECTED.astype(np.uint8)).save(path)
    assert not is_deep(path)
    assert measure_preprocessor([Record(path, "any")], side=8) == Preprocessor(8)
    assert is_deep(save(tmp_path / "b.png", shares(65535)))
    assert is_deep(save(tmp_path / "c.tif", shares(1, "f4")))


def test_a_set_that_uses_little_of_its_range_is_warned_of(tmp_path, listen):
    take = listen(logging.WARNING)
    path = save(tmp_path / "a.png", shares(400))
    measure_preprocessor([Record(path, "any")], side=8, white_level=65535)
    (message,) = take()
    assert "config.data.white_level" in message


def test_pages_are_counted_and_the_first_is_read(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.stack([shares(65535)] * 3), photometric="minisblack")
    assert "3 pages" in Preprocessor(8).decode(path).note
    assert_seen(pixels_of(Preprocessor(8), path))


@pytest.mark.parametrize("back_to", [0, 1, 2])
def test_pages_that_run_in_a_circle_are_counted_once(tmp_path, back_to):
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as writer:
        for _ in range(3):
            writer.write(shares(65535), photometric="minisblack", contiguous=False)
    with tifffile.TiffFile(path) as tiff:
        offsets = [page.offset for page in tiff.pages]
    data = bytearray(path.read_bytes())
    (tags,) = struct.unpack_from("<H", data, offsets[-1])
    struct.pack_into("<I", data, offsets[-1] + 2 + 12 * tags, offsets[back_to])
    path.write_bytes(data)
    assert "3 pages" in Preprocessor(8).decode(path).note
    assert_seen(pixels_of(Preprocessor(8), path))


def test_colours_that_are_not_supported_are_named(tmp_path):
    values = np.repeat(shares(65535)[..., None], 4, axis=-1)
    path = save(tmp_path / "a.tif", values, photometric="separated")
    with pytest.raises(UserError, match="SEPARATED colours is not supported"):
        Preprocessor(8).load(path)


def test_levels_come_back_from_json(tmp_path):
    path = save(tmp_path / "a.png", shares(4095))
    preprocessor = measure_preprocessor([Record(path, "any")], side=8)
    assert preprocessor.levels == Levels(white={"16-bit": 4095.0})
    assert Preprocessor.from_json(preprocessor.to_json()) == preprocessor


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_very_large_jpeg_is_decoded_smaller(tmp_path, monkeypatch, orientation):
    path, exif = tmp_path / "scan.jpg", Image.Exif()
    exif[0x0112] = orientation
    size = (801, 399)
    pixels = np.tile(np.linspace(0, 255, size[0]), (size[1], 1)).astype(np.uint8)
    Image.fromarray(pixels).save(path, quality=95, exif=exif)
    whole = decode(path)
    monkeypatch.setattr(images, "WHOLE_MEGAPIXELS", 0.05)
    part = decode(path)
    assert whole.note == ""
    assert part.size == whole.size == (size if orientation == 1 else size[::-1])
    assert decoded_size(path) == whole.size
    assert part.image.width * part.image.height < 0.05e6
    assert f"read at {part.image.width} x {part.image.height} px" in part.note
    seen = [Preprocessor(16).scale(one.image).astype(int) for one in (whole, part)]
    np.testing.assert_allclose(*seen, atol=3)
    with pytest.raises(UserError, match="max_megapixels"):
        decode(path, max_megapixels=0.001)


def test_runs_of_version_0_1_scale_as_they_did(tmp_path):
    """They stored a side alone: 16 bits are all used, floats have their own maximum."""
    preprocessor = Preprocessor.from_json({"side": 8})
    path = save(tmp_path / "a.png", shares(4095))
    expected = np.round(shares(4095) / 65535 * 255)
    np.testing.assert_array_equal(np.asarray(preprocessor.decode(path).image), expected)
    path = save(tmp_path / "a.tif", shares(255, "f4"))
    np.testing.assert_array_equal(np.asarray(preprocessor.decode(path).image), EXPECTED)


def test_arrays_are_scaled_as_files_are(tmp_path):
    path = save(tmp_path / "a.png", rgb(shares(4095)))
    preprocessor = measure_preprocessor([Record(path, "any")], side=8)
    image = preprocessor.from_array(rgb(shares(4095))).image
    np.testing.assert_array_equal(np.asarray(image), pixels_of(preprocessor, path))


def test_a_line_scan_is_read_up_to_the_limit(tmp_path):
    """More pixels than Pillow lets through; black ones, so that they are few bytes."""
    width, height = 10_000, 20_000

    def chunk(kind, data):
        checksum = zlib.crc32(kind + data).to_bytes(4, "big")
        return len(data).to_bytes(4, "big") + kind + data + checksum

    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([1, 0, 0, 0, 0])
    rows = bytes((1 + width // 8) * height)
    path = tmp_path / "scan.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(rows, 1))
        + chunk(b"IEND", b"")
    )
    assert Preprocessor(8, max_megapixels=201).load(path).shape == (8, 8, 3)
    message = r"scan\.png .*200 megapixels.*config\.data\.max_megapixels"
    with pytest.raises(UserError, match=message) as refused:
        Preprocessor(8, max_megapixels=199).load(path)
    assert "attack" not in str(refused.value)
