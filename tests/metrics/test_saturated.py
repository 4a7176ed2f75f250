"""sPRO against a slow literal reference, AUPRO, and by hand."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from harmoniad_jax.metrics import au_spro, aupro


def literal_au_spro(maps, regions, saturations, fpr_limit):
    """One point of the curve for each distinct score, one region at a time."""
    free = [
        (image, y, x)
        for image, masks in enumerate(regions)
        for y, x in np.ndindex(maps.shape[1:])
        if not any(mask[y, x] for mask in masks)
    ]
    fprs, overlaps = [0.0], [0.0]
    for threshold in sorted(set(maps.ravel().tolist()), reverse=True):
        shares = []
        for scores, masks, enough in zip(maps, regions, saturations, strict=True):
            for mask, saturation in zip(masks, enough, strict=True):
                found = sum(score >= threshold for score in scores[mask].tolist())
                shares.append(min(found / min(saturation, mask.sum()), 1.0))
        fprs.append(sum(maps[place] >= threshold for place in free) / len(free))
        overlaps.append(sum(shares) / len(shares))
    area = 0.0
    for i in range(1, len(fprs)):
        width, rise = fprs[i] - fprs[i - 1], overlaps[i] - overlaps[i - 1]
        inside = min(fprs[i], fpr_limit) - fprs[i - 1]
        if inside > 0:
            end = overlaps[i - 1] + rise * inside / width
            area += inside * (overlaps[i - 1] + end) / 2
    return area / fpr_limit


@st.composite
def cases(draw):
    """Few levels, so that there are ties; regions that overlap, and images without any."""
    count = draw(st.integers(1, 3))
    shape = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    maps = draw(hnp.arrays(np.int64, (count, *shape), elements=st.integers(-3, 3)))
    regions, saturations = [], []
    for _ in range(count):
        size = draw(st.integers(0, 3))
        masks = draw(hnp.arrays(np.bool_, (size, *shape)))
        masks = masks[masks.any(axis=(1, 2))]
        regions.append(masks)
        share = st.floats(0.1, 40)
        saturations.append(
            np.array(draw(st.lists(share, min_size=len(masks), max_size=len(masks))))
        )
    return maps.astype(np.float32), regions, saturations


@given(cases(), st.floats(0.01, 1))
@settings(deadline=None, max_examples=150)
def test_equals_the_literal_reference(case, fpr_limit):
    maps, regions, _ = case
    free = sum((~masks.any(axis=0)).sum() for masks in regions)
    value = au_spro(*case, fpr_limit)
    if not free or not sum(map(len, regions)):
        assert math.isnan(value)
    else:
        assert value == pytest.approx(literal_au_spro(*case, fpr_limit), abs=1e-9)


@pytest.mark.parametrize("fpr_limit", [0.05, 0.3, 1.0])
def test_with_saturation_at_full_size_it_is_the_aupro(fpr_limit):
    rng = np.random.default_rng(0)
    masks = rng.random((4, 17, 13)) < 0.15
    masks[2] = False
    maps = rng.normal(masks, 1.0).astype(np.float32)
    regions, saturations = [], []
    for mask in masks:
        labelled, count = ndimage.label(mask, np.ones((3, 3)))
        parts = labelled == np.arange(1, count + 1)[:, None, None]
        regions.append(parts.reshape(count, *mask.shape))
        saturations.append(parts.sum(axis=(1, 2)).astype(float))
    value = au_spro(maps, regions, saturations, fpr_limit)
    assert value == pytest.approx(aupro(maps, masks, fpr_limit), abs=1e-12)


def test_a_part_is_enough():
    """Two of eight pixels are found before any false positive, and two are enough."""
    maps = np.zeros((1, 4, 4), np.float32)
    maps[0, 0, :2] = 1.0
    region = np.zeros((1, 4, 4), bool)
    region[0, :2] = True
    assert au_spro(maps, [region], [np.array([2.0])]) == 1.0
    found = au_spro(maps, [region], [np.array([8.0])], 1.0)
    assert found == pytest.approx((2 / 8 + 1.0) / 2)


def test_a_pixel_counts_for_each_region_that_it_is_in():
    maps = np.zeros((1, 2, 3), np.float32)
    maps[0, 0, 0] = 1.0
    regions = np.zeros((2, 2, 3), bool)
    regions[:, 0, 0] = regions[1, 0, 1] = True
    once = au_spro(maps, [regions[:1]], [np.ones(1)])
    twice = au_spro(maps, [regions], [np.array([1.0, 2.0])])
    assert once == 1.0
    # The second region is half found, and is found whole as the false positives enter.
    assert twice == pytest.approx((0.75 + 0.75 + 0.05 * 0.25) / 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"regions": [np.zeros((1, 2, 2), bool)]}, "empty"),
        ({"regions": [np.ones((1, 3, 2), bool)]}, "allowed bool [K, 2, 2]"),
        ({"regions": [np.ones((1, 2, 2), np.uint8)]}, "uint8"),
        ({"saturations": [np.zeros(1)]}, "positive"),
        ({"saturations": [np.ones(2)]}, "positive"),
        ({"saturations": []}, "one for each of 1"),
        ({"anomaly_maps": np.zeros((2, 2), np.float32)}, "[N, H, W]"),
        ({"anomaly_maps": np.full((1, 2, 2), np.nan, np.float32)}, "NaN"),
        ({"anomaly_maps": np.zeros((1, 2, 2), int)}, "dtype"),
        ({"fpr_limit": 0.0}, "fpr_limit"),
    ],
)
def test_other_input_is_refused(change, message):
    region = np.zeros((1, 2, 2), bool)
    region[0, 0] = True
    values = {
        "anomaly_maps": np.zeros((1, 2, 2), np.float32),
        "regions": [region],
        "saturations": [np.ones(1)],
    }
    au_spro(**values)
    with pytest.raises(ValueError, match=message.replace("[", r"\[")):
        au_spro(**(values | change))
