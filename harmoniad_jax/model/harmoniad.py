"""The harmonised network: two bands of encoder features in, their clean versions out.

    F -> split -> low -> noisy bottleneck -> GSCM -> P_low
    F ----------------> noisy bottleneck -> FSAM -> P_high, of F - low
    F_fused = P_low + P_high

FSAM predicts the high band and reads both: which texture is normal depends on what it is
the texture of, and that is in the low band.

Trained on defect-free images alone, it cannot rebuild what it has never seen: where
F_fused differs from F, there is a defect. For that, nothing of F may pass a bottleneck
but through it: no skip connection leads around one.

A network is composed of modules, and any module that keeps these promises fits:

    split(patches, mesh)               [B, G, h, w, D] -> (low, high), which sum to it
    branch(maps, class_token, train=)  [B, h, w, D] and [B, D] -> [B, G, h, w, D]

Parameters are named after the modules: after the `name` that a module was given, else
after the attribute that holds it.
"""

import dataclasses
from typing import ClassVar, NamedTuple

import flax.linen as nn
import jax
from jax.sharding import Mesh

from harmoniad_jax.model.encoders.encoder import Features


class Comparison(NamedTuple):
    """What was to be predicted and the prediction, each [B, G, h, w, D] float32."""

    target: jax.Array
    prediction: jax.Array


class Network(nn.Module):
    """What a run trains: it predicts clean encoder features, or their bands.

    Attributes:
      mesh: the devices that the batch is split over; None: leave the distribution to the
        compiler. It changes no result.
    """

    # Lets whoever composes a network name its parts.
    preserve_adopted_names: ClassVar[bool] = True

    mesh: Mesh | None = dataclasses.field(default=None, kw_only=True)

    @property
    def comparison_names(self) -> tuple[str, ...]:
        """The keys of what a call returns."""
        raise NotImplementedError

    def __call__(self, features: Features, *, train: bool) -> dict[str, Comparison]:
        """Predicts the features, or their bands.

        Args:
          features: patches [B, G, h, w, D] and class_token [B, D], float32.
          train: switches the bottlenecks' noise on; needs the rng "dropout" then.

        Returns:
          A `Comparison` for each of `comparison_names`.
        """
        raise NotImplementedError


class HarmoniAD(Network):
    """A frequency split and a branch for each band; without one of them, the other alone.

    Attributes:
      split: of the features into a low and a high band.
      high, low: the branches; None leaves a band out. With both, the sum of their
        predictions is compared with the features too.
      high_reads_low: let the high branch read both bands; else its own alone.
    """

    split: nn.Module
    high: nn.Module | None
    low: nn.Module | None
    high_reads_low: bool = True

    @property
    def comparison_names(self) -> tuple[str, ...]:
        branches = {"high": self.high, "low": self.low}
        names = tuple(name for name, branch in branches.items() if branch is not None)
        return ("fused", *names) if len(names) == 2 else names

    @nn.compact
    def __call__(self, features: Features, *, train: bool) -> dict[str, Comparison]:
        low, high = self.split(features.patches, self.mesh)
        read_by_high = features.patches if self.high_reads_low else high
        comparisons = {}
        for name, band, read, branch in (
            ("high", high, read_by_high, self.high),
            ("low", low, low, self.low),
        ):
            if branch is None:
                continue
            prediction = branch(read.mean(axis=1), features.class_token, train=train)
            # The bands are targets here: were they to follow the gradient, a learnable
            # gate would move to where they are easiest to predict, not to where they help.
            comparisons[name] = Comparison(jax.lax.stop_gradient(band), prediction)
        if len(comparisons) == 2:
            fused = comparisons["low"].prediction + comparisons["high"].prediction
            comparisons["fused"] = Comparison(features.patches, fused)
        return comparisons


class Plain(Network):
    """One branch for whole features, without a split: the reference for the method.

    Attributes:
      branch: predicts the features from their mean over the groups.
    """

    branch: nn.Module

    @property
    def comparison_names(self) -> tuple[str, ...]:
        return ("fused",)

    @nn.compact
    def __call__(self, features: Features, *, train: bool) -> dict[str, Comparison]:
        patches = features.patches
        prediction = self.branch(patches.mean(axis=1), features.class_token, train=train)
        return {"fused": Comparison(patches, prediction)}
