"""A repository that was cloned without Git LFS holds pointers instead of files."""

import pytest

from harmoniad_jax.errors import UserError
from harmoniad_jax.model.encoders.encoder import describe_encoder
from harmoniad_jax.model.encoders.weights import WEIGHT_FILES, read_weights

POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 5\n"
WORDS = "is a pointer of Git LFS, not the file itself; fetch it with git lfs pull in"


@pytest.mark.parametrize("file", WEIGHT_FILES)
def test_weights(tmp_path, file):
    (tmp_path / file).write_text(POINTER)
    with pytest.raises(UserError, match=f"{tmp_path / file} {WORDS} {tmp_path}"):
        read_weights(str(tmp_path), "", {})


def test_settings(tmp_path):
    (tmp_path / "config.json").write_text(POINTER)
    with pytest.raises(UserError, match=f"config.json {WORDS} {tmp_path}"):
        describe_encoder(str(tmp_path))


def test_a_format_that_was_fetched_is_read(tmp_path):
    first, *others = WEIGHT_FILES
    (tmp_path / first).write_text(POINTER)
    for file in others:
        (tmp_path / file).write_text("damaged")
    with pytest.raises(UserError, match=f"{others[0]} cannot be read"):
        read_weights(str(tmp_path), "", {})
