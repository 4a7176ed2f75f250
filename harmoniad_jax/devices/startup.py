"""What a command does to JAX before anything is computed."""

from harmoniad_jax.devices.compilation import enable_compilation_cache
from harmoniad_jax.devices.memory import share_heap
from harmoniad_jax.devices.processes import join_processes


def start(
    coordinator_address: str | None, num_processes: int | None, process_id: int | None
) -> None:
    """Joins the other processes, and keeps what is compiled.

    Args and Raises: see `join_processes`.
    """
    share_heap()
    enable_compilation_cache()
    join_processes(coordinator_address, num_processes, process_id)
