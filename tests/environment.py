"""Eight simulated devices and caches of their own: what conftest.py imports first."""

import atexit
import importlib.metadata
import os
import shutil
import tempfile

# Before JAX is imported by anything: the number of devices is fixed at its start.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8"
    # Tests compile more than they compute: the optimiser's time is not worth it.
    " --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)
if importlib.metadata.version("jaxlib").startswith("0.10."):
    # These halve the time again. A version that does not know a flag would not start.
    os.environ["XLA_FLAGS"] += (
        " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    )
# Many tests compile the same tiny run: once is enough, in this process or another.
if "PYTEST_XDIST_WORKER" not in os.environ:  # workers share their parent's folder
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="harmoniad-tests-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], True)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
# Nothing of the user's own caches is read or written.
os.environ["XDG_CACHE_HOME"] = os.environ["JAX_COMPILATION_CACHE_DIR"]
# A test that needs the model hub is a mistake; it shall fail at once.
os.environ["HF_HUB_OFFLINE"] = "1"
