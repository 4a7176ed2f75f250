"""Archives are untrusted: each is read right or refused in one line, nothing else."""

import contextlib
import io
import os
import random
import resource
import tarfile
import warnings
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath

import numpy as np
import pytest
from archive_helpers import content_of, content_or_error, damage, spoil, write_archive
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from miniatures import (
    add_to_tar,
    assert_prepared,
    draw_image,
    error_of,
    mvtec,
    write_folder,
    write_tar,
)
from PIL import Image

from tfds_builders.archives import SUFFIXES, FolderTree, open_archive
from tfds_builders.prepare import prepare

FEW = {"a.png": bytes(range(256)), "b/c.png": b"c" * 700, "b/d e.png": b"", "e.png": b"e"}


@pytest.fixture(scope="module", params=SUFFIXES)
def small(request, tmp_path_factory):
    """A small archive of every kind; not to be changed."""
    return write_archive(FEW, tmp_path_factory.mktemp("small") / f"few{request.param}")


# Archives that are right.


def test_every_kind_holds_what_was_put_in(small, tmp_path):
    with open_archive(small, tmp_path) as tree:
        assert tree.names == sorted(FEW)
        assert {name: tree.read(name) for name in tree.names} == FEW
        assert [tree.size(name) for name in tree.names] == [
            len(FEW[name]) for name in tree.names
        ]
        assert tree.path == small
        # Not even while it is open: a killed process leaves nothing.
        assert list(tmp_path.iterdir()) == []


def test_a_folder_is_the_same_tree(tmp_path):
    files = {f"top/{name}": content for name, content in FEW.items()}
    write_folder(files, tmp_path)
    write_folder({"beside/x.png": b"", "x.png": b""}, tmp_path)
    with FolderTree(tmp_path, ("top", "absent")) as tree:
        assert {name: tree.read(name) for name in tree.names} == files
        assert all(tree.size(name) == len(files[name]) for name in tree.names)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_a_system_left_behind_is_not_listed(tmp_path, suffix):
    stray = ("._a.png", ".DS_Store", "b/._c.png", "__MACOSX/a.png", ".hidden/a.png")
    files = FEW | dict.fromkeys(stray, b"stray")
    path = write_archive(files, tmp_path / f"some{suffix}")
    assert content_of(path, tmp_path) == FEW
    write_folder(files, tmp_path / "top")
    with FolderTree(tmp_path, ("top",)) as tree:
        assert tree.names == sorted(f"top/{name}" for name in FEW)


def test_several_threads_may_read_at_a_time(small, tmp_path):
    names = random.Random(0).choices(sorted(FEW), k=400)
    with open_archive(small, tmp_path) as tree, ThreadPoolExecutor(8) as pool:
        assert list(pool.map(tree.read, names)) == [FEW[name] for name in names]


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".zip"])
def test_of_two_files_of_one_name_the_last_counts(tmp_path, suffix):
    """As it would if they were extracted."""
    path = tmp_path / f"twice{suffix}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if suffix == ".zip":
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("a.png", b"old")
                archive.writestr("a.png", b"new")
        else:
            with tarfile.open(path, f"w:{suffix[5:]}") as archive:
                add_to_tar(archive, "a.png", b"old")
                add_to_tar(archive, "./a.png", b"new")
    assert content_of(path, tmp_path) == {"a.png": b"new"}


names = st.lists(
    st.text(
        st.characters(exclude_characters="/\\\0:", exclude_categories=["Cs"]), min_size=1
    )
    .filter(lambda part: not part.startswith("."))
    .filter(lambda part: len(part.encode()) < 200 and part != "__MACOSX"),
    min_size=1,
    max_size=4,
).map("/".join)


@pytest.mark.parametrize("suffix", [".tar", ".tar.xz", ".zip"])
@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(files=st.dictionaries(names, st.binary(max_size=600), min_size=1, max_size=6))
def test_any_names_and_any_contents_come_back(tmp_path, suffix, files):
    folders = {str(folder) for name in files for folder in PurePosixPath(name).parents}
    files = {name: content for name, content in files.items() if name not in folders}
    path = write_archive(files, tmp_path / f"any{suffix}")
    assert content_of(path, tmp_path) == files


# Archives that are damaged.


def test_an_archive_cut_anywhere_is_damaged(small, tmp_path):
    """All positions, between two files and within the blocks that mark the end too."""
    content = small.read_bytes()
    path = tmp_path / small.name
    enough = len(content)
    if small.suffix == ".tar":
        # The first of the blocks that mark the end.
        enough = len(content.rstrip(b"\0")) // 512 * 512 + 1024
    step = 64 if small.suffix == ".tar" else 3
    for cut in {
        *range(0, enough, step),
        *range(0, enough, 512),
        *range(enough - 9, enough),
    }:
        path.write_bytes(content[:cut])
        assert content_or_error(path, tmp_path) is None, cut
    path.write_bytes(content[:enough])
    assert content_or_error(path, tmp_path) == FEW


@pytest.mark.parametrize("flip", [0x01, 0x80, 0xFF])
def test_a_spoilt_byte_anywhere_is_noticed_or_harmless(small, tmp_path, flip):
    """A plain tar has no checksums of contents: there only one file may differ."""
    content = small.read_bytes()
    path = tmp_path / small.name
    end = 5000 if small.suffix == ".tar" else len(content)
    for position in range(flip % 3, end, 7 if small.suffix == ".tar" else 2):
        spoilt = bytearray(content)
        spoilt[position] ^= flip
        path.write_bytes(spoilt)
        found = content_or_error(path, tmp_path)
        if found is None or found == FEW:
            continue
        assert small.suffix == ".tar", position
        assert found.keys() == FEW.keys(), position
        assert sum(found[name] != FEW[name] for name in FEW) == 1, position


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_no_bytes_bring_a_reader_down(small, tmp_path, data):
    """Stretches are overwritten, cut out and doubled: it is read or refused."""
    content = bytearray(small.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, min(len(content), 6000)))
        end = start + data.draw(st.integers(0, 600))
        middle = data.draw(st.binary(max_size=40) | st.just(bytes(content[start:end]) * 2))
        content[start:end] = middle
    path = tmp_path / small.name
    path.write_bytes(content)
    content_or_error(path, tmp_path)


@pytest.mark.parametrize(
    "content",
    [b"", b"\0", bytes(512), bytes(20_000), b"<html>Please log in.</html>\n" * 500],
    ids=["nothing", "one zero", "a block of zeros", "zeros", "a page"],
)
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_is_no_archive_is_one_line(tmp_path, content, suffix):
    path = tmp_path / "manual" / f"mvtec_anomaly_detection{suffix}"
    path.parent.mkdir()
    path.write_bytes(content)
    if suffix == ".tar" and len(content) >= 512 and not any(content):
        assert "holds no part" in spoil(path, tmp_path)  # a tar without files
    else:
        damage(path, tmp_path)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("other", [".tar", ".tar.gz", ".tar.xz", ".zip"])
def test_an_archive_under_the_suffix_of_another_is_one_line(tmp_path, suffix, other):
    same = {".txz": ".tar.xz", ".tgz": ".tar.gz"}
    if same.get(suffix, suffix) == other:
        return
    files = mvtec().part("bottle").files
    path = write_archive(files, tmp_path / f"bottle{other}")
    (tmp_path / "manual").mkdir()
    damage(path.rename(tmp_path / "manual" / f"bottle{suffix}"), tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99, -1])
@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tar.xz", ".tar.bz2", ".zip"])
def test_nothing_is_prepared_from_half_an_archive(tmp_path, share, suffix):
    files = mvtec().part("bottle").files
    path = write_archive(files, tmp_path / "manual" / f"bottle{suffix}")
    content = path.read_bytes()
    if suffix == ".tar":
        content = content.rstrip(b"\0")  # the marks of the end say nothing
    path.write_bytes(content[: int(len(content) * share) if share >= 0 else -1])
    damage(path, tmp_path)


def test_a_tar_cut_between_two_files_is_damaged(tmp_path):
    """Each file in it is whole, so only the end that lacks gives it away."""
    path = write_tar(mvtec().part("bottle").files, tmp_path / "manual/bottle.tar")
    with tarfile.open(path) as archive:
        starts = [member.offset for member in archive.getmembers()][1:]
    content = path.read_bytes()
    assert len(starts) > 10
    for start in starts:
        path.write_bytes(content[:start])
        assert content_or_error(path, tmp_path) is None
    damage(path, tmp_path)


def test_a_tar_whose_middle_is_spoilt_is_damaged(tmp_path):
    """Files behind a spoilt header must not be lost in silence."""
    path = write_tar(mvtec().part("bottle").files, tmp_path / "manual/bottle.tar")
    with tarfile.open(path) as archive:
        start = archive.getmembers()[8].offset
    content = bytearray(path.read_bytes())
    content[start + 3] ^= 0xFF
    path.write_bytes(content)
    damage(path, tmp_path)


@pytest.mark.parametrize("suffix", [".tar.gz", ".tar.xz", ".tar.bz2", ".zip"])
def test_nothing_is_prepared_from_an_archive_with_a_spoilt_middle(tmp_path, suffix):
    path = write_archive(mvtec().part("bottle").files, tmp_path / f"manual/bottle{suffix}")
    content = bytearray(path.read_bytes())
    start = content.find(b".png") + 4 if suffix == ".zip" else 0
    for position in range(len(content) // 2, len(content) // 2 + 40):
        content[max(start, position)] ^= 0xFF
    path.write_bytes(content)
    damage(path, tmp_path)


def test_one_damaged_archive_among_good_ones_is_named(tmp_path):
    for name in ("bottle", "grid", "metal_nut"):
        files = mvtec().part(name).files
        path = write_tar(files, tmp_path / "manual" / f"{name}.tar.xz")
    path = tmp_path / "manual/grid.tar.xz"
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    damage(path, tmp_path)
    path.write_bytes(whole)
    prepare("mvtec_ad", tmp_path / "manual", tmp_path / "data")
    assert_prepared(mvtec(), tmp_path / "data")


def bomb():
    """The header of an image of ten gigapixels."""
    content = bytearray(draw_image("bomb.png", (8, 8)))
    content[16:24] = (100_000).to_bytes(4, "big") * 2
    return bytes(content)


DAMAGED_IMAGES = {
    "cut": draw_image("cut.png", (64, 64))[:2000],
    "text": b"This is a note, not a picture.",
    "empty": b"",
    "bomb": bomb(),
}


@pytest.mark.parametrize("kind", DAMAGED_IMAGES)
@pytest.mark.parametrize("suffix", [".tar", ".tar.xz", ".zip", ""])
@pytest.mark.parametrize(
    "name", ["train/good/003.png", "test/cut/001.png", "ground_truth/cut/002_mask.png"]
)
def test_a_damaged_image_is_named(tmp_path, kind, suffix, name):
    files = dict(mvtec().part("bottle").files)
    assert f"bottle/{name}" in files
    files[f"bottle/{name}"] = DAMAGED_IMAGES[kind]
    manual = tmp_path / "manual"
    if suffix:
        path = write_archive(files, manual / f"bottle{suffix}")
    else:
        path = write_folder(files, manual)
    message = error_of("mvtec_ad", manual, tmp_path / "data")
    assert f"bottle/{name}" in message
    assert str(path) in message


def test_a_spoilt_image_in_a_tar_is_read_or_named(tmp_path):
    """A plain tar tells nothing of it: an image decodes or it does not."""
    files = mvtec().part("bottle").files
    path = write_tar(files, tmp_path / "manual/bottle.tar")
    with tarfile.open(path) as archive:
        member = archive.getmember("bottle/train/good/001.png")
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    for position in rng.integers(0, member.size, 12):
        spoilt = bytearray(content)
        spoilt[member.offset_data + position] ^= 0x55
        path.write_bytes(spoilt)
        image = bytes(spoilt[member.offset_data :][: member.size])
        try:
            with Image.open(io.BytesIO(image)) as picture:
                picture.load()
        except (OSError, SyntaxError, ValueError):
            message = error_of("mvtec_ad", path.parent, tmp_path / f"data{position}")
            assert member.name in message
        else:
            with open_archive(path, tmp_path) as tree:
                assert tree.read(member.name) == image


# A disk without room.


@contextlib.contextmanager
def no_file_larger_than(size):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_no_room_to_decompress_is_one_line(tmp_path):
    path = write_tar(mvtec().files, tmp_path / "manual/mvtec_anomaly_detection.tar.xz")
    with no_file_larger_than(10_000):
        message = spoil(path, tmp_path)
    assert str(tmp_path / "data") in message
    assert "corrupted" not in message


def test_no_room_to_write_is_one_line(tmp_path):
    path = write_tar(mvtec().files, tmp_path / "manual/mvtec_anomaly_detection.tar")
    assert path.stat().st_size > 10_000
    with no_file_larger_than(10_000):
        message = spoil(path, tmp_path)
    assert str(tmp_path / "data") in message
    assert "corrupted" not in message


def test_an_archive_that_cannot_be_read_is_not_called_damaged(tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    path = write_tar(mvtec().files, tmp_path / "manual/mvtec_anomaly_detection.tar")
    path.chmod(0)
    message = spoil(path, tmp_path)
    assert "Permission denied" in message
    assert "corrupted" not in message
