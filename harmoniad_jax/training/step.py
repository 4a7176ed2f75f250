"""One step of training, and the only way from images to anomaly maps.

All of them are pure functions; who calls them compiles them with shardings.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from harmoniad_jax.config import EvaluationConfig, LossConfig
from harmoniad_jax.model import scoring
from harmoniad_jax.model.backbone import Encoder, Features
from harmoniad_jax.model.harmoniad import HarmoniAD
from harmoniad_jax.model.scoring import Prediction, Statistics
from harmoniad_jax.training.losses import HardMining, easy_share, total_loss
from harmoniad_jax.training.state import TrainState


@dataclasses.dataclass(frozen=True, eq=False)
class Steps:
    """The pure functions of a run, made of its parts."""

    encoder: Encoder
    model: HarmoniAD
    optimizer: optax.GradientTransformation
    loss: LossConfig
    evaluation: EvaluationConfig

    def train_step(
        self, state: TrainState, encoder_params: Any, images: jax.Array
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """One update.

        Args:
          state: before the step.
          encoder_params: the frozen encoder's weights.
          images: [B, S, S, 3] uint8.

        Returns:
          The state after it, and float32 scalars: "loss", "loss_NAME" of each
          comparison, "gradient_norm", and "cutoff_low_G" of each group's gate.
        """
        features = self.encoder.encode(encoder_params, images)
        return self.update(state, features)

    def update(
        self, state: TrainState, features: Features
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """The trained half of `train_step`, from features of any floating-point dtype."""
        features = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), features)
        key = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
        gradients, metrics = jax.grad(self._loss, has_aux=True)(
            state.params, features, key, state.step
        )
        updates, opt_state = self.optimizer.update(gradients, state.opt_state, state.params)
        metrics["gradient_norm"] = optax.global_norm(gradients)
        return (
            state.replace(
                step=state.step + 1,
                params=optax.apply_updates(state.params, updates),
                opt_state=opt_state,
            ),
            metrics,
        )

    def _loss(self, params, features, key, step):
        mining = None
        if self.loss.hard_mining:
            share = easy_share(step, self.loss.easy_share, self.loss.easy_steps)
            mining = HardMining(share, self.loss.easy_gradient)
        comparisons = self.model.apply(
            {"params": params}, features, train=True, rngs={"dropout": key}
        )
        weights = self._weights(1.0, self.loss.high_weight, self.loss.low_weight)
        loss, parts = total_loss(comparisons, weights, mining)
        return loss, {"loss": loss} | {f"loss_{k}": v for k, v in parts.items()}

    def _weights(self, fused: float, high: float, low: float) -> dict[str, float]:
        """The weight of each comparison; an ablation's only one counts whatever it is."""
        names = self.model.comparison_names
        if len(names) == 1:
            return dict.fromkeys(names, 1.0)
        return {"fused": fused, "high": high, "low": low}

    def distance_step(
        self, params: Any, encoder_params: Any, images: jax.Array
    ) -> dict[str, jax.Array]:
        """Distance maps [B, h, w] float32 of each comparison, for a batch of images."""
        features = self.encoder.encode(encoder_params, images)
        comparisons = self.model.apply({"params": params}, features, train=False)
        return {
            name: scoring.distance_map(*comparison)
            for name, comparison in comparisons.items()
        }

    def predict_step(
        self,
        params: Any,
        statistics: Statistics,
        encoder_params: Any,
        images: jax.Array,
    ) -> Prediction:
        """Anomaly maps and image scores of a batch of images.

        Args:
          params: the network's parameters.
          statistics: of the distance maps on training images.
          encoder_params: the frozen encoder's weights.
          images: [B, S, S, 3] uint8.

        Returns:
          `Prediction`, float32.
        """
        settings = self.evaluation
        weights = self._weights(
            settings.fused_weight, settings.high_weight, settings.low_weight
        )
        distances = self.distance_step(params, encoder_params, images)
        fused = scoring.standardise(distances, statistics, weights)
        maps = scoring.upsample(fused, settings.map_side, settings.smoothing_sigma)
        scores = scoring.image_scores(maps, settings.top_share)
        return Prediction(maps, scores, distances)


def measure_statistics(batches: Sequence[Mapping[str, np.ndarray]]) -> Statistics:
    """Mean and deviation of the distance maps [B, h, w] of several batches, by name."""
    joined = {
        name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]
    }
    return Statistics(
        mean={name: np.float32(maps.mean()) for name, maps in joined.items()},
        deviation={name: np.float32(maps.std()) for name, maps in joined.items()},
    )
