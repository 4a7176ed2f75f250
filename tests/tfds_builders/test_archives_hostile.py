"""Hostile archives: paths that lead out, links, bombs, and sizes and names that lie."""

import io
import stat
import tarfile
import zipfile

import pytest
from archive_helpers import content_of, content_or_error, damage, spoil, write_archive
from miniatures import add_to_tar, mvtec, write_tar, write_zip

from tfds_builders import archives

ESCAPES = (
    "../x.png",
    "bottle/../../x.png",
    "bottle/train/good/../../../../x.png",
    "bottle/..",
    "./../x.png",
    "/x.png",
    "//x.png",
    "\\x.png",
    "..\\x.png",
    "bottle\\..\\..\\x.png",
    "C:\\x.png",
    "C:/x.png",
    "__MACOSX/../../x.png",
)


def refusal(path, tmp_path):
    message = spoil(path, tmp_path)
    assert message.startswith(f"{path} is not safe")
    return message


def good_tar(path, format=tarfile.PAX_FORMAT):
    """An open tar that already holds one good category."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tar(mvtec().part("bottle").files, path, format=format)
    return tarfile.open(path, "a", format=format)


# Archives that are hostile.


@pytest.mark.parametrize("name", ESCAPES)
@pytest.mark.parametrize("suffix", [".tar", ".tar.xz", ".zip"])
@pytest.mark.parametrize("is_folder", [False, True])
def test_a_path_that_leads_out_is_refused(tmp_path, name, suffix, is_folder):
    path = tmp_path / "manual" / f"bottle{suffix}"
    files = mvtec().part("bottle").files
    if suffix == ".zip":
        write_zip(files, path)
        with zipfile.ZipFile(path, "a") as archive:
            entry = zipfile.ZipInfo("x")
            entry.filename = name + "/" * is_folder
            archive.writestr(entry, b"")
    else:
        path.parent.mkdir()
        with tarfile.open(path, f"w:{suffix[5:]}") as archive:
            for file, content in files.items():
                add_to_tar(archive, file, content)
            kind = tarfile.DIRTYPE if is_folder else tarfile.REGTYPE
            add_to_tar(archive, name, type=kind)
    assert repr(name)[1:-1].rstrip("/") in refusal(path, tmp_path)


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_a_long_path_that_leads_out_is_refused(tmp_path, format):
    path = tmp_path / "manual/bottle.tar"
    with good_tar(path, format) as archive:
        add_to_tar(archive, "a/" * 100 + "../" * 101 + "x.png", b"x")
    refusal(path, tmp_path)


KINDS = {
    "symbolic link": tarfile.SYMTYPE,
    "hard link": tarfile.LNKTYPE,
    "device": tarfile.CHRTYPE,
    "block device": tarfile.BLKTYPE,
    "pipe": tarfile.FIFOTYPE,
    "unknown": b"Z",
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("target", ["/etc/passwd", "../../x", "000.png"])
@pytest.mark.parametrize("name", ["bottle/train/good/link.png", "bottle/.hidden"])
def test_what_is_no_plain_file_in_a_tar_is_refused(tmp_path, kind, target, name):
    path = tmp_path / "manual/bottle.tar"
    with good_tar(path) as archive:
        add_to_tar(archive, name, type=KINDS[kind], linkname=target)
    assert name in refusal(path, tmp_path)


def test_a_file_behind_a_link_to_a_folder_is_refused(tmp_path):
    path = tmp_path / "manual/bottle.tar"
    with good_tar(path) as archive:
        add_to_tar(archive, "bottle/out", type=tarfile.SYMTYPE, linkname="/tmp")
        add_to_tar(archive, "bottle/out/x.png", b"x")
    refusal(path, tmp_path)


SPARSE = {
    "0.0": {"GNU.sparse.size": "9999999999999", "GNU.sparse.numblocks": "1"},
    "0.1": {"GNU.sparse.map": "0,4", "GNU.sparse.size": "9999999999999"},
    "1.0": {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.realsize": "9999999999999",
        "GNU.sparse.name": "bottle/train/good/s.png",
    },
}


@pytest.mark.parametrize("version", SPARSE)
def test_a_sparse_file_is_refused(tmp_path, version):
    """A few bytes of it can stand for terabytes."""
    path = tmp_path / "manual/bottle.tar"
    with good_tar(path) as archive:
        content = b"1\n0\n4\n".ljust(512, b"\0") + b"data"
        name = "bottle/train/good/s.png"
        add_to_tar(archive, name, content, pax_headers=SPARSE[version])
    refusal(path, tmp_path)


def test_a_sparse_file_of_old_gnu_tar_is_refused(tmp_path):
    path = tmp_path / "manual/bottle.tar"
    with good_tar(path, tarfile.GNU_FORMAT) as archive:
        add_to_tar(archive, "bottle/train/good/s.png", b"data", type=tarfile.GNUTYPE_SPARSE)
    assert "not safe" in spoil(path, tmp_path) or "corrupted" in spoil(path, tmp_path)


def test_a_link_in_a_zip_is_refused(tmp_path):
    path = write_zip(mvtec().part("bottle").files, tmp_path / "manual/bottle.zip")
    with zipfile.ZipFile(path, "a") as archive:
        entry = zipfile.ZipInfo("bottle/train/good/link.png")
        entry.create_system = 3
        entry.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(entry, b"/etc/passwd")
    assert "link.png" in refusal(path, tmp_path)


def test_an_encrypted_zip_is_refused(tmp_path):
    path = write_zip(mvtec().part("bottle").files, tmp_path / "manual/bottle.zip")
    content = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        position = content.find(signature)
        while position >= 0:
            content[position + offset] |= 1
            position = content.find(signature, position + 1)
    path.write_bytes(content)
    assert "encrypted" in damage(path, tmp_path)


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".zip"])
def test_an_entry_larger_than_any_image_is_refused(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(archives, "LARGEST_ENTRY", 100_000)
    files = mvtec().part("bottle").files
    fits = {**files, "bottle/train/license.txt": bytes(100_000)}
    path = write_archive(fits, tmp_path / "fits" / f"bottle{suffix}")
    content_of(path, tmp_path)
    files = {**files, "bottle/train/license.txt": bytes(100_001)}
    path = write_archive(files, tmp_path / "manual" / f"bottle{suffix}")
    assert "license.txt" in spoil(path, tmp_path)


def test_a_zip_entry_that_holds_more_than_it_says_is_damaged(tmp_path):
    """A bomb: it says that it is small."""
    path = write_zip(
        {"bottle/train/good/0.png": bytes(50_000_000)}, tmp_path / "bottle.zip"
    )
    content = path.read_bytes()
    size = (50_000_000).to_bytes(4, "little")
    assert content.count(size) == 2
    path.write_bytes(content.replace(size, (1000).to_bytes(4, "little")))
    assert content_or_error(path, tmp_path) is None


def raw_header(name, size, kind=b"0"):
    """A tar header whose size field is any number, in the notation of GNU tar."""
    header = bytearray(tarfile.TarInfo(name).tobuf(tarfile.GNU_FORMAT))
    header[124:136] = size.to_bytes(12, "big", signed=True)
    header[124] |= 0x80
    header[156:157] = kind
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


@pytest.mark.parametrize("size", [-512, -1024, -1, -(1 << 60), 1 << 40, 1 << 62, (1 << 80)])
@pytest.mark.parametrize("kind", [b"0", b"5", b"L", b"x", b"g", b"S", b"Z"])
def test_a_size_that_cannot_be_is_damage(tmp_path, size, kind):
    """A negative one leads back to where the reader was: it must not go round for ever."""
    path = tmp_path / "bottle.tar"
    good = io.BytesIO()
    with tarfile.open(fileobj=good, mode="w") as archive:
        add_to_tar(archive, "good.png", b"good")
    header = raw_header("bottle/train/good/0.png", size, kind)
    path.write_bytes(good.getvalue()[:1024] + header + bytes(1024))
    found = content_or_error(path, tmp_path)
    # A folder has no content, so its size means nothing.
    assert found is None or (kind == b"5" and found == {"good.png": b"good"})


@pytest.mark.parametrize("size", [-512, -1024, -1, 1 << 40, 1 << 80])
def test_a_size_that_cannot_be_in_an_extended_header_is_damage(tmp_path, size):
    path = tmp_path / "bottle.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        add_to_tar(archive, "good.png", b"good")
        add_to_tar(archive, "bottle/0.png", b"0", pax_headers={"size": str(size)})
    assert content_or_error(path, tmp_path) is None


@pytest.mark.parametrize("name", ["a\nb.png", "a\rb.png", "a\x1b[2Jb.png", "a\u2028b.png"])
@pytest.mark.parametrize("what", ["link", "escape", "damaged image", "large"])
def test_a_name_cannot_forge_lines_of_its_own(tmp_path, monkeypatch, name, what):
    """Error messages are one line, whatever an archive calls its files."""
    path = tmp_path / "manual/bottle.tar"
    with good_tar(path) as archive:
        name = f"bottle/train/good/{name}"
        if what == "link":
            add_to_tar(archive, name, type=tarfile.SYMTYPE, linkname="x")
        elif what == "escape":
            add_to_tar(archive, f"../{name}")
        elif what == "large":
            monkeypatch.setattr(archives, "LARGEST_ENTRY", 100_000)
            add_to_tar(archive, name, bytes(100_001))
        else:
            add_to_tar(archive, name, b"no image")
    spoil(path, tmp_path)
