"""Copies of images: found without reading every file, and kept together."""

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from run_helpers import changed
from scipy import ndimage

from harmoniad_jax.data import copies as module
from harmoniad_jax.data.copies import copies, first_of, nearly_alike, thumbnail
from harmoniad_jax.data.records import Dataset, EncodedImage, Record
from harmoniad_jax.run.run import prepare_run


def write(folder, name, content):
    (folder / name).write_bytes(content)
    return Record(folder / name, "cap")


def names(groups):
    return [[record.image.name for record in group] for group in groups]


def photo(seed, size=100_000):
    return np.random.default_rng(seed).bytes(size)


def test_copies_are_found_whatever_their_names(tmp_path):
    records = [
        write(tmp_path, "a.png", photo(0)),
        write(tmp_path, "b.png", photo(1)),
        write(tmp_path, "c.png", photo(0)),
        write(tmp_path, "d.png", photo(2, 70_000)),
        write(tmp_path, "e.png", photo(1)),
        write(tmp_path, "f.png", photo(0)),
    ]
    groups = copies(records)
    assert names(groups) == [["a.png", "c.png", "f.png"], ["b.png", "e.png"]]
    first = first_of(groups)
    assert first[records[5]] == first[records[0]] == records[0]
    assert records[3] not in first


@pytest.mark.parametrize("place", [0, 50_000, 99_999])
def test_files_that_differ_in_one_byte_are_no_copies(tmp_path, place):
    content = bytearray(photo(0))
    first = write(tmp_path, "a.bmp", bytes(content))
    content[place] ^= 1
    assert copies([first, write(tmp_path, "b.bmp", bytes(content))]) == []


def scene(seed):
    """A smooth image, as photos are, [128, 128, 3] of 0 to 255."""
    coarse = np.random.default_rng(seed).uniform(0, 255, (8, 8, 3))
    return ndimage.zoom(coarse, (16, 16, 1), order=1)


def test_a_series_of_one_part_is_nearly_alike(monkeypatch):
    """Shots that differ by the sensor's noise, among other parts."""
    monkeypatch.setattr(module, "BLOCK", 4)
    noise = np.random.default_rng(0).normal(0, 3, (2, 128, 128, 3))
    shots = [scene(0), scene(1), scene(2) + noise[0], scene(3), scene(2) + noise[1]]
    shots += [scene(4), scene(2) + 5]
    small = [thumbnail(np.clip(shot, 0, 255).round().astype(np.uint8)) for shot in shots]
    assert nearly_alike(small) == [(2, 4), (4, 2)]
    assert nearly_alike(small[:2]) == nearly_alike(small[:1]) == nearly_alike([]) == []


@pytest.mark.parametrize("spread", [0, 1, 40])
def test_nearly_alike_are_all_that_a_search_of_all_pairs_finds(monkeypatch, spread):
    monkeypatch.setattr(module, "BLOCK", 7)
    random = np.random.default_rng(spread)
    parts = random.integers(50, 150, (12, 256)) + random.integers(0, spread + 1, (12, 1))
    # Several shots of each part, some of them close enough.
    shots = np.repeat(parts, 4, axis=0) + random.choice(
        [-1, 0, 0, 1], (48, 256)
    ) * random.integers(0, 2, (48, 1))
    shots = random.permutation(shots)
    squares = np.square(shots[:, None] - shots).mean(axis=2)
    np.fill_diagonal(squares, np.inf)
    alike = np.sqrt(squares) <= module.NEARLY_ALIKE
    found = nearly_alike([shot.astype(np.uint8).tobytes() for shot in shots])
    assert [place for place, _ in found] == np.flatnonzero(alike.any(axis=1)).tolist()
    assert 10 < len(found) < len(shots)
    for place, nearest in found:
        assert squares[place, nearest] == squares[place].min()


@pytest.mark.parametrize("size", [0, 1, 4096, 8 * 4096, 8 * 4096 + 1])
def test_files_of_any_size(tmp_path, size):
    records = [write(tmp_path, name, photo(0, size)) for name in ("a.png", "b.png")]
    assert names(copies(records)) == [["a.png", "b.png"]]


def test_a_known_hash_is_believed_and_other_images_are_not_read():
    class Unread(EncodedImage):
        def read_bytes(self):
            raise AssertionError("it was read")

    records = [
        Record(Unread(f"{index}.png", b""), "cap", sha256=digest)
        for index, digest in enumerate("aba")
    ]
    assert names(copies(records)) == [["0.png", "2.png"]]
    assert copies([Record(Unread("x.png", b""), "cap")]) == []


def test_a_file_that_cannot_be_read_is_nobodys_copy(tmp_path):
    gone = Record(tmp_path / "gone.png", "cap")
    assert copies([gone, gone, write(tmp_path, "a.png", b"")]) == []


def test_files_of_other_sizes_are_not_opened_and_large_ones_in_part(tmp_path, monkeypatch):
    """A data set of bitmaps, whose sizes are all the same, is not read twice."""
    records = [write(tmp_path, f"{i}.png", photo(i, 1000 + i)) for i in range(5)]
    records += [write(tmp_path, f"{i}.bmp", photo(i, 1_000_000)) for i in range(5)]
    read = []
    opened = Path.open

    def counting(path, *arguments):
        file = opened(path, *arguments)
        function = file.read

        class Counted:
            def __enter__(self):
                return self

            def __exit__(self, *_):
                file.close()

            seek = file.seek

            def read(self, *size):
                data = function(*size)
                read.append((path.suffix, len(data)))
                return data

        return Counted()

    monkeypatch.setattr(Path, "open", counting)
    assert copies(records) == []
    assert {suffix for suffix, _ in read} == {".bmp"}
    assert sum(size for _, size in read) == 5 * module.PIECES * module.PIECE_BYTES


# Holding out.


def dataset(images):
    """Records of (category, content), named in order."""
    train = [
        Record(EncodedImage(f"{index:03}.png", b""), category, sha256=content)
        for index, (category, content) in enumerate(images)
    ]
    return Dataset(train, [])


def held(data, share, **options):
    after = data.hold_out(share, first_of(copies(data.train)), **options)
    assert [r for r in data.train if r in after.train or r in after.held_out] == data.train
    return after


@pytest.mark.parametrize(
    ("at_random", "chosen"),
    [(False, [2, 6, 11, 16, 20, 24]), (True, [2, 8, 12, 14, 19, 24])],
)
def test_the_choice_never_changes(at_random, chosen):
    """Old runs go on: they are known by the names of their training images."""
    data = dataset([("a", f"a{i}") for i in range(23)] + [("b", f"b{i}") for i in range(3)])
    after = held(data, 0.2, at_random=at_random)
    numbers = [int(record.image.name[:3]) for record in after.held_out]
    assert numbers == chosen
    assert after == data.hold_out(0.2, at_random=at_random)


contents = st.lists(
    st.tuples(st.sampled_from("ab"), st.sampled_from("0123456789")), min_size=1, max_size=40
)


@given(contents, st.sampled_from([0.0, 0.1, 0.33, 0.5, 0.9]))
def test_no_image_is_held_out_and_trained_on(images, share):
    data = dataset(images)
    after = held(data, share)
    trained = {record.sha256 for record in after.train}
    assert trained.isdisjoint(record.sha256 for record in after.held_out)
    assert after.categories == data.categories
    assert share or not after.held_out


def test_every_photo_twice_holds_out_the_share_of_photos():
    data = dataset([("a", f"{i // 2}") for i in range(40)])
    after = held(data, 0.2)
    assert len({record.sha256 for record in after.held_out}) == 4
    assert len(after.held_out) == 8


def test_nothing_but_copies_of_one_photo_holds_nothing_out():
    assert held(dataset([("a", "0")] * 9), 0.5).held_out == []


@pytest.fixture
def run_with_copies(products, tiny_config, tmp_path, listen):
    """A function that copies files of the demo and gives the data set and what is said."""

    def prepare(copied):
        root = tmp_path / "photos"
        shutil.copytree(products, root)
        for source, target in copied:
            (root / target).write_bytes((root / source).read_bytes())
        config = changed(tiny_config, "data", root=str(root))
        config = changed(config, "calibration", holdout=0.4)
        take = listen(logging.INFO)
        return prepare_run(config).dataset, [line for line in take() if "cop" in line]

    return prepare


def test_a_run_says_how_many_copies_there_are_and_keeps_them_together(run_with_copies):
    place = "tablet/train/good"
    data, said = run_with_copies(
        [(f"{place}/{i:03}.png", f"{place}/{i:03} - copy.png") for i in range(8)]
    )
    assert said == [
        "8 training images are copies: held out or trained on together with the original"
    ]
    held_out = {r.image.read_bytes() for r in data.held_out if r.category == "tablet"}
    trained = {r.image.read_bytes() for r in data.train}
    assert len(held_out) == 3
    assert held_out.isdisjoint(trained)


def test_an_older_run_holds_out_as_it_did(products, tiny_config):
    """Images that were trained on then are trained on still."""
    config = changed(tiny_config, "calibration", holdout=0.4, copies_together=False)
    data = prepare_run(config).dataset
    again = sorted([*data.train, *data.held_out], key=lambda record: record.image)
    again = Dataset(again, data.test).hold_out(0.4)
    assert (again.train, again.held_out) == (data.train, data.held_out)


def test_no_threshold_is_set_on_an_image_that_is_trained_on(
    products, tiny_config, tmp_path, listen
):
    root = tmp_path / "photos"
    shutil.copytree(products, root)
    place = root / "fabric/validation/good"
    place.mkdir(parents=True)
    shutil.copy(root / "fabric/train/good/003.png", place / "again.png")
    shutil.copy(root / "fabric/test/good/000.png", place / "new.png")
    take = listen(logging.WARNING)
    data = prepare_run(changed(tiny_config, "data", root=str(root))).dataset
    assert [record.image.name for record in data.held_out] == ["new.png"]
    (said,) = [line for line in take() if "validation image" in line]
    assert said.startswith("1 validation image is a copy of a training image")


def test_a_run_says_that_test_images_were_trained_on(run_with_copies):
    source, target = "tablet/train/good/000.png", "tablet/test/good/again.png"
    _, (said,) = run_with_copies([(source, target)])
    assert said.startswith(
        "1 test image is a copy of a training image, such as tablet/good"
    )
    assert "metrics are too good" in said


def test_a_run_without_copies_says_nothing(run_with_copies):
    assert run_with_copies([])[1] == []
