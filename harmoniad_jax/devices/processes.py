"""Several processes that run one command together, on one machine or on many.

All of them compute; process 0 alone speaks and writes what all share. Functions here are
collective: every process calls them, in the same order. With one process they cost
nothing.
"""

import importlib.util
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from harmoniad_jax.devices.mesh import replicated, shard_batch
from harmoniad_jax.errors import UserError

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
# Bytes of an error message that other processes get to see.
MESSAGE_BYTES = 1024


def join_processes(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> None:
    """Connects this process with the others; must be called before JAX is used.

    Without arguments the others are found on TPU VMs, GKE, Slurm (`srun`) and Open MPI,
    and elsewhere this process stays alone.

    Args:
      coordinator_address: HOST:PORT of process 0, a port that is free there.
      num_processes: how many there are.
      process_id: which of them this is, from 0.

    Raises:
      UserError: only some of the arguments, or the others were not found in time.
    """
    given = (coordinator_address, num_processes, process_id)
    if any(value is not None for value in given):
        if None in given:
            raise UserError(
                "several processes need all of --coordinator_address=HOST:PORT, "
                "--num_processes=N and --process_id=I."
            )
        if not 0 <= process_id < num_processes:
            raise UserError(
                f"--process_id={process_id} is not one of --num_processes={num_processes}; "
                f"expected 0 to {num_processes - 1}."
            )
    elif not in_cluster():
        return
    try:
        jax.distributed.initialize(*given)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"the processes did not find each other ({error}). Start all of them, with "
            "the same --coordinator_address, an address of process 0 that all can reach."
        ) from None
    if not is_main():
        # Errors of any process are shown, and what they all do is told once.
        logging.getLogger("harmoniad_jax").setLevel(logging.WARNING)
        logging.getLogger("harmoniad_jax.data").setLevel(logging.ERROR)
        logging.getLogger("tfds_builders").setLevel(logging.ERROR)


def in_cluster() -> bool:
    """Whether this process was started as one of several, or on a TPU VM."""
    tasks = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
    if any(int(os.environ.get(name) or 1) > 1 for name in tasks):
        return True
    if os.environ.get("JAX_PLATFORMS", "tpu").split(",")[0] != "tpu":
        return False
    chips = (*Path("/dev").glob("accel*"), *Path("/dev").glob("vfio/[0-9]*"))
    return bool(chips) and importlib.util.find_spec("libtpu") is not None


def is_main() -> bool:
    """Whether this process speaks and writes for all."""
    return jax.process_index() == 0


def available_cores() -> int:
    """Cores that this process may use, which may be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Agreement:
    """Whether any process asks for something, which all come to know at the same call.

    With several processes the answer is that to the call before, so that no host waits
    for its devices.
    """

    def __init__(self, mesh: Mesh):
        self._mesh = mesh
        self._any = jax.jit(jnp.any, out_shardings=replicated(mesh))
        self._pending: jax.Array | None = None

    def __call__(self, asked: bool) -> bool:
        if jax.process_count() == 1:
            return asked
        before = self._pending
        mine = np.full(jax.local_device_count(), asked)
        self._pending = self._any(shard_batch(self._mesh, mine))
        return before is not None and bool(before)


def all_agree(fine: bool) -> bool:
    """Whether all processes are fine."""
    if jax.process_count() == 1:
        return fine
    return bool(multihost_utils.process_allgather(np.array(fine)).all())


def together(function: Callable[[], Result]) -> Result:
    """Calls a function on every process; a `UserError` of one is raised by all.

    Otherwise the others would wait for it in vain.
    """
    if jax.process_count() == 1:
        return function()
    result, text = None, ""
    try:
        result = function()
    except UserError as error:
        text = str(error)
    message = np.zeros(MESSAGE_BYTES, np.uint8)
    # A file name in it may hold bytes that are not text.
    encoded = text.encode(errors="backslashreplace")[:MESSAGE_BYTES]
    message[: len(encoded)] = np.frombuffer(encoded, np.uint8)
    for index, row in enumerate(multihost_utils.process_allgather(message)):
        found = row.tobytes().rstrip(b"\0").decode(errors="replace")
        if found:
            # Once is enough: the main process says it for all.
            raise UserError(found if index == 0 else f"process {index}: {found}")
    return result


def main_first(function: Callable[[], Result]) -> Result:
    """Calls a function that writes what all share: on the main process, then on the rest.

    The rest find it done if they see the same disk, and do it on their own one otherwise.
    """
    if jax.process_count() == 1:
        return function()
    first = together(lambda: function() if is_main() else None)
    rest = together(lambda: None if is_main() else function())
    return first if is_main() else rest


def my_share(items: Sequence) -> Sequence:
    """The items that this process is to work on: the same number in each, but for one."""
    return items[jax.process_index() :: jax.process_count()]


def map_shared(
    function: Callable[[Sequence], list[bytes]], items: Sequence, width: int
) -> list[bytes]:
    """Maps items to bytes, each process a share of them, and gives all to all.

    Args:
      function: maps some of the items to as many byte strings.
      items: the same on every process.
      width: length of every byte string.
    """
    count = jax.process_count()
    share = together(lambda: function(my_share(items)))
    if count == 1:
        return share
    rows = np.zeros((-(-len(items) // count), width), np.uint8)
    rows[: len(share)] = np.frombuffer(b"".join(share), np.uint8).reshape(-1, width)
    gathered = multihost_utils.process_allgather(rows)
    return [gathered[i % count, i // count].tobytes() for i in range(len(items))]


def wait_for_all(title: str) -> None:
    """Returns when every process has come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(title)
