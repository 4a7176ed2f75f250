"""The demo data set: exact masks, independence of images, an all-or-nothing folder."""

import itertools

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from harmoniad_jax.data import synthetic
from harmoniad_jax.data.synthetic import CATEGORIES, DEFECTS, DemoSpec

SPEC = DemoSpec(
    side=64, train_per_category=3, test_good_per_category=2, test_per_defect=2, seed=3
)
every_defect = pytest.mark.parametrize(
    ("category", "defect"), list(itertools.product(CATEGORIES, DEFECTS))
)


def files_of(folder):
    """Relative path and bytes of every file below a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("demo") / "dataset"
    synthetic.write_demo_dataset(root, SPEC)
    return root


@every_defect
def test_image_equals_its_clean_twin_exactly_outside_the_mask(category, defect):
    for index in range(6):
        scene = synthetic.compose(category, SPEC, "test", index, defect)
        outside = ~scene.mask
        np.testing.assert_array_equal(scene.image[outside], scene.clean[outside])


@every_defect
def test_mask_holds_little_but_noticeable_changes(category, defect):
    for index in range(6):
        scene = synthetic.compose(category, SPEC, "test", index, defect)
        change = np.abs(scene.image - scene.clean).max(axis=-1)
        noticeable = change > synthetic.NOTICEABLE
        assert change[scene.mask].mean() > 2 * synthetic.NOTICEABLE
        assert noticeable[scene.mask].mean() > 0.5
        # Filled gaps are narrow: a change is at most two pixels away.
        distance = ndimage.distance_transform_edt(~noticeable)
        assert distance[scene.mask].max() <= 2


@every_defect
def test_defect_is_on_the_product_and_never_empty(category, defect):
    areas = []
    for index in range(12):
        scene = synthetic.compose(category, SPEC, "test", index, defect)
        assert scene.mask.any()
        assert not (scene.mask & ~scene.body).any()
        areas.append(scene.mask.sum())
    assert max(areas) > 2 * min(areas)


def test_products_stand_out_from_their_ground():
    bodies = {
        category: synthetic.compose(category, SPEC, "train", 0).body.mean()
        for category in CATEGORIES
    }
    assert bodies.pop("fabric") == 1
    assert all(0.2 < share < 0.7 for share in bodies.values())


@pytest.mark.parametrize("category", CATEGORIES)
def test_sensor_adds_only_weak_noise_to_the_scene(category):
    scene = synthetic.compose(category, SPEC, "test", 1, "spot")
    image, mask = synthetic.render(category, SPEC, "test", 1, "spot")
    noise = image / 255 - scene.image
    np.testing.assert_array_equal(mask, scene.mask)
    assert abs(noise.mean()) < 0.003
    assert 0.004 < noise.std() < 0.02


@pytest.mark.parametrize("side", [48, 75, 160])
@pytest.mark.parametrize("category", CATEGORIES)
def test_render_gives_the_promised_arrays(category, side):
    for split, defect in (("train", None), ("test", None), ("test", "misplaced")):
        scene = synthetic.compose(category, DemoSpec(side=side), split, 0, defect)
        assert scene.image.dtype == scene.clean.dtype == np.float32
        image, mask = synthetic.render(category, DemoSpec(side=side), split, 0, defect)
        assert (image.shape, image.dtype) == ((side, side, 3), np.uint8)
        assert (mask.shape, mask.dtype) == ((side, side), np.bool_)
        assert mask.any() == (defect is not None)


def test_images_depend_on_their_own_address_only():
    addresses = [
        *itertools.product(CATEGORIES, ("train", "test"), range(3), [None]),
        *itertools.product(CATEGORIES, ["test"], range(3), DEFECTS),
    ]
    forward = [synthetic.render(a[0], SPEC, *a[1:])[0] for a in addresses]
    backward = [synthetic.render(a[0], SPEC, *a[1:])[0] for a in reversed(addresses)]
    np.testing.assert_array_equal(forward, backward[::-1])
    assert len({image.tobytes() for image in forward}) == len(addresses)
    other_seed = DemoSpec(side=SPEC.side, seed=SPEC.seed + 1)
    other = synthetic.render("fabric", other_seed, "train", 0)[0]
    assert (other != forward[0]).any()


@pytest.mark.parametrize("category", CATEGORIES)
def test_normal_images_really_vary(category):
    images = [synthetic.compose(category, SPEC, "train", i).image for i in range(8)]
    for first, second in itertools.combinations(images, 2):
        assert np.abs(first - second).mean() > 0.01
    assert np.ptp([image.mean() for image in images]) > 0.02


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("rug", SPEC, "train", 0), "category is 'rug'.*fabric"),
        (("fabric", SPEC, "val", 0), "split is 'val'.*test"),
        (("fabric", SPEC, "test", 0, "dent"), "defect is 'dent'.*scratch"),
        (("fabric", SPEC, "train", 0, "spot"), "defect is 'spot'"),
        (("fabric", DemoSpec(side=20), "train", 0), "side is 20"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        synthetic.render(*arguments)


def test_folder_has_the_mvtec_layout(dataset):
    expected = set()
    for category in CATEGORIES:
        expected |= {f"{category}/train/good/{i:03d}.png" for i in range(3)}
        expected |= {f"{category}/test/good/{i:03d}.png" for i in range(2)}
        for defect, i in itertools.product(DEFECTS, range(2)):
            expected.add(f"{category}/test/{defect}/{i:03d}.png")
            expected.add(f"{category}/ground_truth/{defect}/{i:03d}_mask.png")
    assert set(files_of(dataset)) == expected


@every_defect
def test_files_hold_what_render_gives(dataset, category, defect):
    image, mask = synthetic.render(category, SPEC, "test", 1, defect)
    folder = dataset / category
    with Image.open(folder / "test" / defect / "001.png") as stored:
        np.testing.assert_array_equal(np.asarray(stored), image)
    with Image.open(folder / "ground_truth" / defect / "001_mask.png") as stored:
        assert stored.mode == "L"
        np.testing.assert_array_equal(np.asarray(stored), 255 * mask.astype(np.uint8))


def test_second_run_gives_the_same_bytes(dataset, tmp_path):
    synthetic.write_demo_dataset(tmp_path / "again", SPEC)
    assert files_of(tmp_path / "again") == files_of(dataset)


def test_missing_parent_folders_are_created(tmp_path):
    spec = DemoSpec(64, 1, 0, 0)
    synthetic.write_demo_dataset(tmp_path / "a" / "b", spec)
    assert len(files_of(tmp_path / "a" / "b")) == len(CATEGORIES)


def test_existing_folder_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("kept")
    synthetic.write_demo_dataset(tmp_path, SPEC)
    assert files_of(tmp_path) == {"mine.txt": b"kept"}


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, OSError])
def test_interrupted_write_leaves_nothing(tmp_path, monkeypatch, interruption):
    whole = synthetic._files

    def interrupted(spec):
        yield from itertools.islice(whole(spec), 5)
        assert len(files_of(tmp_path)) == 5
        assert not (tmp_path / "demo").exists()
        raise interruption

    monkeypatch.setattr(synthetic, "_files", interrupted)
    with pytest.raises(interruption):
        synthetic.write_demo_dataset(tmp_path / "demo", SPEC)
    assert list(tmp_path.iterdir()) == []


def test_slower_of_two_writers_accepts_the_folder_of_the_faster(
    dataset, tmp_path, monkeypatch
):
    whole = synthetic._files

    def overtaken(spec):
        yield from itertools.islice(whole(spec), 5)
        monkeypatch.setattr(synthetic, "_files", whole)
        synthetic.write_demo_dataset(tmp_path / "demo", spec)

    monkeypatch.setattr(synthetic, "_files", overtaken)
    synthetic.write_demo_dataset(tmp_path / "demo", SPEC)
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]
    assert files_of(tmp_path / "demo") == files_of(dataset)
