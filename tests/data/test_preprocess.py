"""From files to pixels and from masks to cells, against numpy and exact arithmetic."""

import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from scipy import ndimage

from harmoniad_jax.data.images import decode, read_image, read_size
from harmoniad_jax.data.mask_files import read_mask
from harmoniad_jax.data.masks import resize_mask
from harmoniad_jax.data.preprocess import Preprocessor
from harmoniad_jax.errors import UserError

EIGHT_CONNECTED = np.ones((3, 3), int)


def noise(height=5, width=7, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def saved(folder, image, suffix=".png", **options):
    """An array or Pillow image as a file."""
    path = folder / f"image{suffix}"
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    image.save(path, **options)
    return path


def seen(image, side):
    """An image in memory as the encoder sees it."""
    preprocessor = Preprocessor(side)
    return preprocessor.scale(preprocessor.from_array(image).image)


def ramp(dtype, top):
    return np.linspace(0, top, 5 * 7).reshape(5, 7).astype(dtype)


def read_checked(path, shape=(5, 7, 3)):
    """Reads an image, holding it to what every image has to be."""
    image = read_image(path)
    assert (image.dtype, image.shape) == (np.uint8, shape)
    return image


# Images.


def test_colour_image_is_read_as_it_is(tmp_path):
    np.testing.assert_array_equal(read_checked(saved(tmp_path, noise())), noise())


def test_greyscale_is_repeated(tmp_path):
    grey = noise()[..., 0]
    expected = np.repeat(grey[..., None], 3, axis=-1)
    np.testing.assert_array_equal(read_checked(saved(tmp_path, grey)), expected)


def test_one_bit_image_is_black_and_white(tmp_path):
    bits = noise()[..., 0] > 127
    image = read_checked(saved(tmp_path, Image.fromarray(bits)))
    np.testing.assert_array_equal(image[..., 1], np.where(bits, 255, 0))


@pytest.mark.parametrize("alpha", [255, 100, 0])
def test_alpha_is_dropped(tmp_path, alpha):
    image = Image.fromarray(noise())
    image.putalpha(alpha)
    np.testing.assert_array_equal(read_checked(saved(tmp_path, image)), noise())
    grey = Image.fromarray(noise()).convert("L")
    expected = np.asarray(grey.convert("RGB"))
    grey.putalpha(alpha)
    assert grey.mode == "LA"
    np.testing.assert_array_equal(read_checked(saved(tmp_path, grey)), expected)


@pytest.mark.parametrize("options", [{}, {"transparency": bytes([0, 128, 255])}])
def test_palette_image_shows_its_colours(tmp_path, options):
    """Optimised PNG files have a palette, often with transparency."""
    image = Image.fromarray(noise()).quantize(16)
    expected = np.asarray(image.convert("RGB"))
    path = saved(tmp_path, image, **options)
    np.testing.assert_array_equal(read_checked(path), expected)


def test_printing_colours_are_converted(tmp_path):
    inks = np.zeros((5, 7, 4), np.uint8)
    inks[:, 3:] = [0, 0, 0, 255]
    image = read_checked(saved(tmp_path, Image.fromarray(inks, "CMYK"), ".tif"))
    assert (image[:, :3] == 255).all()
    assert (image[:, 3:] == 0).all()


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path, suffix):
    pixels = ramp(np.uint16, 65535)
    path = saved(tmp_path, pixels, suffix)
    with Image.open(path) as stored:
        assert stored.mode == "I;16"
    expected = np.round(pixels / 257)[..., None]
    np.testing.assert_allclose(read_checked(path), np.repeat(expected, 3, -1), atol=1)


def test_sixteen_bit_netpbm_is_scaled(tmp_path):
    pixels = ramp(np.uint16, 65535)
    path = tmp_path / "image.pgm"
    path.write_bytes(b"P5 7 5 65535\n" + pixels.astype(">u2").tobytes())
    np.testing.assert_allclose(read_checked(path)[..., 0], pixels / 257, atol=1)


def test_float_image_is_scaled(tmp_path):
    pixels = ramp(np.float32, 1.0)
    path = saved(tmp_path, Image.fromarray(pixels), ".tif")
    np.testing.assert_allclose(read_checked(path)[..., 2], pixels * 255, atol=1)


UPRIGHT = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: stored[::-1, ::-1].swapaxes(0, 1),
    8: lambda stored: np.rot90(stored, 1),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_photo_is_turned_upright(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path, noise(), exif=exif)
    expected = UPRIGHT[orientation](noise())
    np.testing.assert_array_equal(read_checked(path, expected.shape), expected)
    assert read_size(path) == (expected.shape[1], expected.shape[0])


def test_nonsense_orientation_is_no_orientation(tmp_path):
    """Tag 0x0112 as the text "A" instead of a number."""
    entry = b"\x12\x01\x02\x00\x02\x00\x00\x00A\x00\x00\x00"
    exif = b"Exif\x00\x00II*\x00\x08\x00\x00\x00\x01\x00" + entry + bytes(4)
    path = saved(tmp_path, noise(), ".jpg", exif=exif)
    read_checked(path)
    assert read_size(path) == (7, 5)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tif"])
def test_size_is_read_from_the_header_alone(tmp_path, suffix):
    """Listing a data set must not decode it: here the pixels are not even there."""
    path = saved(tmp_path, noise(64, 96), suffix)
    content = path.read_bytes()
    if suffix != ".tif":  # whose header may stand at the end
        path.write_bytes(content[: len(content) // 2])
    assert read_size(path) == (96, 64)


def damaged_files(folder):
    for suffix in (".png", ".jpg", ".bmp", ".tif", ".webp"):
        path = saved(folder, noise(64, 64), suffix)
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        yield path
    for name, content in (("text.png", b"Dear reader"), ("zero.png", b"")):
        (folder / name).write_bytes(content)
        yield folder / name
    (folder / "folder.png").mkdir()
    yield folder / "folder.png"
    yield folder / "absent.png"


@pytest.mark.parametrize("read", [read_image, read_mask])
def test_a_file_that_cannot_be_read_is_named(tmp_path, read):
    for path in damaged_files(tmp_path):
        with pytest.raises(UserError) as error:
            read(path)
        assert str(error.value).startswith(f"{path} cannot be read as an image (")
        assert "\n" not in str(error.value)


def test_size_of_a_file_that_is_no_image(tmp_path):
    for name, content in (("text.png", b"Dear reader"), ("zero.png", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=name):
            read_size(tmp_path / name)
    with pytest.raises(UserError, match="absent.png"):
        read_size(tmp_path / "absent.png")


def test_a_jpeg_that_lost_pixels_is_noted(tmp_path):
    """Pillow fills them with grey, and says a word only if the file's end is lost too."""
    path = saved(tmp_path, noise(64, 64), ".jpg", quality=90)
    whole = path.read_bytes()
    assert decode(path).note == ""
    end = whole[-2:]
    for filling in (3, 700):  # which loses nothing
        path.write_bytes(whole[:-2] + bytes(filling) + end)
        assert decode(path).note == ""
    path.write_bytes(whole[: len(whole) // 2] + end)
    assert "damaged" in decode(path).note
    path.write_bytes(whole[: len(whole) // 2] + bytes(len(whole) // 2) + end)
    assert "damaged" in decode(path).note


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGB"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_a_whole_jpeg_is_not_called_damaged(tmp_path, mode, options):
    image = Image.fromarray(noise(33, 65)).convert(mode)
    assert decode(saved(tmp_path, image, ".jpg", **options)).note == ""


def test_a_program_is_not_run(tmp_path):
    """Pillow would give it to Ghostscript, which runs it."""
    path = tmp_path / "image.png"
    image = Image.fromarray(noise(8, 8))
    image.save(path, "EPS")
    for read in (decode, read_size):
        with pytest.raises(UserError, match="cannot be read as an image"):
            read(path)


def test_a_damaged_block_of_exif_does_not_hide_the_size(tmp_path):
    path = saved(tmp_path, noise(5, 7))
    content = path.read_bytes()
    block = b"eXIf" + b"no exif at all"
    checksum = zlib.crc32(block).to_bytes(4, "big")
    block = (len(block) - 4).to_bytes(4, "big") + block + checksum
    path.write_bytes(content[:33] + block + content[33:])  # behind the header
    assert read_size(path) == (7, 5)


@pytest.mark.parametrize("read", [read_image, read_mask, read_size])
def test_an_image_of_absurd_size_is_refused(tmp_path, monkeypatch, read):
    """A damaged header may claim a billion pixels."""
    path = saved(tmp_path, noise())
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(UserError, match="image.png"):
        read(path)


@pytest.mark.parametrize("shape", [(5, 7), (64, 48), (1, 1), (3, 200)])
def test_preprocess_gives_the_encoder_its_square(shape):
    pixels = seen(noise(*shape), 28)
    assert (pixels.dtype, pixels.shape) == (np.uint8, (28, 28, 3))


def test_constant_image_stays_constant():
    image = np.tile(np.uint8([10, 128, 255]), (30, 50, 1))
    for side in (14, 28, 100):
        np.testing.assert_array_equal(
            seen(image, side), np.tile(np.uint8([10, 128, 255]), (side, side, 1))
        )


def test_image_of_the_right_size_is_unchanged():
    image = noise(28, 28)
    np.testing.assert_array_equal(seen(image, 28), image)


def test_no_corner_is_cropped():
    image = np.zeros((60, 100, 3), np.uint8)
    for row in (slice(0, 6), slice(-6, None)):
        for column in (slice(0, 10), slice(-10, None)):
            image[row, column] = 255
    pixels = seen(image, 20)
    assert (pixels[::19, ::19] > 200).all()
    assert (pixels[4:16, 4:16] == 0).all()


def test_scaling_down_averages_instead_of_skipping():
    checkers = np.indices((64, 64)).sum(axis=0) % 2 * 255
    image = np.repeat(checkers[..., None], 3, axis=-1).astype(np.uint8)
    np.testing.assert_allclose(seen(image, 16).astype(int), 127, atol=20)


def test_preprocess_is_deterministic_and_leaves_its_input():
    image = noise(50, 70)
    first = seen(image, 28)
    np.testing.assert_array_equal(image, noise(50, 70))
    np.testing.assert_array_equal(seen(image, 28), first)


# Masks.

DEFECT = np.zeros((5, 7), bool)
DEFECT[1:3, 2:6] = True
WHITE_DEFECT = np.where(DEFECT, 255, 0).astype(np.uint8)
CLASSES = np.where(DEFECT, noise()[..., 0] % 2 + 1, 0).astype(np.uint8)


def palette_mask(colours):
    """Class numbers 0, 1, 2 with a palette."""
    image = Image.fromarray(CLASSES)
    image.putpalette(colours + [0] * (768 - len(colours)))
    return image


def colour_mask(colour, mode):
    background = (0, 0, 0, 255)[: len(mode)]
    pixels = np.where(DEFECT[..., None], np.uint8(colour), np.uint8(background))
    return Image.fromarray(pixels, mode)


MASKS = {
    "0 and 255": WHITE_DEFECT,
    "0 and 1": DEFECT.astype(np.uint8),
    "class numbers": CLASSES,
    "sixteen bits": np.where(DEFECT, 256, 0).astype(np.uint16),
    "one bit": Image.fromarray(DEFECT),
    "bright palette": palette_mask([0, 0, 0, 128, 0, 0, 0, 128, 0]),
    "dark palette": palette_mask([0] * 9),
    "white": colour_mask((255, 255, 255), "RGB"),
    "red": colour_mask((255, 0, 0), "RGB"),
    "blue": colour_mask((0, 0, 1), "RGB"),
    "opaque": colour_mask((0, 255, 0, 255), "RGBA"),
    "grey and opaque": Image.fromarray(WHITE_DEFECT).convert("LA"),
}


@pytest.mark.parametrize("kind", MASKS)
def test_mask_is_whatever_is_not_zero(tmp_path, kind):
    mask = read_mask(saved(tmp_path, MASKS[kind]))
    assert mask.dtype == bool
    np.testing.assert_array_equal(mask, DEFECT)


@pytest.mark.parametrize("suffix", [".bmp", ".tif", ".webp"])
def test_mask_of_another_format(tmp_path, suffix):
    options = {"lossless": True} if suffix == ".webp" else {}
    path = saved(tmp_path, WHITE_DEFECT, suffix, **options)
    np.testing.assert_array_equal(read_mask(path), DEFECT)


def averaging_matrix(pixels, cells):
    """[cells, pixels]: the share of each cell that each pixel takes, exactly."""
    edges = np.arange(cells + 1) * pixels / cells
    low = np.maximum(edges[:-1, None], np.arange(pixels))
    high = np.minimum(edges[1:, None], np.arange(pixels) + 1)
    return np.clip(high - low, 0, None) * cells / pixels


def cover(mask, shape):
    """The share of each cell of a grid, square or not, that the mask covers."""
    shape = shape if isinstance(shape, tuple) else (shape, shape)
    rows, columns = map(averaging_matrix, mask.shape, shape)
    return rows @ mask.astype(float) @ columns.T


def check_against_exact_areas(mask, shape, rule):
    """The rule by its words: exact areas, then each lost defect's largest cell."""
    cells, lost = resize_mask(mask, shape, rule)
    assert (cells.dtype, cells.shape) == (bool, shape)
    area = cover(mask, shape)
    expected = area >= 0.5 - 1e-9 if rule == "half" else area > 1e-9
    regions, count = ndimage.label(mask, EIGHT_CONNECTED)
    areas = [cover(regions == label, shape) for label in range(1, count + 1)]
    lost_areas = [area for area in areas if not expected[area > 1e-9].any()]
    assert lost == len(lost_areas)
    # A lost defect keeps one of the cells that it covers most.
    best = [area >= area.max() - 1e-9 for area in lost_areas]
    allowed = np.any([expected, *best], axis=0)
    np.testing.assert_array_equal(cells & expected, expected)
    assert not (cells & ~allowed).any()
    assert (cells & ~expected).sum() <= lost
    assert all(cells[area > 1e-9].any() for area in areas)


def blocks(height, width, seed, count=4):
    """A mask of rectangles of every size."""
    random = np.random.default_rng(seed)
    mask = np.zeros((height, width), bool)
    for _ in range(count):
        top, left = random.integers(0, height), random.integers(0, width)
        tall, wide = random.integers(1, max(height // 3, 2), 2)
        mask[top : top + tall, left : left + wide] = True
    return mask


@pytest.mark.parametrize("rule", ["half", "any"])
@pytest.mark.parametrize(("factor", "side"), [(2, 6), (3, 4), (4, 5), (1, 9)])
def test_whole_ratios_average_exactly(factor, side, rule):
    for seed in range(10):
        mask = blocks(factor * side, factor * side, seed)
        check_against_exact_areas(mask, (side, side), rule)


@pytest.mark.parametrize("rule", ["half", "any"])
@pytest.mark.parametrize("shape", [(45, 30), (31, 31), (24, 36), (90, 70), (20, 20)])
def test_other_ratios_average_exactly(shape, rule):
    """Most data sets: 1000, 900 or 700 pixels onto 256 cells."""
    for seed in range(10):
        check_against_exact_areas(blocks(*shape, seed), (16, 10), rule)


@pytest.mark.parametrize("rule", ["half", "any"])
@pytest.mark.parametrize("shape", [(8, 8), (5, 7), (3, 3), (12, 16)])
def test_scaling_up_averages_exactly(shape, rule):
    for seed in range(10):
        check_against_exact_areas(blocks(*shape, seed, count=2), (16, 19), rule)


def test_half_of_a_cell_is_enough_and_less_is_not():
    mask = np.zeros((8, 8), bool)
    mask[:4, :2] = True  # half of the first cell
    mask[4:, 4:] = True  # all of the last
    mask[4:, :1] = True  # a quarter of the third, but joined to the first
    cells, lost = resize_mask(mask, (2, 2))
    np.testing.assert_array_equal(cells, [[True, False], [False, True]])
    assert lost == 0


def test_any_grows_what_half_does_not():
    mask = np.zeros((8, 8), bool)
    mask[2:5, 2:5] = True
    np.testing.assert_array_equal(resize_mask(mask, (2, 2), "any")[0], np.ones((2, 2)))
    np.testing.assert_array_equal(resize_mask(mask, (2, 2))[0], [[1, 0], [0, 0]])


@pytest.mark.parametrize("rule", ["half", "any"])
@pytest.mark.parametrize("filled", [False, True])
def test_an_empty_and_a_full_mask_stay_so(rule, filled):
    cells, lost = resize_mask(np.full((30, 50), filled), (16, 16), rule)
    np.testing.assert_array_equal(cells, np.full((16, 16), filled))
    assert lost == 0


def test_a_defect_of_one_pixel_keeps_the_cell_that_it_is_in():
    rows, columns = (0, 1, 18, 19, 150, 298, 299), (0, 31, 62, 250, 498, 499)
    for row in rows:
        for column in columns:
            mask = np.zeros((300, 500), bool)
            mask[row, column] = True
            cells, lost = resize_mask(mask, (16, 16))
            assert (cells.sum(), lost) == (1, 1)
            assert cells[cover(mask, 16) > 0].any()


def test_the_cell_that_is_kept_is_the_one_covered_most():
    mask = np.zeros((100, 100), bool)
    mask[8:14, 5] = True  # two pixels in the first cell, four in the one below
    cells, lost = resize_mask(mask, (10, 10))
    assert (cells.sum(), lost) == (1, 1)
    assert cells[1, 0]


def test_each_lost_defect_is_kept_and_counted():
    mask = np.zeros((100, 100), bool)
    mask[5, 5] = mask[50, 50] = mask[99, 0] = True
    mask[20:40, 60:80] = True  # large enough to stay by itself
    cells, lost = resize_mask(mask, (10, 10))
    assert lost == 3
    assert cells.sum() == 3 + 4
    assert cells[0, 0] and cells[5, 5] and cells[9, 0]


def test_two_lost_defects_may_share_a_cell():
    mask = np.zeros((100, 100), bool)
    mask[2, 2] = mask[7, 7] = True
    cells, lost = resize_mask(mask, (10, 10))
    assert (cells.sum(), lost) == (1, 2)


def test_pixels_that_touch_at_a_corner_are_one_defect():
    mask = np.zeros((100, 100), bool)
    mask[9, 9] = mask[10, 10] = True
    cells, lost = resize_mask(mask, (10, 10))
    assert (cells.sum(), lost) == (1, 1)


def test_scaling_up_repeats_pixels():
    mask = blocks(4, 4, 0)
    cells, lost = resize_mask(mask, (16, 16))
    np.testing.assert_array_equal(cells, np.kron(mask, np.ones((4, 4), bool)))
    assert lost == 0


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    mask=hnp.arrays(bool, st.tuples(st.integers(1, 40), st.integers(1, 40))),
    side=st.integers(1, 20),
    rule=st.sampled_from(["half", "any"]),
)
def test_no_defect_vanishes(mask, side, rule):
    cells, lost = resize_mask(mask, (side, side), rule)
    regions, count = ndimage.label(mask, EIGHT_CONNECTED)
    assert 0 <= lost <= count
    for label in range(1, count + 1):
        assert cells[cover(regions == label, side) > 0].any()
    assert not cells[cover(mask, side) == 0].any()


def test_resize_mask_leaves_its_input():
    mask = blocks(30, 50, 0)
    resize_mask(mask, (16, 16))
    np.testing.assert_array_equal(mask, blocks(30, 50, 0))
