"""StableAdamW: AdamW whose step shrinks where the second moment lags behind the gradient.

    m = b1 m + (1 - b1) g;   v = b2 v + (1 - b2) g^2;   v_max = max(v_max, v)
    d = sqrt(v_max / (1 - b2^t)) + eps
    r = max(1, rms(g / d) / clip)                     one number for each tensor
    p = p - lr (m / (1 - b1^t) / d / r + decay p)

Update clipping is Adafactor's (Shazeer and Stern 2018), put into AdamW by Wortsman et al.
2023; the bias-corrected form with AMSGrad (Reddi et al. 2018) is the one that Dinomaly
trains with.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from harmoniad_jax.config import OptimizerConfig


class StableAdamState(NamedTuple):
    """count: int32 steps taken; mu, nu, nu_max: pytrees like the parameters."""

    count: jax.Array
    mu: Any
    nu: Any
    nu_max: Any  # None without AMSGrad


def scale_by_stable_adam(
    b1: float = 0.9,
    b2: float = 0.999,
    epsilon: float = 1e-8,
    *,
    amsgrad: bool = False,
    update_clip: float = 1.0,
    stacked: Any = False,
) -> optax.GradientTransformation:
    """Rescales gradients as StableAdamW does, before learning rate and weight decay.

    Args:
      b1, b2: decay of the first and second moment.
      epsilon: added to the root of the second moment.
      amsgrad: divide by the largest second moment so far.
      update_clip: largest root mean square of g / d that leaves the step as it is.
      stacked: whether an array is [K, ...] of K tensors, see `stacks.Stacks`; a bool for
        all of them, or a pytree of bools like the parameters.
    """

    def init(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        return StableAdamState(
            count=jnp.zeros((), jnp.int32),
            mu=zeros,
            nu=zeros,
            nu_max=zeros if amsgrad else None,
        )

    def update(gradients, state, params=None):
        del params
        count = optax.safe_increment(state.count)
        mu = optax.tree.update_moment(gradients, state.mu, b1, 1)
        nu = optax.tree.update_moment(gradients, state.nu, b2, 2)
        nu_max = jax.tree.map(jnp.maximum, state.nu_max, nu) if amsgrad else None

        first_bias, second_bias = 1 - b1**count, 1 - b2**count

        def rescale(gradient, first, second, stacked):
            scale = jnp.sqrt(second / second_bias) + epsilon
            axes = tuple(range(1, gradient.ndim)) if stacked else None
            squares = jnp.mean((gradient / scale) ** 2, axis=axes, keepdims=stacked)
            rms = jnp.sqrt(squares)
            return first / first_bias / scale / jnp.maximum(1.0, rms / update_clip)

        which = jax.tree.broadcast(stacked, gradients)
        updates = jax.tree.map(rescale, gradients, mu, nu_max if amsgrad else nu, which)
        return updates, StableAdamState(count, mu, nu, nu_max)

    return optax.GradientTransformation(init, update)


def learning_rate_schedule(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
    """Linear warm-up from zero, then cosine decay to the final rate at `num_steps`."""
    warmup_steps = min(config.warmup_steps, num_steps // 3)
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=config.learning_rate,
        warmup_steps=warmup_steps,
        decay_steps=max(num_steps, warmup_steps + 1),
        end_value=config.final_learning_rate,
    )


def make_optimizer(
    config: OptimizerConfig, num_steps: int, *, stacked: Any = False
) -> optax.GradientTransformation:
    """Gradient clipping by global norm, then StableAdamW on its schedule.

    Args:
      config: its settings.
      num_steps: of the whole schedule.
      stacked: see `scale_by_stable_adam`.
    """
    return optax.chain(
        optax.clip_by_global_norm(config.gradient_clip),
        scale_by_stable_adam(
            config.b1,
            config.b2,
            config.epsilon,
            amsgrad=config.amsgrad,
            update_clip=config.update_clip,
            stacked=stacked,
        ),
        optax.add_decayed_weights(config.weight_decay),
        optax.scale_by_learning_rate(learning_rate_schedule(config, num_steps)),
    )
