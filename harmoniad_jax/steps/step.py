"""One step of training, and the only way from images to anomaly maps.

All of them are pure functions; who calls them compiles them with shardings.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from harmoniad_jax.config import EvaluationConfig, LossConfig
from harmoniad_jax.devices.mesh import gathered
from harmoniad_jax.model import scoring
from harmoniad_jax.model.encoders.encoder import Encoder, Features
from harmoniad_jax.model.harmoniad import Network
from harmoniad_jax.model.scoring import Prediction, Statistics
from harmoniad_jax.steps.losses import HardMining, easy_share, total_loss
from harmoniad_jax.steps.stacks import Stacks
from harmoniad_jax.steps.state import TrainState

# How the names of the flags of `Steps.check_numerics` begin among the metrics.
FINITE = "finite/"


@dataclasses.dataclass(frozen=True, eq=False)
class Steps:
    """The pure functions of a run, made of its parts.

    Attributes:
      micro_batches: parts that a training batch is worked through in.
      check_numerics: let the metrics say which arrays are finite.
      stacks: how states have their parameters in stacks; None: they have not.
    """

    encoder: Encoder
    model: Network
    optimizer: optax.GradientTransformation
    loss: LossConfig
    evaluation: EvaluationConfig
    micro_batches: int = 1
    check_numerics: bool = False
    stacks: Stacks | None = None

    @property
    def counted(self) -> "Steps":
        """The same arithmetic for `compilation.flops`: on any device, and all of it seen.

        That is the whole batch at once, and the library's attention, since XLA does not
        look into cuDNN's calls.
        """
        return dataclasses.replace(
            self,
            encoder=dataclasses.replace(self.encoder, attention="library"),
            model=self.model.clone(mesh=None),
            micro_batches=1,
        )

    def train_step(
        self,
        state: TrainState,
        encoder_params: Any,
        *images: jax.Array,
        shares: Sequence[float] = (1.0,),
        rows: Sequence[int] | None = None,
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """One update.

        Args:
          state: before the step.
          encoder_params: the frozen encoder's weights.
          *images: the batch, of each shape [B_s, H_s, W_s, 3] uint8.
          shares: of each shape in the loss; their sum is 1.
          rows: of each shape that count, its first ones; None: all. The others only make
            B_s a multiple of the devices and parts, and nothing learns from them.

        Returns:
          The state after it and the metrics, see `update`.
        """
        encode = functools.partial(self._encode, encoder_params)
        features = [in_parts(self.micro_batches, encode, one) for one in images]
        return self.update(state, *features, shares=shares, rows=rows)

    def _encode(self, encoder_params: Any, images: jax.Array) -> Features:
        return self.encoder.encode(gathered(self.model.mesh, encoder_params), images)

    def update(
        self,
        state: TrainState,
        *features: Features,
        shares: Sequence[float] = (1.0,),
        rows: Sequence[int] | None = None,
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """The trained half of `train_step`, from features of any floating-point dtype.

        Where the loss or the gradient is not finite, parameters and optimizer stay as
        they were; the step counts all the same, so that the next one takes other images.

        Args:
          state: before the step.
          *features: of the batch, for each shape of its images.
          shares, rows: see `train_step`.

        Returns:
          The state after the step, and scalars: "loss", "loss_NAME" of each comparison
          and "gradient_norm", float32; "skipped" and "skipped_in_a_row", int32 numbers
          of steps; with `check_numerics` a flag "finite/NAME" for each array.
        """
        features = _exact(features)
        key = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
        gradients, metrics = jax.grad(self._loss, has_aux=True)(
            gathered(self.model.mesh, state.params), features, key, state.step, shares, rows
        )
        metrics["gradient_norm"] = optax.global_norm(gradients)
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["gradient_norm"])
        if self.check_numerics:
            metrics |= _finite_flags(
                {
                    "features": features[0] if len(features) == 1 else features,
                    "params": self._unstacked(state.params),
                    "gradient": self._unstacked(gradients),
                }
            )
        updates, opt_state = self.optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        params, opt_state = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old),
            (params, opt_state),
            (state.params, state.opt_state),
        )
        state = state.replace(
            step=state.step + 1,
            params=params,
            opt_state=opt_state,
            skipped=state.skipped + ~finite,
            skipped_in_a_row=jnp.where(finite, 0, state.skipped_in_a_row + 1),
        )
        metrics["skipped"] = state.skipped
        metrics["skipped_in_a_row"] = state.skipped_in_a_row
        return state, metrics

    def _unstacked(self, params: Any) -> Any:
        return params if self.stacks is None else self.stacks.unstack(params)

    def _loss(self, params, features, key, step, shares, rows):
        params = self._unstacked(params)
        mining = None
        if self.loss.hard_mining:
            share = easy_share(step, self.loss.easy_share, self.loss.easy_steps)
            mining = HardMining(share, self.loss.easy_gradient)

        def predict(features, key):
            return self.model.apply(
                {"params": params}, features, train=True, rngs={"dropout": key}
            )

        parts, comparisons = self.micro_batches, []
        own_keys = [key] if len(features) == 1 else jax.random.split(key, len(features))
        for one, own in zip(features, own_keys, strict=True):
            keys = own if parts == 1 else jax.random.split(own, parts)
            comparisons.append(in_parts(parts, predict, one, each=keys))
        weights = self._weights(self.loss.high_weight, self.loss.low_weight)
        loss, losses = total_loss(comparisons, weights, mining, shares, rows)
        return loss, {"loss": loss} | {f"loss_{k}": v for k, v in losses.items()}

    def _weights(self, high: float, low: float) -> dict[str, float]:
        """The weight of each comparison; an ablation's only one counts whatever it is."""
        names = self.model.comparison_names
        if len(names) == 1:
            return dict.fromkeys(names, 1.0)
        return {"fused": 1.0, "high": high, "low": low}

    def distance_step(
        self, params: Any, encoder_params: Any, inputs: jax.Array | Features
    ) -> dict[str, jax.Array]:
        """Distances [B, G, h, w] float32 of each comparison, for a batch of images.

        Args:
          params: the network's parameters.
          encoder_params: the frozen encoder's weights.
          inputs: images [B, H, W, 3] uint8, or their features of any floating-point dtype.
        """
        if isinstance(inputs, Features):
            features = _exact(inputs)
        else:
            features = self._encode(encoder_params, inputs)
        params = gathered(self.model.mesh, params)
        comparisons = self.model.apply({"params": params}, features, train=False)
        return {
            name: scoring.cosine_distance(*comparison)
            for name, comparison in comparisons.items()
        }

    def predict_step(
        self,
        params: Any,
        statistics: Statistics,
        encoder_params: Any,
        inputs: jax.Array | Features,
    ) -> Prediction:
        """Anomaly maps and image scores of a batch of images.

        Args:
          params: the network's parameters.
          statistics: of the distances on good images, see `scoring.Statistics`.
          encoder_params: the frozen encoder's weights.
          inputs: see `distance_step`.

        Returns:
          `Prediction`, float32.
        """
        distances = self.distance_step(params, encoder_params, inputs)
        # Compiled as if they were two programs: calibration, which has distances in hand,
        # calls the second alone, and an image has to score the same there, to the bit.
        return self.score_step(statistics, jax.lax.optimization_barrier(distances))

    def score_step(
        self, statistics: Statistics, distances: Mapping[str, jax.Array]
    ) -> Prediction:
        """Anomaly maps and image scores from distances: the last part of `predict_step`.

        Args:
          statistics: of the distances on good images.
          distances: see `distance_step`.

        Returns:
          `Prediction`, float32.
        """
        settings = self.evaluation
        weights = self._weights(settings.high_weight, settings.low_weight)
        standardised = scoring.standardise(distances, statistics)

        def enlarged(maps: jax.Array) -> jax.Array:
            shape = scoring.map_shape(maps.shape[1:], settings.map_side)
            return scoring.upsample(maps, shape, settings.smoothing_sigma)

        maps = scoring.fuse(standardised, weights, settings.map_decay)
        if settings.background_share > 0:
            maps = scoring.lower_background(maps, settings.background_share)
        scored = enlarged(scoring.fuse(standardised, weights, settings.score_decay))
        scores = scoring.image_scores(scored, settings.top_share)
        shown = {k: scoring.group_mean(v, settings.map_decay) for k, v in distances.items()}
        return Prediction(enlarged(maps), scores, shown)


def in_parts(parts: int, function: Callable, batch: Any, each: Any = None) -> Any:
    """Applies a function to a batch in parts, one after the other.

    The memory of its activations is that of one part, in its gradient too, where they are
    computed again. A device's own rows are spread over all parts, so that none of them
    moves.

    Args:
      parts: how many, a divisor of B / devices; 1 calls the function plainly.
      function: of a part, and of an element of `each` if that is given.
      batch: pytree of arrays with a leading axis of B.
      each: array with a leading axis of `parts`; the element itself for one part.

    Returns:
      What `function` gives, with the leading axes joined to B again, in order.
    """
    if parts == 1:
        return function(batch) if each is None else function(batch, each)

    def split(leaf: jax.Array) -> jax.Array:
        return jnp.moveaxis(leaf.reshape(-1, parts, *leaf.shape[1:]), 1, 0)

    def join(leaf: jax.Array) -> jax.Array:
        return jnp.moveaxis(leaf, 0, 1).reshape(-1, *leaf.shape[2:])

    arguments = (jax.tree.map(split, batch),) + (() if each is None else (each,))
    function = jax.checkpoint(function)
    return jax.tree.map(join, jax.lax.map(lambda part: function(*part), arguments))


def _exact(features: Features) -> Features:
    """Features in the dtype that is computed with; they may be stored in a smaller one."""
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), features)


def _finite_flags(named: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Whether every array of some pytrees is finite, by name."""
    return {
        f"{FINITE}{name}{jax.tree_util.keystr(path)}": jnp.isfinite(leaf).all()
        for name, tree in named.items()
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def measure_statistics(distances: Sequence[Mapping[str, np.ndarray]]) -> Statistics:
    """Mean and deviation [G] of the distances of good images, over all positions.

    Args:
      distances: for each shape of images, [N, G, h, w] float32 by name; N > 0.
    """
    mean, deviation = {}, {}
    for name in distances[0]:
        parts = [maps[name] for maps in distances]
        # In double precision: there may be millions of positions.
        means, variances = (
            np.stack([measure(p, axis=(0, 2, 3), dtype=np.float64) for p in parts])
            for measure in (np.mean, np.var)
        )
        sizes = np.array([part.size for part in parts], float)[:, None]
        shares = sizes / sizes.sum()
        middle = (shares * means).sum(axis=0)
        spread = (shares * (variances + (means - middle) ** 2)).sum(axis=0)
        mean[name], deviation[name] = np.float32(middle), np.float32(np.sqrt(spread))
    return Statistics(mean=mean, deviation=deviation)
