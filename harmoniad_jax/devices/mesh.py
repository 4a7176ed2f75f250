"""Where arrays live: the mesh, and which axis of which array is split over it.

The mesh has two axes. A batch is split over both of them. Parameters and optimizer state
are split over "model" and replicated over "data" (fully sharded data parallelism): a
device gathers a layer's weights when it needs them, and sums gradients over all devices.
With one device along "model", the default, they are replicated.
"""

from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from harmoniad_jax.config import ShardingConfig

DATA_AXIS, MODEL_AXIS = "data", "model"
# Elements below which an array is replicated: gathering it would cost more than it saves.
SMALLEST_SPLIT = 2**12


def mesh_shape(config: ShardingConfig, num_devices: int) -> tuple[int, int]:
    """Devices along (data, model); `data` 0 takes as many as there are."""
    return config.data or max(num_devices // config.model, 1), config.model


def make_mesh(
    config: ShardingConfig | None = None, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """The mesh of a run.

    Args:
      config: None for all devices along "data".
      devices: to take instead of those of every process; a mesh of fewer takes the first.
    """
    devices = jax.devices() if devices is None else devices
    shape = mesh_shape(config or ShardingConfig(), len(devices))
    return jax.make_mesh(
        shape,
        (DATA_AXIS, MODEL_AXIS),
        devices=devices[: shape[0] * shape[1]],
        axis_types=2 * (AxisType.Auto,),
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of an array of which every device holds a copy."""
    return NamedSharding(mesh, PartitionSpec())


def batched(mesh: Mesh) -> NamedSharding:
    """The sharding of an array whose first axis is the batch."""
    return NamedSharding(mesh, PartitionSpec((DATA_AXIS, MODEL_AXIS)))


def split_over_model(mesh: Mesh, tree: Any) -> Any:
    """Shardings of weights: each array split along its longest axis that divides.

    Args:
      mesh: its "model" axis is split over; arrays are replicated over "data".
      tree: a pytree of arrays or their shapes.

    Returns:
      The same pytree of shardings. Arrays that are small or that no axis of divides are
      replicated.
    """
    parts = mesh.shape[MODEL_AXIS]

    def sharding(leaf: Any) -> NamedSharding:
        fitting = [axis for axis, size in enumerate(leaf.shape) if size % parts == 0]
        if parts == 1 or leaf.size < SMALLEST_SPLIT or not fitting:
            return replicated(mesh)
        longest = max(fitting, key=lambda axis: leaf.shape[axis])
        return NamedSharding(mesh, PartitionSpec(*longest * [None], MODEL_AXIS))

    return jax.tree.map(sharding, tree)


def gathered(mesh: Mesh | None, weights: Any) -> Any:
    """Whole weights on every device, for a traced function that computes with them.

    Without this the compiler may leave weights where they are and move activations
    instead, which are far more.

    Args:
      mesh: that they may be split over, see `split_over_model`; None: they are not.
      weights: a pytree of traced arrays.
    """
    if mesh is None or mesh.shape[MODEL_AXIS] == 1:
        return weights
    return jax.lax.with_sharding_constraint(weights, replicated(mesh))


def abstract_on(shardings: Any, tree: Any) -> Any:
    """Shapes and dtypes of a pytree with their shardings, which may be a prefix of it."""
    shardings = jax.tree.broadcast(shardings, tree)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=sharding
        ),
        tree,
        shardings,
    )


def shardings_of(tree: Any) -> Any:
    """The sharding of every array of a pytree, or of every shape from `abstract_on`."""
    return jax.tree.map(lambda leaf: leaf.sharding, tree)


def place(shardings: Any, tree: Any) -> Any:
    """Copies host arrays, the same on every process, to where they live.

    Unlike `jax.device_put` it needs no comparison between processes: each hands over the
    parts that its own devices hold.
    """
    shardings = jax.tree.broadcast(shardings, tree)
    return jax.tree.map(
        lambda leaf, sharding: (
            jax.make_array_from_callback(
                leaf.shape, sharding, lambda index, leaf=leaf: leaf[index]
            )
            if jax.process_count() > 1
            else jax.device_put(leaf, sharding)
        ),
        tree,
        shardings,
    )


def replicate(mesh: Mesh, tree: Any) -> Any:
    """Copies host arrays to every device."""
    return place(replicated(mesh), tree)


def shard_batch(mesh: Mesh, batch: Any) -> Any:
    """This process's rows of a batch -> the global arrays, split over all devices."""
    sharding = batched(mesh)
    return jax.tree.map(
        lambda rows: jax.make_array_from_process_local_data(sharding, rows), batch
    )
