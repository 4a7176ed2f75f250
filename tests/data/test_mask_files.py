"""Masks as people save them: what is read is what was meant."""

import io

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageFilter

from harmoniad_jax.data.mask_files import MaskUnion, read_mask
from harmoniad_jax.data.records import EncodedImage
from harmoniad_jax.errors import UserError

DEFECT = np.zeros((40, 48), bool)
DEFECT[6:18, 9:25] = True
WHITE = np.where(DEFECT, 255, 0).astype(np.uint8)
BLACK, RED = (0, 0, 0), (255, 0, 0)


def encoded(image, file_format="PNG", **options):
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return EncodedImage(f"mask.{file_format.lower()}", buffer.getvalue())


def layer(paint, background, alpha=(255, 0)):
    """An RGBA image: `paint` where there is a defect, else `background`."""
    return np.where(
        DEFECT[..., None],
        np.uint8([*paint, alpha[0]]),
        np.uint8([*background, alpha[1]]),
    )


def assert_right(file, tolerance=0):
    wrong = read_mask(file) ^ DEFECT
    assert wrong.sum() <= tolerance


# Transparency.


@pytest.mark.parametrize("paint", [BLACK, RED, (255, 255, 255)])
@pytest.mark.parametrize("background", [BLACK, (255, 255, 255), (40, 90, 10)])
@pytest.mark.parametrize("alpha", [(255, 0), (128, 0), (1, 0)])
def test_what_is_transparent_is_background(paint, background, alpha):
    assert_right(encoded(layer(paint, background, alpha)))


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_an_alpha_channel_that_does_not_vary_says_nothing(mode):
    for alpha in (0, 255):
        image = Image.fromarray(WHITE).convert(mode)
        image.putalpha(alpha)
        assert_right(encoded(image))


def test_colours_count_within_what_is_painted():
    """A black background that ends before the border, which is transparent and white."""
    pixels = layer(RED, BLACK, (255, 255))
    pixels[:4] = (255, 255, 255, 0)
    assert_right(encoded(pixels))


def test_a_translucent_layer_on_an_opaque_background():
    assert_right(encoded(layer(RED, BLACK, (100, 255))))


@pytest.mark.parametrize("file_format", ["PNG", "GIF"])
def test_the_transparent_colour_of_a_palette_is_background(file_format):
    image = Image.fromarray(DEFECT.astype(np.uint8))
    image.putpalette([255, 255, 255, 0, 0, 0] + [0] * 762)
    assert_right(encoded(image, file_format, transparency=0))


def test_the_transparent_value_of_grey_and_colour_is_background():
    grey = Image.fromarray(np.where(DEFECT, 0, 255).astype(np.uint8))
    assert_right(encoded(grey, transparency=255))
    assert_right(encoded(grey.convert("RGB"), transparency=(255, 255, 255)))


def test_a_soft_brush_on_a_transparent_layer():
    alpha = Image.fromarray(WHITE).filter(ImageFilter.GaussianBlur(1.5))
    image = Image.new("RGB", alpha.size, RED)
    image.putalpha(alpha)
    assert_right(encoded(image), 12)


# Numbers that mean nothing.


@pytest.mark.parametrize("background", [-1.0, np.nan, -np.inf, 0.0])
@pytest.mark.parametrize("paint", [1.0, 0.5, 255.0])
def test_negative_numbers_and_nan_are_background(background, paint):
    pixels = np.where(DEFECT, paint, background).astype(np.float32)
    assert_right(encoded(pixels, "TIFF"))


def test_negative_class_numbers_are_background():
    assert_right(encoded(np.where(DEFECT, 3, -1).astype(np.int32), "TIFF"))


# Lossy formats.

FORTY_DECIBELS = {"quality_mode": "dB", "quality_layers": [38]}
LOSSY = {
    "JPEG": ("JPEG", {"quality": 60}),
    "poor JPEG": ("JPEG", {"quality": 10}),
    "MPO": ("MPO", {"quality": 60}),
    "JPEG in TIFF": ("TIFF", {"compression": "jpeg"}),
    "WebP": ("WEBP", {"quality": 60}),
    "JPEG 2000": ("JPEG2000", {"irreversible": True, **FORTY_DECIBELS}),
    "cut JPEG 2000": ("JPEG2000", FORTY_DECIBELS),
    "AVIF": ("AVIF", {"quality": 50}),
}


@pytest.mark.parametrize("kind", LOSSY)
@pytest.mark.parametrize("bright", [255, 100])
def test_lossy_formats_are_cut_at_half(kind, bright):
    file_format, options = LOSSY[kind]
    mode = "RGB" if "WebP" in kind else "L"
    image = Image.fromarray(np.where(DEFECT, bright, 0).astype(np.uint8)).convert(mode)
    try:
        file = encoded(image, file_format, **options)
    except (KeyError, OSError, RuntimeError):
        pytest.skip(f"this Pillow writes no {kind}")
    assert_right(file, 24 if kind == "poor JPEG" else 8)


@pytest.mark.parametrize(
    ("file_format", "options"),
    [
        ("WEBP", {"lossless": True}),
        ("JPEG2000", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "tiff_deflate"}),
        ("TIFF", {"compression": "packbits"}),
        ("TIFF", {}),
    ],
)
def test_lossless_files_keep_class_numbers(file_format, options):
    mode = "RGB" if file_format == "WEBP" else "L"
    classes = np.where(DEFECT, 1 + np.arange(48) // 16, 0).astype(np.uint8)
    assert_right(encoded(Image.fromarray(classes).convert(mode), file_format, **options))


def test_a_lossy_file_that_is_black_marks_nothing():
    for quality in (5, 60, 95):
        for value in (0, 1):
            black = np.full((40, 48), value, np.uint8)
            assert not read_mask(encoded(black, "JPEG", quality=quality)).any()


def test_class_numbers_in_a_lossy_file_are_refused():
    with pytest.raises(UserError, match=r"mask\.jpeg is . of 255.*save the mask as PNG"):
        read_mask(encoded(DEFECT.astype(np.uint8) * 2, "JPEG", quality=95))


# Shades and class numbers.


def test_smooth_edges_are_cut_at_half():
    blurred = Image.fromarray(WHITE).filter(ImageFilter.GaussianBlur(2))
    assert_right(encoded(blurred), 24)
    small = Image.fromarray(WHITE[::4, ::4]).resize((48, 40), Image.Resampling.BICUBIC)
    assert read_mask(encoded(small)).sum() == pytest.approx(DEFECT.sum(), rel=0.15)


@pytest.mark.parametrize("radius", [1, 2, 4])
def test_a_blurred_scratch_stays_beside_a_blurred_spot(radius):
    pixels = np.zeros((200, 200), np.uint8)
    pixels[20:60, 20:60] = 255
    pixels[120:122, 20:180] = 255
    image = Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(radius))
    mask = read_mask(encoded(image))
    assert mask[120:122, 20:180].mean() > 0.95
    assert mask[:90].sum() == pytest.approx(1600, rel=0.05)
    assert mask[90:].sum() < 320 * (1 + 2 * radius)


def test_noise_of_a_lossy_file_that_was_saved_as_png_is_background():
    noise = np.random.default_rng(0).integers(0, 4, DEFECT.shape)
    assert_right(encoded(np.where(DEFECT, 255 - noise, noise).astype(np.uint8)))


@pytest.mark.parametrize(
    ("numbers", "height"),
    [
        ((1, 2, 3, 255), 8),
        ((1, 2, 3, 255), 3),
        ((1, 2, 3, 4), 1),
        ((50, 100, 120, 250), 8),
        ((50, 100, 120, 250), 1),
    ],
)
def test_class_numbers_all_count(numbers, height):
    """Also those below half of the largest, as regions and as scratches of one pixel."""
    classes = np.zeros((60, 40), np.uint8)
    for index, number in enumerate(numbers):
        classes[14 * index + 2 : 14 * index + 2 + height, 3:30] = number
    np.testing.assert_array_equal(read_mask(encoded(classes)), classes > 0)


# Several masks of one image.


def test_a_union_is_defective_where_any_mask_is(tmp_path):
    parts = [DEFECT & (np.arange(48) < 15), DEFECT & (np.arange(48) >= 12)]
    for index, part in enumerate(parts):
        Image.fromarray(part.astype(np.uint8) * (index + 1)).save(tmp_path / f"{index}.png")
    union = MaskUnion(tmp_path, (tmp_path / "0.png", tmp_path / "1.png"))
    assert_right(union)
    assert (union.name, str(union)) == (tmp_path.name, str(tmp_path))


def test_a_union_names_the_file_that_is_wrong(tmp_path):
    files = (tmp_path / "0.png", tmp_path / "1.png")
    Image.fromarray(WHITE).save(files[0])
    files[1].write_bytes(b"no image")
    with pytest.raises(UserError, match=r"1\.png cannot be read"):
        read_mask(MaskUnion(tmp_path, files))
    Image.fromarray(WHITE[:20]).save(files[1])
    with pytest.raises(UserError, match=r"0\.png \(48 x 40 px\) and .*1\.png \(48 x 20 px"):
        read_mask(MaskUnion(tmp_path, files))


# Masks deeper than 8 bits.


@pytest.mark.parametrize("options", [{}, {"photometric": "miniswhite"}])
@pytest.mark.parametrize("value", [1, 4095, 65535])
def test_deep_tiff(options, value):
    values = np.where(DEFECT, value, 0).astype(np.uint16)
    values = 65535 - values if options else values
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, **options)
    assert_right(EncodedImage("mask.tif", buffer.getvalue()))


@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_deep_colours(planar):
    red = np.zeros((*DEFECT.shape, 3), np.uint16)
    red[DEFECT, 0] = 300
    values = np.moveaxis(red, -1, 0) if planar == "separate" else red
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, photometric="rgb", planarconfig=planar)
    assert_right(EncodedImage("mask.tif", buffer.getvalue()))
    assert_right(EncodedImage("mask.png", imagecodecs.png_encode(red)))


@pytest.mark.parametrize("paint", [(0, 0, 0), (65535, 0, 0)])
def test_deep_alpha(paint):
    values = np.full((*DEFECT.shape, 4), 65535, np.uint16)
    values[DEFECT, :3] = paint
    values[~DEFECT, 3] = 0
    assert_right(EncodedImage("mask.png", imagecodecs.png_encode(values)))
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, photometric="rgb", extrasamples=["unassalpha"])
    assert_right(EncodedImage("mask.tif", buffer.getvalue()))
