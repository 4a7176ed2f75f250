"""What training changes, and nothing else: the encoder is no part of it."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from harmoniad_jax.model.encoders.encoder import Features
from harmoniad_jax.model.harmoniad import Network
from harmoniad_jax.model.scoring import Statistics


@flax.struct.dataclass
class TrainState:
    """The state of a run between two steps.

    Attributes:
      step: int32 scalar, steps done.
      params: the network's parameters, float32.
      opt_state: the optimizer's state.
      rng: uint32 key data; the key of step n is `fold_in(rng, n)`.
      skipped: int32 scalar, steps that changed nothing since they were not finite.
      skipped_in_a_row: int32 scalar, those of them since the last finite one.
      statistics: of the distances on good images, see `scoring.Statistics`; zero and one
        until the last step, after which they are measured.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    rng: jax.Array
    skipped: jax.Array
    skipped_in_a_row: jax.Array
    statistics: Statistics


def create_state(
    model: Network,
    optimizer: optax.GradientTransformation,
    features: Features,
    seed: int,
) -> TrainState:
    """Draws the initial parameters; traceable, so that it can run under `jit`.

    Args:
      model: the network.
      optimizer: its optimizer.
      features: shapes and dtypes of a batch of features.
      seed: of the parameters and of everything random in training.
    """
    init_key, train_key = jax.random.split(jax.random.key(seed))
    dummy = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), features)
    params = model.init({"params": init_key}, dummy, train=False)["params"]
    names, groups = model.comparison_names, features.patches.shape[1]
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        rng=jax.random.key_data(train_key),
        skipped=jnp.zeros((), jnp.int32),
        skipped_in_a_row=jnp.zeros((), jnp.int32),
        statistics=Statistics(
            mean={name: jnp.zeros(groups) for name in names},
            deviation={name: jnp.ones(groups) for name in names},
        ),
    )
