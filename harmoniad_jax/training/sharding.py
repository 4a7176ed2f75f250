"""Where arrays live: batches split over the devices, all else on each of them."""

from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

DATA_AXIS = "data"


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """One axis over these devices, or over every device of every process."""
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh(
        (len(devices),), (DATA_AXIS,), devices=devices, axis_types=(AxisType.Auto,)
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of an array of which every device holds a copy."""
    return NamedSharding(mesh, PartitionSpec())


def batched(mesh: Mesh) -> NamedSharding:
    """The sharding of an array whose first axis is the batch."""
    return NamedSharding(mesh, PartitionSpec(DATA_AXIS))


def replicate(mesh: Mesh, tree: Any) -> Any:
    """Copies host arrays to every device."""
    return jax.device_put(tree, replicated(mesh))


def shard_batch(mesh: Mesh, batch: Any) -> Any:
    """This process's rows of a batch -> the global arrays, split over all devices."""
    sharding = batched(mesh)
    return jax.tree.map(
        lambda rows: jax.make_array_from_process_local_data(sharding, rows), batch
    )
