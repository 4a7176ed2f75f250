"""Every orbax call of the project: how checkpoints are written, kept, checked and read.

A checkpoint is written beside its final name and renamed when it is complete, so a run
that is killed while saving leaves the previous one untouched. It holds checksums of all
that is in it: one that was damaged later is found when it is read, and passed over.
"""

import contextlib
import logging
import re
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jax
import orbax.checkpoint as ocp

from harmoniad_jax.checkpoints.folders import StepFolders
from harmoniad_jax.checkpoints.integrity import (
    SEAL,
    Damaged,
    check_items,
    layout,
    layout_difference,
    seal,
    verified,
)
from harmoniad_jax.checkpoints.orbax_quiet import end_threads, quiet_failures
from harmoniad_jax.devices.processes import all_agree
from harmoniad_jax.errors import UserError
from harmoniad_jax.run.calibration import Calibration
from harmoniad_jax.run.identity import Identity, check_identity
from harmoniad_jax.steps.state import TrainState

logger = logging.getLogger(__name__)

# What a checkpoint consists of: arrays, and JSON, of which the last item seals the rest.
STATE = "state"
ITERATOR, IDENTITY, CALIBRATION = "iterator", "identity", "calibration"
PROGRESS = "progress"  # step, and whether it is the last one of the run
JSON_ITEMS = (ITERATOR, IDENTITY, CALIBRATION, PROGRESS, SEAL)
# How long processes wait for one another to have written their shares.
SAVE_SECONDS = 300
# These say that reading failed, not that what was read is damaged.
NO_DAMAGE = (MemoryError, PermissionError, jax.errors.JaxRuntimeError)


class Checkpoint(NamedTuple):
    """A checkpoint that was read.

    Attributes:
      state: placed as it was asked for.
      iterator_state: of the training batches.
      calibration: what good images score; None before the last step, or if none were
        held out.
      finished: whether it is the last checkpoint of the run.
    """

    state: TrainState
    iterator_state: dict[str, Any]
    calibration: Calibration | None
    finished: bool


class _Found(NamedTuple):
    """A checkpoint of which all but the arrays was read and is good."""

    step: int
    folder: Path
    items: dict[str, Any]

    @property
    def calibration(self) -> Calibration | None:
        stored = self.items[CALIBRATION]
        return Calibration.from_json(stored) if stored else None


class Checkpoints:
    """The checkpoints of one run directory; a context manager.

    Leaving the context waits until the last save is on disk. In a run of several processes
    all of them have to make every call; the first one alone renames and removes.

    What is read is the newest good checkpoint: one that is damaged is named in a warning
    and passed over. `restore` finds damage that the other readers, which read no arrays,
    cannot see; after it they too speak of the checkpoint that was restored.
    """

    def __init__(
        self, workdir: Path, *, keep: int = 1, keep_every: int = 0, read_only: bool = False
    ):
        """Opens `workdir/checkpoints`.

        Args:
          workdir: folder of the run.
          keep: the newest checkpoints that are kept.
          keep_every: checkpoints of multiples of so many steps are kept as well; 0: none.
          read_only: whether nothing on disk is to be changed; otherwise the folder is made,
            locked, and cleared of what a killed process left.

        Raises:
          UserError: the folder is not there, cannot be made or is locked, or its path is
            not text.
        """
        self._workdir = workdir
        self._stack = contextlib.ExitStack()
        self._folders = StepFolders(workdir)
        self.directory = self._folders.directory
        _check_is_text(self.directory)
        self._manager: ocp.CheckpointManager | None = None
        self._saving: int | None = None
        self._found: _Found | None = None
        self._damaged: dict[int, str] = {}
        if read_only:
            if not self.directory.is_dir():
                raise UserError(
                    f"{workdir} holds no checkpoints; give the --workdir of a training run."
                )
            return
        self._folders.open()
        policies = ocp.checkpoint_managers
        kept = [policies.LatestN(keep)]
        if keep_every:
            kept.append(policies.EveryNSteps(keep_every))
        self._options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(kept),
            # Reads nothing that may be damaged.
            lightweight_initialize=True,
            async_options=ocp.AsyncOptions(timeout_secs=SAVE_SECONDS),
        )
        self._list_steps()

    def _list_steps(self) -> None:
        """Tells orbax which checkpoints there are, again after some were renamed."""
        if self._manager is not None:
            self._manager.close()
        self._manager = ocp.CheckpointManager(self.directory, options=self._options)

    def __enter__(self) -> "Checkpoints":
        self._stack.enter_context(quiet_failures())
        return self

    def __exit__(self, kind: type[BaseException] | None, *_) -> None:
        with self._stack:
            if self._manager is not None:
                self._stack.callback(self._close)
            if kind is None:
                self.wait()

    def _close(self) -> None:
        """Lets go without an exception: `wait` raised it, or another one must be seen."""
        for finish in (self._manager.wait_until_finished, self._manager.close):
            try:
                finish()
            except Exception as error:
                logger.error(
                    "the checkpoint of step %s was not saved: %s",
                    self._saving,
                    _in_few_words(error),
                )
        end_threads(SAVE_SECONDS)
        with contextlib.suppress(OSError):
            self._folders.tidy_alone()
        self._folders.close()

    @property
    def latest_step(self) -> int | None:
        """Step of the newest good checkpoint; None: there is none, good or bad.

        Raises:
          UserError: every checkpoint is damaged.
        """
        found = self._find()
        return None if found is None else found.step

    @property
    def finished(self) -> bool:
        """Whether the newest good checkpoint is the last one of the run."""
        return self._newest().items[PROGRESS]["finished"]

    def save(
        self,
        state: TrainState,
        iterator_state: Mapping[str, Any],
        identity: Identity,
        calibration: Calibration | None = None,
        *,
        finished: bool = False,
    ) -> None:
        """Saves in the background; arrays are copied before the call returns.

        Args:
          state: of the run. A checkpoint of the same step is replaced, and stays until the
            new one is complete.
          iterator_state: of the training batches.
          identity: what the checkpoint belongs to.
          calibration: what good images score.
          finished: whether this is the last checkpoint of the run.

        Raises:
          UserError: this save, or the one before it, cannot be written.
        """
        self.wait()
        self._found, self._saving = None, int(state.step)
        items = {
            ITERATOR: dict(iterator_state),
            IDENTITY: identity.to_json(),
            CALIBRATION: calibration.to_json() if calibration else {},
            PROGRESS: {"step": self._saving, "finished": finished},
        }
        items[SEAL] = seal(state, items)
        if not all_agree(self._saving not in self._folders.readable()):
            self._folders.make_way(self._saving)
            self._list_steps()
        try:
            self._manager.save(
                self._saving,
                args=ocp.args.Composite(
                    **{STATE: ocp.args.StandardSave(state)},
                    **{name: ocp.args.JsonSave(item) for name, item in items.items()},
                ),
                force=True,  # The loop decides when to save.
            )
        except (OSError, ValueError) as error:
            self._give_up(error)

    def wait(self) -> None:
        """Waits until the last save is on disk.

        Raises:
          UserError: it cannot be written.
        """
        if self._saving is None:
            return
        error = None
        try:
            self._manager.wait_until_finished()
        except Exception as caught:
            error = caught
        if not all_agree(error is None):
            self._give_up(error)
        self._found = self._saving = None
        self._folders.tidy()

    def read_identity(self) -> Identity:
        """What the newest good checkpoint belongs to.

        Raises:
          UserError: there is none.
        """
        return Identity.from_json(self._newest().items[IDENTITY])

    def read_calibration(self) -> Calibration | None:
        """What good images score; None before the last step, or if none were held out.

        Raises:
          UserError: there is no good checkpoint.
        """
        return self._newest().calibration

    def restore(self, abstract: TrainState, *, to_train: bool = True) -> Checkpoint:
        """Reads the newest good checkpoint; damaged ones that are newer are set aside.

        Args:
          abstract: `jax.ShapeDtypeStruct`s with the shapes and dtypes that the run has, and
            shardings that say where the state is to live: on any devices, split or not.
          to_train: whether to read the optimizer's state, three times the size of the
            network; else it is None, and damage to it goes unseen.

        Raises:
          UserError: there is none, or it is of another network.
        """
        identity = self.read_identity()
        state = None
        while state is None:
            found = self._newest()
            # Going back must not lead to another run.
            check_identity(self.read_identity(), identity, self._workdir)
            other = layout_difference(found.items[SEAL], abstract)
            if other:
                raise UserError(
                    f"the checkpoint of step {found.step} in {self.directory} is of "
                    f"another network: {other}."
                )
            state = self._attempt(
                *(found.step, _read_state, found.folder, abstract, to_train)
            )
            if state is not None:
                state = self._attempt(found.step, verified, found.items[SEAL], state)
        if self._manager is not None and self._damaged:
            self._folders.set_aside(self._damaged)
            self._list_steps()
            self._damaged.clear()
        finished = found.items[PROGRESS]["finished"]
        return Checkpoint(state, found.items[ITERATOR], found.calibration, finished)

    def _newest(self) -> _Found:
        found = self._find()
        if found is None:
            raise UserError(
                f"{self.directory} holds no complete checkpoint; train a while longer."
            )
        return found

    def _find(self) -> _Found | None:
        """The newest checkpoint that is not known to be damaged."""
        self.wait()
        while self._found is None:
            step = self._folders.newest(besides=self._damaged)
            if step is None and self._damaged:
                raise UserError(
                    f"every checkpoint in {self.directory} is damaged: "
                    + "; ".join(f"step {n}: {why}" for n, why in self._damaged.items())
                    + ". Bring one back from a copy, or train anew in another --workdir."
                )
            if step is None:
                return None
            folder = self._folders.readable().get(step, self._folders.path(step))
            self._found = self._attempt(step, _read_items, folder, step)
        return self._found

    def _attempt(self, step: int, read: Callable[..., Any], *arguments: Any) -> Any:
        """What `read` returns; None, and the step is passed over from now on, if it fails.

        In any process: none of them goes back to an earlier step alone.
        """
        value, reason = None, "another process cannot read it"
        try:
            value = read(*arguments)
        except NO_DAMAGE:
            raise
        except Exception as error:  # Damaged bytes make libraries raise anything.
            reason = _in_few_words(error)
        if all_agree(value is not None):
            return value
        self._found = None
        self._damaged[step] = reason
        logger.warning(
            "the checkpoint of step %d in %s is damaged (%s); going back to an earlier one",
            step,
            self.directory,
            reason,
        )
        return None

    def _give_up(self, error: Exception | None) -> NoReturn:
        """Ends a save that failed, in this process or another.

        Raises:
          UserError: saying what failed and what is left.
        """
        step, self._saving = self._saving, None
        end_threads(SAVE_SECONDS)
        self._folders.tidy()
        last = self._folders.newest()
        if isinstance(error, jax.errors.JaxRuntimeError):
            # Waiting for another process came to an end; before that something failed
            # here, or else there.
            error = error.__context__
        if error is not None and not isinstance(error, OSError | ValueError):
            raise error
        left = "no checkpoint" if last is None else f"the checkpoint of step {last}"
        reason = "another process failed" if error is None else _in_few_words(error)
        raise UserError(
            f"the checkpoint of step {step} cannot be written to {self.directory} "
            f"({reason}); {left} is there to continue from. See to it that there is room, "
            "and give the same command again."
        ) from error


def _check_is_text(folder: Path) -> None:
    """Refuses a path that tensorstore cannot be given.

    Raises:
      UserError: it holds bytes that are not UTF-8.
    """
    try:
        str(folder).encode()
    except UnicodeEncodeError:
        raise UserError(
            f"checkpoints cannot be in {folder}, whose path holds bytes that are not "
            "UTF-8. Rename it, or name another --workdir."
        ) from None


def _read_items(folder: Path, step: int) -> _Found:
    items = {}
    for name in JSON_ITEMS:
        try:
            items[name] = ocp.JsonCheckpointHandler().restore(folder / name)
        except FileNotFoundError:
            raise Damaged(f"{name} is missing") from None
        except ValueError:
            raise Damaged(f"{name} cannot be read") from None
    check_items(items)
    if items[PROGRESS]["step"] != step:
        raise Damaged(f"it is that of step {items[PROGRESS]['step']}")
    return _Found(step, folder, items)


def _read_state(folder: Path, abstract: TrainState, to_train: bool) -> TrainState:
    wanted = {field.name: getattr(abstract, field.name) for field in fields(abstract)}
    if not to_train:
        del wanted["opt_state"]
        abstract = abstract.replace(opt_state=None)
    arguments = ocp.args.PyTreeRestore(
        wanted,
        restore_args=ocp.checkpoint_utils.construct_restore_args(wanted),
        partial_restore=True,
    )
    # The handler alone waits for no other process, which may have failed.
    with contextlib.closing(ocp.PyTreeCheckpointHandler()) as handler:
        restored = handler.restore(folder / STATE, args=arguments)
    state = abstract.replace(**restored)
    # orbax hands back stored shapes without a word.
    if layout(state) != layout(abstract):
        raise Damaged("its arrays have other shapes than what was saved")
    return state


def _in_few_words(error: Exception) -> str:
    """What an error says, without the chain of paths that it came through."""
    if isinstance(error, Damaged):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    # tensorstore ends its messages with " [name=...]", and begins them at the outside.
    text = ": ".join(re.split(r" \[[\w\[\]]+=", str(error))[0].split(": ")[-2:])
    return textwrap.shorten(text, 120) or type(error).__name__
