"""From a config to the parts of a run: settings checked, data listed, encoder loaded.

Everything that can be wrong is found here, cheapest first, before anything heavy starts.
"""

import dataclasses
import functools
import logging
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from harmoniad_jax.config import CalibrationConfig, Config
from harmoniad_jax.data.copies import copies, first_of
from harmoniad_jax.data.preprocess import Preprocessor, measure_preprocessor
from harmoniad_jax.data.records import Dataset, Record
from harmoniad_jax.data.shapes import Shape
from harmoniad_jax.data.variation import vary, view_of
from harmoniad_jax.devices.compilation import host_device
from harmoniad_jax.devices.mesh import (
    abstract_on,
    make_mesh,
    place,
    replicate,
    shardings_of,
    split_over_model,
)
from harmoniad_jax.devices.processes import available_cores, is_main, main_first, together
from harmoniad_jax.errors import UserError, raise_problems
from harmoniad_jax.model.encoders.encoder import (
    Encoder,
    EncoderDescription,
    Features,
    describe_encoder,
    describe_untrained_clip,
    load_encoder,
)
from harmoniad_jax.run.checks import (
    config_problems,
    data_problems,
    setting_problems,
)
from harmoniad_jax.run.datasets import open_dataset
from harmoniad_jax.steps.losses import growth_steps
from harmoniad_jax.steps.network import build_model
from harmoniad_jax.steps.optimizer import make_optimizer
from harmoniad_jax.steps.stacks import Stacks
from harmoniad_jax.steps.state import TrainState, create_state
from harmoniad_jax.steps.step import Steps
from harmoniad_jax.words import in_words

logger = logging.getLogger(__name__)

UNTRAINED = "untrained"
UNTRAINED_IMAGE_SIDE = 128


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """The parts of a run that its two entry points, training and evaluation, share."""

    config: Config  # resolved: nothing in it is automatic any more
    dataset: Dataset | None  # None: a run of shapes alone
    mesh: Mesh
    preprocessor: Preprocessor
    encoder: Encoder
    steps: Steps

    @property
    def evaluation_batch_size(self) -> int:
        """Images per step of evaluation: as configured, for every device equally many."""
        return -(-self.config.evaluation.batch_size // self.mesh.size) * self.mesh.size

    def load_image(self, record: Record) -> np.ndarray:
        """The encoder's input for a record's image or a view of it, [H, W, 3] uint8."""
        pixels = self.preprocessor.load(record.image, record.category)
        return vary(pixels, record.sha256, self.config.variation) if record.view else pixels

    def view_of(self, record: Record, view: int) -> Record:
        """A view of a hashed image, see `data/variation.py`."""
        return view_of(record, view, self.config.variation, self.config.train.seed)

    def shape_of(self, record: Record) -> Shape:
        """The shape of that input, (height, width) in pixels."""
        return self.preprocessor.shape_of(record.category)

    def stored_features(self, rows: int, shape: Shape | None = None) -> Features:
        """Shapes and dtypes of so many images' features in the cache.

        Args:
          rows: number of images.
          shape: (height, width) of their inputs in pixels; None: the square.
        """
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, self.config.cache.dtype),
            self.encoder.feature_shapes(rows, shape),
        )

    def initial_state(self) -> TrainState:
        """Draws the state before the first step; traceable."""
        return create_state(
            self.steps.model,
            self.steps.optimizer,
            self.encoder.feature_shapes(1),
            self.config.train.seed,
        )

    @functools.cached_property
    def abstract_state(self) -> TrainState:
        """Shapes, dtypes and shardings of the state."""
        shapes = jax.eval_shape(self.initial_state)
        return abstract_on(split_over_model(self.mesh, shapes), shapes)

    @functools.cached_property
    def stacked_steps(self) -> Steps:
        """The steps on states whose parameters are stacked, see `steps/stacks.py`."""
        config, stacks = self.config, Stacks(self.abstract_state.params)
        optimizer = make_optimizer(
            config.optimizer, config.train.num_steps, stacked=stacks.are_stacked
        )
        return dataclasses.replace(self.steps, optimizer=optimizer, stacks=stacks)

    def new_state(self) -> TrainState:
        """The state before the first step, on all devices of the mesh."""
        return self.state_program()()

    def state_program(self) -> Callable[[], TrainState]:
        """What draws it, compiled.

        It is drawn on the host: for a GPU the thousands of small operations take half a
        minute to compile. So all devices begin with the same numbers, too.
        """
        shardings, host = shardings_of(self.abstract_state), host_device()
        if host is None or jax.default_backend() == "cpu":
            return jax.jit(self.initial_state, out_shardings=shardings).lower().compile()
        with jax.default_device(host):
            draw = jax.jit(self.initial_state).lower().compile()
        return lambda: place(shardings, jax.device_get(draw()))

    def place_encoder(self) -> Any:
        """The encoder's weights on all devices of the mesh."""
        params = self.encoder.params
        if self.config.sharding.encoder:
            return place(split_over_model(self.mesh, params), params)
        return replicate(self.mesh, params)


def prepare_run(
    config: Config,
    dataset: Dataset | None = None,
    *,
    preprocessor: Preprocessor | None = None,
    for_training: bool = False,
) -> Run:
    """Checks the settings, lists the data and loads the encoder.

    Args:
      config: of the run.
      dataset: taken instead of the configured images, which need not be there then.
      preprocessor: that the run was trained with; None: it is measured on the training
        images.
      for_training: whether its batch and its mesh must fit these devices; else all
        devices there are do the same.

    Raises:
      UserError: bad settings (all of them at once), bad data, or a bad encoder.
    """
    config, description = together(
        lambda: resolve_config(config, with_data=dataset is None, for_training=for_training)
    )
    if dataset is None:
        dataset = main_first(lambda: open_dataset(config))
        dataset = _hold_out(dataset, config.calibration)
    encoder = load_encoder(
        description,
        image_side=config.data.image_side,
        taps=config.encoder.taps,
        groups=config.encoder.groups,
        dtype=jnp.dtype(config.encoder.dtype),
        attention=config.encoder.attention,
        recentre=config.encoder.recentre,
        chroma_sigma=config.encoder.chroma_sigma,
        seed=config.encoder.untrained.seed,
    )
    mesh = make_mesh(config.sharding if for_training else None)
    return assemble(config, dataset, encoder, mesh, preprocessor)


def _hold_out(dataset: Dataset, settings: CalibrationConfig) -> Dataset:
    """Holds good images out, copies together, and says how many copies there are."""
    at_random = settings.holdout_choice == "random"
    if not settings.copies_together:
        return dataset.hold_out(settings.holdout, at_random=at_random)
    dataset = _without_learnt(dataset)
    groups = together(lambda: copies([*dataset.train, *dataset.test]))
    train = set(dataset.train)
    tested = [[r for r in group if r not in train] for group in groups if group[0] in train]
    again = sum(len(records) for records in tested)
    extra = sum(max(sum(r in train for r in group) - 1, 0) for group in groups)
    if extra and is_main():
        logger.info(
            "%s: held out or trained on together with the original",
            in_words(extra, "training image is a copy", "training images are copies"),
        )
    if again and is_main():
        example = next(records for records in tested if records)[0]
        logger.warning(
            "%s, such as %s: metrics are too good",
            in_words(
                *(again, "test image is a copy of a training image"),
                "test images are copies of training images",
            ),
            example.key,
        )
    return dataset.hold_out(settings.holdout, first_of(groups), at_random=at_random)


def _without_learnt(dataset: Dataset) -> Dataset:
    """Without validation images that are copies of training images: they are learnt."""
    own, train = set(dataset.held_out), set(dataset.train)
    if not own:
        return dataset
    groups = together(lambda: copies([*dataset.train, *dataset.held_out]))
    mixed = [group for group in groups if any(record in train for record in group)]
    learnt = {record for group in mixed for record in group if record in own}
    if learnt and is_main():
        logger.warning(
            "%s, such as %s: no threshold is set on them",
            in_words(
                *(len(learnt), "validation image is a copy of a training image"),
                "validation images are copies of training images",
            ),
            min(record.key for record in learnt),
        )
    kept = tuple(record for record in dataset.held_out if record not in learnt)
    return dataclasses.replace(dataset, held_out=kept)


def assemble(
    config: Config,
    dataset: Dataset | None,
    encoder: Encoder,
    mesh: Mesh,
    preprocessor: Preprocessor | None = None,
) -> Run:
    """Puts a run together.

    Args:
      config: resolved.
      dataset: None for a run of which no more than shapes is asked.
      encoder: its weights may be shapes too, then. It is fitted to the shapes of the
        run's images.
      mesh: of the run.
      preprocessor: None: it is measured on the training images.
    """
    if preprocessor is None:
        preprocessor = measure_preprocessor(
            dataset.train if dataset else (),
            side=config.data.image_side,
            patch=encoder.description.patch if config.data.fit == "aspect" else None,
            white_level=config.data.white_level,
            max_megapixels=config.data.max_megapixels,
        )
    preprocessor = dataclasses.replace(
        preprocessor, max_megapixels=config.data.max_megapixels
    )
    encoder = encoder.for_shapes(preprocessor.shapes.values())
    growth = growth_steps(config.loss, config.train.num_steps)
    steps = Steps(
        encoder=encoder,
        model=build_model(
            config.model,
            groups=len(encoder.groups),
            width=encoder.width,
            remat=config.train.remat,
            dtype=config.train.dtype,
            mesh=mesh,
        ),
        optimizer=make_optimizer(config.optimizer, config.train.num_steps),
        loss=dataclasses.replace(config.loss, easy_steps=growth),
        evaluation=config.evaluation,
        micro_batches=config.train.micro_batches,
        check_numerics=config.train.check_numerics,
    )
    return Run(config, dataset, mesh, preprocessor, encoder, steps)


def resolve_config(
    config: Config, *, with_data: bool = True, for_training: bool = True
) -> tuple[Config, EncoderDescription]:
    """Fills in the automatic settings and checks all of them, and whether data are there.

    Raises:
      UserError: listing every mistake.
    """
    # Cheapest first: the encoder may have to be asked for over the network.
    num_devices = jax.device_count() if for_training else None
    missing_data = data_problems(config, for_training) if with_data else []
    problems = setting_problems(config, num_devices)
    if missing_data or any("encoder.untrained" in problem for problem in problems):
        raise_problems(missing_data + problems)
    try:
        description = describe(config)
    except UserError as error:
        raise UserError("; ".join([*problems, str(error)])) from None
    encoder = dataclasses.replace(
        config.encoder,
        taps=config.encoder.taps or description.default_taps,
        dtype="float32"
        if config.train.check_numerics
        else resolve_dtype(config.encoder.dtype),
    )
    data = dataclasses.replace(
        config.data,
        image_side=config.data.image_side or description.default_image_side,
        threads=config.data.threads or available_cores(),
    )
    config = dataclasses.replace(config, encoder=encoder, data=data)
    raise_problems(config_problems(config, description, num_devices))
    return config, description


def describe(config: Config) -> EncoderDescription:
    """The configured encoder, before its weights are read."""
    if config.encoder.name != UNTRAINED:
        return describe_encoder(config.encoder.name)
    architecture = dataclasses.asdict(config.encoder.untrained)
    del architecture["seed"]
    return describe_untrained_clip(
        **architecture,
        image_side=config.data.image_side or UNTRAINED_IMAGE_SIDE,
    )


def resolve_dtype(dtype: str) -> str:
    """bfloat16 where the hardware multiplies it fast."""
    if dtype != "auto":
        return dtype
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"
