"""What a checkpoint belongs to: it is restored into nothing else."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harmoniad_jax.config import Config
from harmoniad_jax.errors import UserError
from harmoniad_jax.fields import FEATURES, LEARNING, flatten, touching
from harmoniad_jax.model.encoders.encoder import Encoder
from harmoniad_jax.run.stored import parse_stored


@dataclasses.dataclass(frozen=True)
class Identity:
    """Encoder, settings and images of a run.

    Attributes:
      config: all settings of the run.
      encoder: the encoder's name, for messages.
      weight_hash: SHA-256 of the encoder's weights.
      preprocessing: mean and standard deviation that the encoder normalises RGB with.
      train_fingerprint: SHA-256 of the training images' names.
    """

    config: Config
    encoder: str
    weight_hash: str
    preprocessing: dict[str, list[float]]
    train_fingerprint: str

    @classmethod
    def of(cls, config: Config, encoder: Encoder, train_fingerprint: str) -> "Identity":
        return cls(
            config=config,
            encoder=encoder.description.name,
            weight_hash=encoder.weight_hash,
            preprocessing={
                "image_mean": list(encoder.image_mean),
                "image_std": list(encoder.image_std),
            },
            train_fingerprint=train_fingerprint,
        )

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Identity":
        try:
            config = parse_stored(values["config"])
        except UserError as error:
            raise UserError(
                f"the checkpoint was written by another version of this program: {error} "
                "Use that version, or train anew in another --workdir."
            ) from None
        return cls(**{**values, "config": config})


def check_identity(stored: Identity, given: Identity, workdir: Path) -> None:
    """Refuses to continue a run with another encoder, other settings or other images.

    Raises:
      UserError: listing every difference.
    """
    problems = differences(stored.config, given.config)
    problems += encoder_differences(stored, given)
    if stored.train_fingerprint != given.train_fingerprint:
        problems.append("the training images are not those of the run")
    if problems:
        raise UserError(
            f"{workdir} holds the checkpoint of another run: {'; '.join(problems)}. "
            "Give a new --workdir, or the settings that the run began with."
        )


def differences(stored: Config, given: Config) -> list[str]:
    """The settings that keep `given` from continuing a run of `stored`."""
    before, after = flatten(stored.to_dict()), flatten(given.to_dict())
    return [
        f"config.{name} is {after[name]!r} but was {before[name]!r}"
        for name in touching(Config, LEARNING, FEATURES)
        if before[name] != after[name]
    ]


def encoder_differences(stored: Identity, given: Identity) -> list[str]:
    """Why an encoder is not that of a run, in words."""
    problems = []
    if stored.weight_hash != given.weight_hash:
        problems.append(
            f"the encoder {given.encoder!r} has other weights "
            f"({given.weight_hash[:12]}) than {stored.encoder!r}, which the run was "
            f"trained with ({stored.weight_hash[:12]})"
        )
    if stored.preprocessing != given.preprocessing:
        problems.append(
            f"the encoder {given.encoder!r} normalises images with {given.preprocessing}, "
            f"but the run was trained with {stored.preprocessing}"
        )
    return problems
