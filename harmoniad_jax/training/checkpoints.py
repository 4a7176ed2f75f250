"""Every orbax call of the project: what a checkpoint holds and when it may be restored.

A checkpoint is written beside its final name and renamed when it is complete, so a run
that is killed while saving leaves the previous one untouched.
"""

import contextlib
import dataclasses
import fcntl
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import jax
import orbax.checkpoint as ocp
from absl import logging as absl_logging
from jax.sharding import Mesh

from harmoniad_jax.config import Config, differences, parse_config
from harmoniad_jax.errors import UserError
from harmoniad_jax.model.backbone import Encoder
from harmoniad_jax.training.calibration import Calibration
from harmoniad_jax.training.sharding import replicated
from harmoniad_jax.training.state import TrainState

FOLDER = "checkpoints"
STATE, ITERATOR, IDENTITY = "state", "iterator", "identity"
CALIBRATION = "calibration"


@dataclasses.dataclass(frozen=True)
class Identity:
    """What a checkpoint belongs to; it is restored into nothing else.

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
            config = parse_config(values["config"])
        except UserError as error:
            raise UserError(
                f"the checkpoint was written by another version of this program: {error} "
                "Use that version, or train anew in another --workdir."
            ) from None
        return cls(**{**values, "config": config})


def _lock(directory: Path, workdir: Path) -> IO:
    """Keeps a second process out of a run; the system lets go when this one ends."""
    file = (directory / ".lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise UserError(
            f"another process is training in {workdir}; wait for it, or stop it first."
        ) from None
    return file


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """orbax warns that read-only means read-only."""
    before = absl_logging.get_verbosity()
    absl_logging.set_verbosity(absl_logging.ERROR)
    try:
        yield
    finally:
        absl_logging.set_verbosity(before)


def has_checkpoints(workdir: Path) -> bool:
    """Whether `workdir` holds a complete checkpoint."""
    folder = workdir / FOLDER
    return folder.is_dir() and bool(ocp.utils.checkpoint_steps(folder))


class Checkpoints:
    """The checkpoints of one run directory; a context manager.

    Leaving the context waits until the last save is on disk.
    """

    def __init__(self, workdir: Path, *, keep: int = 1, read_only: bool = False):
        """Opens `workdir/checkpoints`, and makes it unless `read_only`."""
        self.directory = (workdir / FOLDER).absolute()
        if read_only and not self.directory.is_dir():
            raise UserError(
                f"{workdir} holds no checkpoints; give the --workdir of a training run."
            )
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--workdir={workdir} cannot be made ({error}).") from None
        policies = ocp.checkpoint_managers
        self._lock = None if read_only else _lock(self.directory, workdir)
        with _quiet() if read_only else contextlib.nullcontext():
            self._manager = ocp.CheckpointManager(
                self.directory,
                options=ocp.CheckpointManagerOptions(
                    # The loop decides when to save.
                    save_decision_policy=policies.FixedIntervalPolicy(1),
                    preservation_policy=policies.LatestN(keep),
                    read_only=read_only,
                    cleanup_tmp_directories=not read_only,
                ),
            )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        self._manager.close()
        if self._lock is not None:
            self._lock.close()

    @property
    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    def save(
        self,
        state: TrainState,
        iterator_state: Mapping[str, Any],
        identity: Identity,
        calibration: Calibration | None = None,
    ) -> None:
        """Saves in the background; arrays are copied before the call returns."""
        self._manager.save(
            int(state.step),
            args=ocp.args.Composite(
                **{
                    STATE: ocp.args.StandardSave(state),
                    ITERATOR: ocp.args.JsonSave(dict(iterator_state)),
                    IDENTITY: ocp.args.JsonSave(identity.to_json()),
                    CALIBRATION: ocp.args.JsonSave(
                        calibration.to_json() if calibration else {}
                    ),
                }
            ),
        )

    def read_identity(self) -> Identity:
        """What the latest checkpoint belongs to.

        Raises:
          UserError: there is no checkpoint.
        """
        if self.latest_step is None:
            raise UserError(
                f"{self.directory} holds no complete checkpoint; train a while longer."
            )
        restored = self._manager.restore(
            self.latest_step,
            args=ocp.args.Composite(**{IDENTITY: ocp.args.JsonRestore()}),
        )
        return Identity.from_json(restored[IDENTITY])

    def read_calibration(self) -> Calibration | None:
        """What good images score; None before the last step, or if none were held out."""
        restored = self._manager.restore(
            self.latest_step,
            args=ocp.args.Composite(**{CALIBRATION: ocp.args.JsonRestore()}),
        )
        stored = restored[CALIBRATION]
        return Calibration.from_json(stored) if stored else None

    def restore(self, like: TrainState, mesh: Mesh) -> tuple[TrainState, dict]:
        """Reads the latest checkpoint onto a mesh of any size.

        Args:
          like: a state of the shapes and dtypes that the run has.
          mesh: where the state is to live, replicated.

        Returns:
          The state, and the data iterator's state.

        Raises:
          UserError: the checkpoint has other shapes or dtypes.
        """
        sharding = replicated(mesh)
        abstract = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            like,
        )
        restored = self._manager.restore(
            self.latest_step,
            args=ocp.args.Composite(
                **{
                    STATE: ocp.args.StandardRestore(abstract),
                    ITERATOR: ocp.args.JsonRestore(),
                }
            ),
        )
        state = restored[STATE]
        # orbax hands back stored shapes and casts dtypes without a word.
        wrong = [
            f"{jax.tree_util.keystr(path)} is {found.shape} {found.dtype}"
            for (path, found), expected in zip(
                jax.tree_util.tree_leaves_with_path(state),
                jax.tree.leaves(abstract),
                strict=True,
            )
            if (found.shape, found.dtype) != (expected.shape, expected.dtype)
        ]
        if wrong:
            raise UserError(
                f"the checkpoint of step {self.latest_step} in {self.directory} is of "
                f"another network: {wrong[0]}."
            )
        return state, restored[ITERATOR]


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
