"""What a run wrote down may be damaged."""

import json

import pytest

from harmoniad_jax.config import Config
from harmoniad_jax.errors import UserError
from harmoniad_jax.report.summary import read_run
from harmoniad_jax.run.stored import CONFIG_FILE, with_last_settings, write_config
from harmoniad_jax.training.progress import _drop_lines_after


@pytest.mark.parametrize("cut", [0, 1, 80, -4])
def test_a_config_that_was_cut_short_is_named(tmp_path, cut):
    write_config(Config(), tmp_path)
    path = tmp_path / CONFIG_FILE
    path.write_text(path.read_text()[:cut])
    with pytest.raises(UserError, match=f"{path} is damaged .*delete it to take the"):
        with_last_settings(Config(), tmp_path)


@pytest.mark.parametrize("content", [b"[1]", b"null", b"\xff\xfe", b"3"])
def test_a_config_that_is_none(tmp_path, content):
    (tmp_path / CONFIG_FILE).write_bytes(content)
    with pytest.raises(UserError, match=str(tmp_path / CONFIG_FILE)):
        with_last_settings(Config(), tmp_path)


def test_a_config_is_written_whole(tmp_path):
    write_config(Config(), tmp_path)
    assert json.loads((tmp_path / CONFIG_FILE).read_text())
    assert [path.name for path in tmp_path.iterdir()] == [CONFIG_FILE]


@pytest.mark.parametrize(
    ("name", "content", "advice"),
    [
        ("config.json", '{"train": {', "write it anew with the command of the training"),
        ("config.json", "[]", "write it anew with the command of the training"),
        ("results.json", '{"step": 3', "python -m harmoniad_jax.evaluate --workdir="),
        ("results.json", "7", "python -m harmoniad_jax.evaluate --workdir="),
        ("metrics.jsonl", '{"step": 3}\n', "delete it to leave the training time out"),
        ("metrics.jsonl", '{"step}\n', "delete it to leave the training time out"),
    ],
)
def test_a_summary_names_the_damaged_file(tmp_path, name, content, advice):
    write_config(Config(), tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=f"{tmp_path / name} is damaged .*{advice}"):
        read_run(tmp_path)


def test_broken_lines_of_a_log_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n3\n{"a": 1}\n\xff\n{"step": 2}\n{"step": 3}\n{"st')
    _drop_lines_after(path, 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
