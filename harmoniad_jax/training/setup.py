"""From a config to the parts of a run: settings checked, data listed, encoder loaded.

Everything that can be wrong is found here, cheapest first, before anything heavy starts.
"""

import dataclasses
import hashlib
import logging
import os
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from harmoniad_jax.config import Config, raise_problems
from harmoniad_jax.data import synthetic
from harmoniad_jax.data.records import Dataset
from harmoniad_jax.data.sources import folder_dataset
from harmoniad_jax.errors import UserError
from harmoniad_jax.model.backbone import (
    Encoder,
    EncoderDescription,
    describe_encoder,
    describe_untrained_clip,
    load_encoder,
)
from harmoniad_jax.model.harmoniad import HarmoniAD
from harmoniad_jax.training.checks import (
    config_problems,
    data_problems,
    setting_problems,
)
from harmoniad_jax.training.optimizer import make_optimizer
from harmoniad_jax.training.sharding import make_mesh
from harmoniad_jax.training.state import TrainState, create_state
from harmoniad_jax.training.step import Steps

logger = logging.getLogger(__name__)

UNTRAINED = "untrained"
UNTRAINED_IMAGE_SIDE = 128


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """The parts of a run that its two entry points, training and evaluation, share."""

    config: Config  # resolved: nothing in it is automatic any more
    dataset: Dataset
    mesh: Mesh
    encoder: Encoder
    steps: Steps

    def initial_state(self) -> TrainState:
        """Draws the state before the first step; traceable."""
        return create_state(
            self.steps.model,
            self.steps.optimizer,
            self.encoder.feature_shapes(1),
            self.config.train.seed,
        )


def prepare_run(config: Config) -> Run:
    """Checks the settings, lists the data and loads the encoder.

    Raises:
      UserError: bad settings (all of them at once), bad data, or a bad encoder.
    """
    config, description = resolve_config(config)
    dataset = open_dataset(config)
    encoder = load_encoder(
        description,
        image_side=config.data.image_side,
        taps=config.encoder.taps,
        groups=config.encoder.groups,
        dtype=jnp.dtype(config.encoder.dtype),
        seed=config.encoder.untrained.seed,
    )
    steps = Steps(
        encoder=encoder,
        model=HarmoniAD(**dataclasses.asdict(config.model)),
        optimizer=make_optimizer(config.optimizer, config.train.num_steps),
        loss=config.loss,
        evaluation=config.evaluation,
    )
    return Run(config, dataset, make_mesh(), encoder, steps)


def resolve_config(config: Config) -> tuple[Config, EncoderDescription]:
    """Fills in the automatic settings and checks all of them.

    Raises:
      UserError: listing every mistake.
    """
    # Cheapest first: the encoder may have to be asked for over the network.
    num_devices = jax.device_count()
    missing_data = data_problems(config)
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
        dtype=resolve_dtype(config.encoder.dtype),
    )
    data = dataclasses.replace(
        config.data,
        image_side=config.data.image_side or description.default_image_side,
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


def open_dataset(config: Config) -> Dataset:
    """Lists the configured images, drawing the demo's first if they are not there yet.

    Raises:
      UserError: nothing there, or something wrong with it.
    """
    data = config.data
    root = Path(data.root).expanduser()
    if data.source == "demo":
        root = root if data.root else cache_folder() / f"demo-{drawing_version()}"
        logger.info("demo images are in %s", root)
        try:
            synthetic.write_demo_dataset(root)
        except OSError as error:
            raise UserError(
                f"the demo images cannot be written ({error}); give another folder with "
                "--config.data.root=FOLDER."
            ) from None
    return folder_dataset(root, data.categories)


def drawing_version() -> str:
    """Eight digits that change with the program that draws the demo."""
    return hashlib.sha256(Path(synthetic.__file__).read_bytes()).hexdigest()[:8]


def cache_folder() -> Path:
    """The user's own cache folder for this program."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "harmoniad_jax"
