"""What a checkpoint belongs to: it is restored into nothing else."""

import dataclasses
import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from harmoniad_jax.config import Config
from harmoniad_jax.data.preprocess import Preprocessor
from harmoniad_jax.data.shapes import COMPOSITION
from harmoniad_jax.errors import UserError
from harmoniad_jax.fields import (
    FEATURES,
    LEARNING,
    SCORES,
    flatten,
    older_values,
    replaced,
    touching,
)
from harmoniad_jax.run.run import Run
from harmoniad_jax.run.stored import parse_stored, with_last_settings

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Identity:
    """Encoder, settings and images of a run.

    Attributes:
      config: all settings of the run.
      encoder: the encoder's name, for messages.
      weight_hash: SHA-256 of the encoder's weights.
      normalisation: mean and standard deviation that the encoder normalises RGB with.
      preprocessor: what makes the encoder's input of an image.
      train_fingerprint: SHA-256 of the training images' names.
      categories: of the training images; None in runs of versions that did not keep them.
      composition: how batches of several shapes are made up, see `shapes.COMPOSITION`; None
        in runs of one shape, and of versions that did not keep it.
      older: dotted path -> value of settings that the run has as earlier versions did,
        where that is not the default now.
    """

    config: Config
    encoder: str
    weight_hash: str
    normalisation: dict[str, list[float]]
    preprocessor: Preprocessor
    train_fingerprint: str
    categories: tuple[str, ...] | None = None
    composition: int | None = None
    older: Mapping[str, Any] = dataclasses.field(default_factory=dict, compare=False)

    @classmethod
    def of(cls, run: Run, train_fingerprint: str) -> "Identity":
        """That of a run whose training images have this fingerprint."""
        encoder = run.encoder
        return cls(
            config=run.config,
            encoder=encoder.description.name,
            weight_hash=encoder.weight_hash,
            normalisation={
                "image_mean": list(encoder.image_mean),
                "image_std": list(encoder.image_std),
            },
            preprocessor=run.preprocessor,
            train_fingerprint=train_fingerprint,
            categories=run.dataset.categories,
            composition=COMPOSITION if len(run.preprocessor.all_shapes) > 1 else None,
        )

    def to_json(self) -> dict[str, Any]:
        values = dataclasses.asdict(self)
        del values["older"]  # its config has them
        if self.composition is None:
            del values["composition"]
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Identity":
        try:
            config = parse_stored(values["config"])
        except UserError as error:
            raise UserError(
                f"the checkpoint was written by another version of this program: {error} "
                "Use that version, or train anew in another --workdir."
            ) from None
        # Version 0.1.0 had another name for the one, and a side alone for the other.
        normalisation = values.get("normalisation", values.get("preprocessing"))
        preprocessor = values.get("preprocessor", {"side": config.data.image_side})
        categories = values.get("categories")
        return cls(
            config=config,
            encoder=values["encoder"],
            weight_hash=values["weight_hash"],
            normalisation=normalisation,
            preprocessor=Preprocessor.from_json(preprocessor),
            train_fingerprint=values["train_fingerprint"],
            categories=None if categories is None else tuple(categories),
            composition=values.get("composition"),
            older=older_values(Config, values["config"]),
        )


def as_begun(
    config: Config, stored: Identity, workdir: Path, given: Collection[str] = ()
) -> Config:
    """The config that continues a run with what it has as earlier versions did.

    What is given is not replaced: how a run is scored may change at any time, and what
    touches its learning is then refused (`check_identity`). For scores, what was given in
    the last call of training counts too.

    Args:
      config: what is asked for.
      stored: of the run.
      workdir: folder of the run.
      given: dotted paths of the settings that the user set, and did not leave as they are.
    """
    scores = set(touching(Config, SCORES))
    try:
        last = flatten(with_last_settings(stored.config, workdir).to_dict())
    except UserError:  # a damaged file, which is about to be written anew
        last = flatten(stored.config.to_dict())
    older = {
        path: value
        for path, value in stored.older.items()
        if path not in given and (path not in scores or last[path] == value)
    }
    begun = replaced(config, older)
    wanted, taken = flatten(config.to_dict()), flatten(begun.to_dict())
    changed = [path for path in wanted if wanted[path] != taken[path]]
    learnt = [path for path in changed if path not in scores]
    if learnt:
        logger.info(
            "trained as before: the run began with %s",
            ", ".join(f"config.{path}={taken[path]}" for path in learnt),
        )
    kept = [path for path in changed if path in scores]
    if kept:
        logger.info(
            "scored as before: the run began with %s. For the scoring of today, give %s",
            ", ".join(f"config.{path}={taken[path]}" for path in kept),
            " ".join(f"--config.{path}={wanted[path]}" for path in kept),
        )
    return begun


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


def check_encoder(stored: Identity, given: Identity, workdir: Path) -> None:
    """Refuses to use a run with another encoder.

    Raises:
      UserError: saying in what it differs.
    """
    problems = encoder_differences(stored, given)
    if problems:
        raise UserError(
            f"{'; '.join(problems)}. Name the encoder that {workdir} was trained with."
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
    if stored.normalisation != given.normalisation:
        problems.append(
            f"the encoder {given.encoder!r} normalises images with {given.normalisation}, "
            f"but the run was trained with {stored.normalisation}"
        )
    if stored.preprocessor != given.preprocessor:
        problems.append(
            f"images are prepared with {given.preprocessor}, but the run was trained with "
            f"{stored.preprocessor}"
        )
    return problems
