"""The harmonised network: two bands of encoder features in, their clean versions out.

    F -> split -> low  -> noisy bottleneck -> GSCM -> P_low
              \\-> high -> noisy bottleneck -> FSAM -> P_high
    F_fused = P_low + P_high

Trained on defect-free images alone, it cannot rebuild what it has never seen: where
F_fused differs from F, there is a defect. For that, nothing of F may pass a bottleneck
but through it: no skip connection leads around one.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
from jax.sharding import Mesh

from harmoniad_jax.model.encoders.encoder import Features
from harmoniad_jax.model.fsam import Fsam
from harmoniad_jax.model.gscm import Gscm
from harmoniad_jax.model.split import FrequencySplit

# Each variant and what it compares: the fused reconstruction, the high band, the low one.
VARIANTS = {
    "harmoniad": ("fused", "high", "low"),
    "high": ("high",),
    "low": ("low",),
    "plain": ("fused",),
}


class Comparison(NamedTuple):
    """What was to be predicted and the prediction, each [B, G, h, w, D] float32."""

    target: jax.Array
    prediction: jax.Array


class HarmoniAD(nn.Module):
    """Predicts clean encoder features.

    The attributes are those of `ModelConfig`, and two that change no result:

      remat: compute the activations of every block again for its gradient.
      mesh: of the devices that the batch is split over, see `frequency.low_pass`.
    """

    variant: str = "harmoniad"
    gate: str = "sigmoid"
    cutoff: float = 0.25
    softness: float = 0.05
    learnable_gate: bool = False
    mirror: bool = False
    high_depth: int = 4
    low_depth: int = 4
    plain_depth: int = 8
    head_width: int = 64
    dropout: float = 0.2
    dropout_place: str = "layers"
    edge_kernels: bool = True
    channel_gate: bool = True
    spatial_gate: bool = True
    shrinkage: bool = True
    global_context: bool = True
    class_token: bool = True
    decimate: bool = True
    remat: bool = False
    mesh: Mesh | None = None

    @property
    def comparison_names(self) -> tuple[str, ...]:
        """The keys of what a call returns."""
        return VARIANTS[self.variant]

    @nn.compact
    def __call__(self, features: Features, *, train: bool) -> dict[str, Comparison]:
        """Predicts the features, or their bands.

        Args:
          features: patches [B, G, h, w, D] and class_token [B, D], float32.
          train: switches the bottlenecks' noise on; needs the rng "dropout" then.

        Returns:
          A `Comparison` for each of `comparison_names`.
        """
        patches = features.patches
        groups, width = patches.shape[1], patches.shape[-1]
        heads = width // self.head_width
        if self.variant == "plain":
            prediction = Gscm(
                depth=self.plain_depth,
                groups=groups,
                heads=heads,
                dropout=self.dropout,
                dropout_place=self.dropout_place,
                global_context=False,
                decimate=False,
                remat=self.remat,
                name="plain",
            )(patches.mean(axis=1), train=train)
            return {"fused": Comparison(patches, prediction)}

        low, high = FrequencySplit(
            gate=self.gate,
            cutoff=self.cutoff,
            softness=self.softness,
            learnable=self.learnable_gate,
            mirror=self.mirror,
            mesh=self.mesh,
            name="split",
        )(patches)
        comparisons = {}
        # The bands are targets here: were they to follow the gradient, a learnable gate
        # would move to where they are easiest to predict, not to where they help.
        if self.variant in ("harmoniad", "high"):
            prediction = Fsam(
                depth=self.high_depth,
                groups=groups,
                dropout=self.dropout,
                dropout_place=self.dropout_place,
                edge_kernels=self.edge_kernels,
                channel_gate=self.channel_gate,
                spatial_gate=self.spatial_gate,
                shrinkage=self.shrinkage,
                remat=self.remat,
                name="fsam",
            )(high.mean(axis=1), train=train)
            comparisons["high"] = Comparison(jax.lax.stop_gradient(high), prediction)
        if self.variant in ("harmoniad", "low"):
            prediction = Gscm(
                depth=self.low_depth,
                groups=groups,
                heads=heads,
                dropout=self.dropout,
                dropout_place=self.dropout_place,
                global_context=self.global_context,
                decimate=self.decimate,
                remat=self.remat,
                name="gscm",
            )(
                low.mean(axis=1),
                features.class_token if self.class_token else None,
                train=train,
            )
            comparisons["low"] = Comparison(jax.lax.stop_gradient(low), prediction)
        if self.variant == "harmoniad":
            fused = comparisons["low"].prediction + comparisons["high"].prediction
            comparisons["fused"] = Comparison(patches, fused)
        return comparisons
