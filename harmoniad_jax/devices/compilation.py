"""Compiling ahead of time, keeping what was compiled, and saying what it costs."""

import concurrent.futures
import contextlib
import functools
import hashlib
import logging
import os
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import jax

from harmoniad_jax.folders import cache_folder
from harmoniad_jax.words import gigabytes

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Options of XLA for NVIDIA GPUs; docs/speed.md has the figures. Operations that do not wait
# for each other run at the same time. The GPU gets a loop over steps as a whole: it ends
# most operations before a host could start the next. Matrix products come from NVIDIA's
# library, since XLA tries kernels of its own out while it compiles.
CUDA_OPTIONS = {
    "xla_gpu_command_buffer_scheduling_mode": "CONCURRENT",
    "xla_gpu_enable_command_buffer": (
        "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,DYNAMIC_SLICE_FUSION,CONDITIONAL,WHILE"
    ),
    "xla_gpu_enable_triton_gemm": False,
}
UNKNOWN_OPTION = "No such compile option", "While setting option"


def enable_compilation_cache() -> None:
    """Keeps compiled programs in the user's cache folder, for the next start.

    Small ones too: a start needs dozens of them. JAX's own settings have precedence:
    `JAX_COMPILATION_CACHE_DIR`, where empty means none, and
    `JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS`.
    """
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = cache_folder() / "compiled" / _machine()
        jax.config.update("jax_compilation_cache_dir", str(folder))


def _machine() -> str:
    """Eight digits that differ between processors: home folders are shared by many.

    What XLA compiles for one processor may hold instructions that another lacks.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        flags = next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        flags = platform.processor()
    return hashlib.sha256(f"{platform.machine()} {flags}".encode()).hexdigest()[:8]


def compile_ahead(what: str, function: Any, *arguments: Any) -> jax.stages.Compiled:
    """Compiles a jitted function for arguments of these shapes and shardings.

    On NVIDIA GPUs with `CUDA_OPTIONS`. Logs how long it took and the memory of one device
    that a call needs, by XLA's count.
    """
    start = time.monotonic()
    compiled = _compile(function.lower(*arguments), _options())
    seconds = time.monotonic() - start
    logger.info("compiled %s in %.1f s%s", what, seconds, _describe(compiled))
    return compiled


def _options() -> dict[str, Any]:
    is_cuda = "cuda" in jax.devices()[0].client.platform_version.lower()
    return CUDA_OPTIONS if is_cuda else {}


def _compile(lowered: jax.stages.Lowered, options: dict[str, Any]) -> jax.stages.Compiled:
    """With options that this version of XLA may not know; then without them."""
    try:
        return lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        if not any(words in str(error) for words in UNKNOWN_OPTION):
            raise
        logger.info("compiling with XLA's defaults: %s", error)
        return lowered.compile()


def host_device() -> jax.Device | None:
    """The processor as a device; None where JAX_PLATFORMS leaves it out."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return None


@contextlib.contextmanager
def in_background() -> Iterator[Callable[[Callable[[], T]], Callable[[], T]]]:
    """Compiles on another core, in the order asked for, while this thread goes on.

    XLA compiles a program on one core for the most part. Several processes compile in
    step, and so in this thread.

    Yields:
      A function that begins work, and gives a function that waits for its result.
    """
    if jax.process_count() > 1:
        yield functools.cache
        return
    precision = jax.config.jax_default_matmul_precision  # of this thread alone

    def begin(work: Callable[[], T]) -> Callable[[], T]:
        def same_work() -> T:
            with jax.default_matmul_precision(precision):
                return work()

        return executor.submit(same_work).result

    executor = concurrent.futures.ThreadPoolExecutor(max_workers=1)
    try:
        yield begin
    except BaseException:
        executor.shutdown(wait=False, cancel_futures=True)
        raise
    executor.shutdown(wait=False)


def working_bytes(compiled: jax.stages.Compiled) -> int:
    """Bytes of one device that a call takes and frees; 0 where it is not known."""
    memory = compiled.memory_analysis()
    return 0 if memory is None else memory.temp_size_in_bytes


def memory_bytes(compiled: jax.stages.Compiled) -> int | None:
    """Bytes of one device that a call needs, by XLA's count; None where it is not known."""
    memory = compiled.memory_analysis()
    if memory is None:  # some backends do not count
        return None
    # Donated arguments are overwritten by outputs, and counted once.
    return (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
    )


def _describe(compiled: jax.stages.Compiled) -> str:
    total = memory_bytes(compiled)
    if total is None:
        return ""
    memory = compiled.memory_analysis()
    return (
        f"; on each device {gigabytes(total)}: arguments "
        f"{gigabytes(memory.argument_size_in_bytes)}, working memory "
        f"{gigabytes(memory.temp_size_in_bytes)}"
    )


def flops(function: Any, *arguments: Any) -> float | None:
    """Floating-point operations of a call over all devices; None where it is not known.

    By XLA's count before compilation: nothing is split over devices or left out yet. It is
    made as if for the CPU, since accelerators' plug-ins do not count.

    Args:
      function: a pure function that names no devices, such as those of `Steps.counted`.
      arguments: its arguments, or their shapes.
    """
    if (cpu := host_device()) is None:
        return None
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), arguments)
    with jax.default_device(cpu):
        cost = jax.jit(function).lower(*shapes).cost_analysis() or {}
    return cost.get("flops")


def gigaflops(function: Any, *arguments: Any) -> str:
    """The same in words."""
    count = flops(function, *arguments)
    return "unknown FLOP" if count is None else f"{count / 1e9:,.1f} GFLOP"
