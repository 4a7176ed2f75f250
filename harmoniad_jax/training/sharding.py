"""Where arrays live: batches split over the devices, all else on each of them."""

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

DATA_AXIS = "data"


def make_mesh() -> Mesh:
    """One axis over every device of every process."""
    return jax.make_mesh((jax.device_count(),), (DATA_AXIS,), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of an array of which every device holds a copy."""
    return NamedSharding(mesh, PartitionSpec())


def batched(mesh: Mesh) -> NamedSharding:
    """The sharding of an array whose first axis is the batch."""
    return NamedSharding(mesh, PartitionSpec(DATA_AXIS))


def replicate(mesh: Mesh, tree: Any) -> Any:
    """Copies host arrays to every device."""
    return jax.device_put(tree, replicated(mesh))


def shard_batch(mesh: Mesh, batch: np.ndarray) -> jax.Array:
    """This process's rows of a batch -> the global array, split over all devices."""
    return jax.make_array_from_process_local_data(batched(mesh), batch)
