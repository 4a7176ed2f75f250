"""Compiling ahead of time, and keeping what was compiled."""

import concurrent.futures
import dataclasses
import functools
import logging
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from run_helpers import shallow

from harmoniad_jax.config import with_settings
from harmoniad_jax.devices import compilation
from harmoniad_jax.devices.compilation import (
    compile_ahead,
    flops,
    gigaflops,
    in_background,
)
from harmoniad_jax.run.run import prepare_run

ROOT = Path(__file__).parents[2]

PROGRAM = """
import jax, jax.numpy as jnp
from harmoniad_jax.devices.compilation import enable_compilation_cache

enable_compilation_cache()
print(jax.config.jax_compilation_cache_dir)
print(float(jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((5, 5)))[0, 0]))
"""


def compute(home: Path, **environment: str) -> tuple[str, str, str]:
    """The cache's folder and a result of a program of its own, and what it warned of."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT,
        env={**kept, "JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(home), **environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return *done.stdout.split(), done.stderr


def test_what_was_compiled_is_kept_in_the_users_cache(tmp_path):
    folder, result, _ = compute(tmp_path)
    assert Path(folder).parent == tmp_path / "harmoniad_jax" / "compiled"
    entries = list(Path(folder).iterdir())
    assert entries
    # What a killed process left of an entry is passed over, and said.
    for entry in entries:
        entry.write_bytes(entry.read_bytes()[: entry.stat().st_size // 2])
    again, same, warnings = compute(tmp_path)
    assert (again, same) == (folder, result)
    assert "cache" in warnings


def test_jaxs_own_setting_has_precedence(tmp_path):
    elsewhere = str(tmp_path / "elsewhere")
    folder, _, _ = compute(tmp_path / "home", JAX_COMPILATION_CACHE_DIR=elsewhere)
    assert folder == elsewhere
    assert not (tmp_path / "home").exists()


@pytest.fixture
def log(listen):
    return listen(logging.INFO)


def test_time_and_memory_of_a_compiled_function_are_told(log):
    side = 512
    matrix = jax.ShapeDtypeStruct((side, side), jnp.float32)
    compiled = compile_ahead("the product", jax.jit(lambda a: (a @ a).sum()), matrix)
    assert compiled(jnp.ones((side, side))) == side**3
    (line,) = log()
    found = re.fullmatch(
        r"compiled the product in \d+\.\d s; on each device (\d+\.\d\d) GB: "
        r"arguments (\d+\.\d\d) GB, working memory (\d+\.\d\d) GB",
        line,
    )
    assert found


def test_options_that_xla_does_not_know_are_left_out(log, monkeypatch):
    """Those for NVIDIA GPUs are known to this version, on every device."""
    matrix = jax.ShapeDtypeStruct((3, 3), jnp.float32)

    def compiled_with(options):
        monkeypatch.setattr(compilation, "_options", lambda: options)
        compiled = compile_ahead("the sum", jax.jit(jnp.sum), matrix)
        assert compiled(jnp.ones((3, 3))) == 9
        return log()

    assert len(compiled_with(compilation.CUDA_OPTIONS)) == 1
    for unknown in (
        {"xla_no_such_option": True},
        {"xla_gpu_enable_command_buffer": "FUSION,NO_SUCH_VALUE"},
    ):
        assert any("with XLA's defaults" in line for line in compiled_with(unknown))


class Unlucky:
    """A lowered program that does not fit."""

    def compile(self, **_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")


def test_other_errors_of_the_compiler_are_not_swallowed():
    with pytest.raises(jax.errors.JaxRuntimeError, match="Out of memory"):
        compilation._compile(Unlucky(), compilation.CUDA_OPTIONS)


def test_operations_are_counted():
    matrix = jax.ShapeDtypeStruct((1000, 1000), jnp.float32)
    assert gigaflops(lambda a: a @ a, matrix) == "2.0 GFLOP"


@pytest.mark.parametrize("attention", ["library", "fused"])
def test_operations_of_a_run_are_counted_apart_from_its_devices(tiny_config, attention):
    """Another backend counts than the one that trains: no device may be named."""
    changes = {"train.batch_size": 16, "encoder.attention": attention}
    run = prepare_run(with_settings(shallow(tiny_config), changes), for_training=True)
    parts = dataclasses.replace(run.steps, micro_batches=2)
    assert run.mesh.size > 1
    features = run.encoder.feature_shapes(16)
    images = jax.ShapeDtypeStruct((16, *2 * [run.encoder.image_side], 3), np.uint8)
    lowered = jax.jit(parts.counted.train_step).lower(
        jax.eval_shape(run.initial_state), run.encoder.params, images
    )
    assert "mhlo.num_partitions = 1 " in lowered.as_text()
    # On the run's own devices it is another program. Parts count the same.
    on_mesh = jax.jit(run.steps.update).lower(run.abstract_state, features)
    assert f"mhlo.num_partitions = {run.mesh.size} " in on_mesh.as_text()
    whole = flops(run.steps.counted.update, run.abstract_state, features)
    assert whole == flops(parts.counted.update, run.abstract_state, features)


def test_work_in_the_background_is_done_in_its_order_in_another_thread():
    done = []

    def work(name):
        done.append(
            (name, threading.current_thread(), jax.config.jax_default_matmul_precision)
        )
        return name

    with jax.default_matmul_precision("highest"), in_background() as begin:
        results = [begin(functools.partial(work, name)) for name in "abc"]
        assert [result() for result in results] == ["a", "b", "c"]
    assert [name for name, *_ in done] == ["a", "b", "c"]
    assert {thread for _, thread, _ in done}.isdisjoint({threading.current_thread()})
    # What holds in this thread holds there.
    assert {precision for *_, precision in done} == {"highest"}


def test_work_in_the_background_outlives_the_block_and_raises_its_error():
    may_end = threading.Event()
    with in_background() as begin:
        first, second = begin(may_end.wait), begin(lambda: 1 / 0)
    may_end.set()
    assert first()
    with pytest.raises(ZeroDivisionError):
        second()


def test_after_an_error_nothing_more_is_begun_in_the_background():
    may_end, begun = threading.Event(), []
    with pytest.raises(KeyError), in_background() as begin:
        begin(may_end.wait)
        second = begin(lambda: begun.append("second"))
        raise KeyError
    may_end.set()
    with pytest.raises(concurrent.futures.CancelledError):
        second()
    assert not begun


def test_several_processes_compile_in_step(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with in_background() as begin:
        threads = begin(threading.current_thread)
        assert threads() is threading.current_thread()
