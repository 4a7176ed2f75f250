"""The step of a run for a mesh, compiled without weights and images."""

import argparse
import dataclasses
import functools
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from configs import common
from harmoniad_jax.config import parse_config
from harmoniad_jax.data.records import Dataset
from harmoniad_jax.model.backbone import Encoder
from harmoniad_jax.model.harmoniad import HarmoniAD
from harmoniad_jax.training.optimizer import make_optimizer
from harmoniad_jax.training.setup import Run, resolve_config
from harmoniad_jax.training.sharding import (
    abstract_on,
    batched,
    make_mesh,
    replicated,
    split_over_model,
)
from harmoniad_jax.training.step import Steps
from scaling.hlo import Collective, collectives
from scaling.prediction import Cost


class Program:
    """A CLIP encoder of random, absent weights and the default head."""

    def __init__(self, options: argparse.Namespace, data: int, model: int):
        config = common.get_config()
        config.data.sources = ("demo",)
        config.data.image_side = options.image_side
        config.encoder.name = "untrained"
        config.encoder.dtype = "bfloat16"
        config.encoder.untrained.width = options.width
        config.encoder.untrained.depth = options.depth
        config.encoder.untrained.heads = max(options.width // 64, 1)
        config.encoder.untrained.patch = options.patch
        config.model.head_width = min(options.width, 64)
        config.train.batch_size = options.images * data * model
        config.sharding.data, config.sharding.model = data, model
        config.sharding.encoder = model > 1
        self.run = self._prepare(parse_config(config))

    def _prepare(self, config) -> Run:
        config, description = resolve_config(config, with_data=False)
        module = description.family.module(description.hf_config, dtype=jnp.bfloat16)
        images = jnp.zeros((1, *2 * [config.data.image_side], 3))
        params = jax.eval_shape(module.init, jax.random.key(0), images)["params"]
        encoder = Encoder(
            description=description,
            image_side=config.data.image_side,
            groups=tuple(
                tuple(group.tolist())
                for group in np.array_split(config.encoder.taps, config.encoder.groups)
            ),
            image_mean=description.family.image_mean,
            image_std=description.family.image_std,
            module=module,
            params=jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16), params
            ),
            weight_hash="",
        )
        mesh = make_mesh(config.sharding)
        steps = Steps(
            encoder=encoder,
            model=HarmoniAD(**dataclasses.asdict(config.model), mesh=mesh),
            optimizer=make_optimizer(config.optimizer, config.train.num_steps),
            loss=config.loss,
            evaluation=config.evaluation,
        )
        return Run(config, Dataset([], []), mesh, encoder, steps)

    def _arguments(self, part: str) -> tuple:
        run, mesh, batch = self.run, self.run.mesh, self.run.config.train.batch_size
        if part == "head":
            shapes = jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float16),
                run.encoder.feature_shapes(batch),
            )
            return (abstract_on(batched(mesh), shapes),)
        side, params = run.config.data.image_side, run.encoder.params
        images = jax.ShapeDtypeStruct((batch, side, side, 3), jnp.uint8)
        shardings = split_over_model(mesh, params)
        return abstract_on(shardings, params), abstract_on(batched(mesh), images)

    def lower(self, part: str) -> jax.stages.Lowered:
        """The step from features ("head") or from images ("step")."""
        state = self.run.abstract_state()
        shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
        steps = self.run.steps
        return jax.jit(
            steps.update if part == "head" else steps.train_step,
            out_shardings=(shardings, replicated(self.run.mesh)),
            donate_argnums=0,
        ).lower(state, *self._arguments(part))

    @functools.cache  # noqa: B019 - a few programs, for as long as the script runs
    def compile(self, part: str) -> jax.stages.Compiled:
        return self.lower(part).compile()

    def collectives(self, compiled: jax.stages.Compiled) -> Iterator[Collective]:
        return collectives(compiled.as_text(), self.run.mesh.size)

    def purpose(self, one: Collective) -> str:
        """What an array is moved for, by its shape and the operation it comes from."""
        trained = _shapes(self.run.abstract_state().params)
        if "quantile" in one.source or "sort" in one.source:
            return "distances, for the quantile of the hard mining"
        if tuple(sorted(one.shape)) in trained and one.kind != "all-gather":
            return "gradients"
        if tuple(sorted(one.shape)) in trained | _shapes(self.run.encoder.params):
            return "weights"
        if math.prod(one.shape) <= 4 * self.run.encoder.width:
            return "small sums"
        return f"others, such as {list(one.shape)}"

    def describe(self) -> str:
        """Sizes of what each device holds."""
        state = self.run.abstract_state()

        def held(tree, shardings=None) -> str:
            leaves = jax.tree.leaves(tree)
            placed = (
                jax.tree.leaves(shardings) if shardings else [a.sharding for a in leaves]
            )
            whole = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
            mine = sum(
                math.prod(where.shard_shape(leaf.shape)) * leaf.dtype.itemsize
                for leaf, where in zip(leaves, placed, strict=True)
            )
            return f"{mine / 1e6:,.0f} of {whole / 1e6:,.0f} MB"

        encoder = self.run.encoder.params
        return (
            f"Each device holds {held(state.params)} of parameters, "
            f"{held(state.opt_state)} of optimizer state and "
            f"{held(encoder, split_over_model(self.run.mesh, encoder))} of the encoder."
        )

    def cost(self) -> Cost:
        """Operations for an image, and what every device has to learn in a step."""
        batch = self.run.config.train.batch_size
        head = self.lower("head").cost_analysis()["flops"] / batch
        both = self.lower("step").cost_analysis()["flops"] / batch
        params = jax.tree.leaves(self.run.abstract_state().params)
        return Cost(both - head, head, sum(leaf.size * 4 for leaf in params))


def _shapes(params) -> set[tuple[int, ...]]:
    """Of weights, parts and rows of them, sorted: a gradient may be transposed."""
    leaves = jax.tree.leaves(params)
    shapes = {leaf.shape for leaf in leaves}
    shapes |= {a.sharding.shard_shape(a.shape) for a in leaves if a.sharding}
    shapes |= {shape[1:] for shape in shapes if len(shape) > 2}
    return {tuple(sorted(shape)) for shape in shapes}
