"""The frequency split: one feature map into a low and a high band that sum to it.

    X = FFT2(F);  F_low = IFFT2(M(r) X);  F_high = F - F_low

The paper fixes the transform into the frequency domain and the two paths, a survey of it
the soft gate; the shape of M and an extension of F that keeps opposite borders apart, off
by default, are this project's.
"""

import contextlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logit
from jax.sharding import Mesh, PartitionSpec

GATES = ("sigmoid", "gaussian", "butterworth", "ideal")
BUTTERWORTH_ORDER = 2
# Maps of more cells are transformed on every device: the matrix grows with their square.
MOST_MATRIX_CELLS = 1024


def radial_frequency(height: int, width: int) -> jax.Array:
    """Distance from zero frequency of every coefficient of `rfft2`.

    Returns:
      [height, width // 2 + 1] float32 in [0, sqrt(2)]; 1 is the Nyquist frequency of an
      axis, and only the corners of the spectrum lie beyond it.
    """
    vertical = jnp.fft.fftfreq(height)[:, None] / 0.5
    horizontal = jnp.fft.rfftfreq(width)[None, :] / 0.5
    return jnp.sqrt(vertical**2 + horizontal**2).astype(jnp.float32)


def low_pass_gain(
    radius: jax.Array, cutoff: jax.Array, softness: jax.Array, gate: str
) -> jax.Array:
    """The gate M(r): how much of each frequency belongs to the low band.

    Args:
      radius: float32 array of any shape, r >= 0 in units of Nyquist.
      cutoff: rho > 0, where M is about one half; broadcasts against `radius`.
      softness: tau > 0, the width of the sigmoid's edge; the other gates ignore it.
      gate: one of `GATES`.

    Returns:
      float32 in [0, 1], exactly 1 at r = 0, so that a constant belongs to the low band.
    """
    if gate == "sigmoid":
        # Divided by its value at zero, which would otherwise be just below one.
        return jax.nn.sigmoid((cutoff - radius) / softness) / jax.nn.sigmoid(
            cutoff / softness
        )
    if gate == "gaussian":
        return jnp.exp(-jnp.log(2.0) * (radius / cutoff) ** 2)
    if gate == "butterworth":
        return 1.0 / (1.0 + (radius / cutoff) ** (2 * BUTTERWORTH_ORDER))
    if gate == "ideal":
        return (radius <= cutoff).astype(jnp.float32)
    raise ValueError(f"gate is {gate!r}; allowed are {', '.join(GATES)}.")


def low_pass(
    features: jax.Array,
    cutoff: jax.Array,
    softness: jax.Array,
    *,
    gate: str = "sigmoid",
    mirror: bool = False,
    mesh: Mesh | None = None,
) -> jax.Array:
    """The low band of feature maps.

    Args:
      features: [B, G, h, w, D] float32.
      cutoff: [G] float32, rho of each group in (0, sqrt(2)].
      softness: [G] float32, tau of each group, > 0.
      gate: one of `GATES`.
      mirror: extend the map by its mirror image before the transform (which makes it a
        DCT-II). Without it the FFT joins opposite borders, and a defect at the left
        edge shows at the right one.
      mesh: of the devices that the batch is split over, on all axes; None: leave the
        distribution to the compiler.

    Returns:
      [B, G, h, w, D] float32.
    """
    height, width = features.shape[2:4]
    extended = features
    if mirror:
        for axis in (2, 3):
            flipped = jnp.flip(extended, axis)
            extended = jnp.concatenate([extended, flipped], axis)
    size = extended.shape[2:4]
    gain = low_pass_gain(
        radial_frequency(*size), cutoff[:, None, None], softness[:, None, None], gate
    )

    def filtered(maps: jax.Array, gain: jax.Array) -> jax.Array:
        spectrum = jnp.fft.rfft2(maps, axes=(2, 3)) * gain[..., None]
        return jnp.fft.irfft2(spectrum, s=size, axes=(2, 3))

    if mesh is not None and features.shape[0] % mesh.size == 0:
        # Each device its own images. The compiler does not split FFTs over a batch: left
        # to itself it gathers all images on every device first.
        batch = PartitionSpec(mesh.axis_names)
        filtered = jax.shard_map(
            filtered, mesh=mesh, in_specs=(batch, PartitionSpec()), out_specs=batch
        )
    return filtered(extended, gain)[:, :, :height, :width]


def low_pass_matrix(
    height: int, width: int, cutoff: jax.Array, softness: jax.Array, **gate
) -> jax.Array:
    """What `low_pass` does to a map of a group, as one matrix: it is linear.

    Args:
      height, width: h and w of the maps.
      cutoff, softness: [G] float32, see `low_pass`.
      **gate: `gate` and `mirror`, see `low_pass`.

    Returns:
      [G, h * w, h * w] float32, a row for each cell of the low band.
    """
    cells = height * width
    shape = (cells, len(cutoff), height, width, 1)
    units = jnp.eye(cells).reshape(cells, 1, height, width, 1)
    answers = low_pass(jnp.broadcast_to(units, shape), cutoff, softness, **gate)
    return answers.reshape(cells, -1, cells).transpose(1, 2, 0)


class FrequencySplit(nn.Module):
    """Splits feature maps into two bands with a soft gate.

    Attributes:
      gate: one of `GATES`.
      cutoff: rho, in (0, 1) of Nyquist.
      softness: tau, > 0, in units of Nyquist.
      learnable: train rho and tau of each group, from these values on.
      mirror: see `low_pass`.
      as_matrix: multiply by `low_pass_matrix` instead of transforming. The same numbers,
        up to rounding. None: on accelerators, which multiply faster than they move what a
        transform of strided axes moves, but for maps of many cells.
    """

    gate: str = "sigmoid"
    cutoff: float = 0.25
    softness: float = 0.05
    learnable: bool = False
    mirror: bool = False
    as_matrix: bool | None = None

    @nn.compact
    def __call__(
        self, features: jax.Array, mesh: Mesh | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Splits feature maps into bands.

        Args:
          features: [B, G, h, w, D] float32.
          mesh: see `low_pass`.

        Returns:
          (low, high), each of the input's shape and dtype; low + high is the input.
        """
        shape = (features.shape[1],)
        cutoff, softness = (
            np.full(shape, value, np.float32) for value in (self.cutoff, self.softness)
        )
        if self.learnable:
            # Free parameters of which every value is allowed: rho in (0, 1), tau > 0.
            constant = nn.initializers.constant
            free = self.param("cutoff_logit", constant(logit(self.cutoff)), shape)
            cutoff = jax.nn.sigmoid(free)
            free = self.param("log_softness", constant(jnp.log(self.softness)), shape)
            softness = jnp.exp(free)
        kind = {"gate": self.gate, "mirror": self.mirror}
        batch, groups, height, columns, channels = features.shape
        as_matrix = self.as_matrix
        if as_matrix is None:
            fits = height * columns <= MOST_MATRIX_CELLS
            as_matrix = fits and jax.default_backend() != "cpu"
        if as_matrix:
            # A constant of the program, if nothing of it is learnt.
            known = (
                contextlib.nullcontext if self.learnable else jax.ensure_compile_time_eval
            )
            with known():
                matrix = low_pass_matrix(height, columns, cutoff, softness, **kind)
            cells = features.reshape(batch, groups, height * columns, channels)
            low = jnp.einsum("gpq,bgqd->bgpd", matrix, cells, precision="highest")
            low = low.reshape(features.shape)
        else:
            low = low_pass(features, cutoff, softness, mesh=mesh, **kind)
        return low, features - low
