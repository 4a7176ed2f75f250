"""Every orbax call of the project: how checkpoints are written, kept, checked and read.

A checkpoint is written beside its final name and renamed when it is complete, so a run
that is killed while saving leaves the previous one untouched. It holds checksums of all
that is in it: one that was damaged later is found when it is read, and passed over.
"""

import contextlib
import fcntl
import logging
import re
import shutil
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple, NoReturn

import jax
import orbax.checkpoint as ocp
from absl import logging as absl_logging

from harmoniad_jax.errors import UserError
from harmoniad_jax.training.calibration import Calibration
from harmoniad_jax.training.identity import Identity, check_identity
from harmoniad_jax.training.integrity import (
    Damaged,
    check_arrays,
    check_items,
    layout,
    seal,
)
from harmoniad_jax.training.processes import all_agree, from_main, on_main
from harmoniad_jax.training.state import TrainState

logger = logging.getLogger(__name__)

FOLDER = "checkpoints"
# What a checkpoint consists of: arrays, and JSON of which the last item seals the rest.
STATE = "state"
ITERATOR, IDENTITY, CALIBRATION = "iterator", "identity", "calibration"
PROGRESS, INTEGRITY = "progress", "integrity"
JSON_ITEMS = (ITERATOR, IDENTITY, CALIBRATION, PROGRESS, INTEGRITY)
# Suffixes of a step's folder: found damaged, and about to be replaced by a later save.
DAMAGED, REPLACED = ".damaged", ".replaced"
STEP_FOLDER = re.compile(rf"(0|[1-9][0-9]*)({re.escape(REPLACED)})?")
# These say that reading failed, not that what was read is damaged.
NO_DAMAGE = (MemoryError, PermissionError, jax.errors.JaxRuntimeError)


class Restored(NamedTuple):
    """What was read from a checkpoint.

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


def has_checkpoints(workdir: Path) -> bool:
    """Whether `workdir` holds a checkpoint that was completed, damaged or not."""
    return bool(from_main(len(_folders(workdir / FOLDER))))


class Checkpoints:
    """The checkpoints of one run directory; a context manager.

    Leaving the context waits until the last save is on disk. In a run of several processes
    all of them have to make every call; the first one alone renames and removes.

    What is read is the newest good checkpoint: one that is damaged is named in a warning
    and passed over. `restore` finds damage that the other readers, which read no arrays,
    cannot see; after it they too speak of the checkpoint that was restored.
    """

    def __init__(
        self,
        workdir: Path,
        *,
        keep: int = 1,
        keep_every: int = 0,
        read_only: bool = False,
    ):
        """Opens `workdir/checkpoints`.

        Args:
          workdir: folder of the run.
          keep: the newest checkpoints that are kept.
          keep_every: checkpoints of multiples of so many steps are kept as well; 0: none.
          read_only: whether nothing on disk is to be changed; otherwise the folder is made,
            locked, and cleared of what a killed process left.

        Raises:
          UserError: the folder is not there, cannot be made or is locked.
        """
        self._workdir = workdir
        self.directory = (workdir / FOLDER).absolute()
        self._lock: IO | None = None
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
        on_main(self._open)
        policies = ocp.checkpoint_managers
        kept = [policies.LatestN(keep)]
        if keep_every:
            kept.append(policies.EveryNSteps(keep_every))
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy(kept)
            ),
        )

    def _open(self) -> None:
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._lock = (self.directory / ".lock").open("w")
        except OSError as error:
            raise UserError(
                f"--workdir={self._workdir} cannot be made ({error})."
            ) from None
        try:
            # Keeps a second process out; the system lets go when this one ends.
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise UserError(
                f"another process is training in {self._workdir}; wait for it, or stop it "
                "first."
            ) from None
        self._tidy()

    def __enter__(self) -> "Checkpoints":
        absl_logging.get_absl_logger().addFilter(_is_not_of_orbax)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_) -> None:
        with contextlib.ExitStack() as stack:
            stack.callback(absl_logging.get_absl_logger().removeFilter, _is_not_of_orbax)
            if self._manager is None:
                return
            if self._lock is not None:
                stack.enter_context(self._lock)
            stack.callback(self._close)
            if kind is None:
                self.wait()

    def _close(self) -> None:
        """Waits for the last save and lets go, without an exception.

        Either `wait` raised it already, or another one is on its way and must be seen.
        """
        for finish in (self._manager.wait_until_finished, self._manager.close):
            try:
                finish()
            except Exception as error:
                logger.error(
                    "the checkpoint of step %s was not saved: %s",
                    self._saving,
                    _in_few_words(error),
                )
        if self._lock is not None:
            with contextlib.suppress(OSError):
                self._tidy()

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
        items[INTEGRITY] = seal(state, items)
        on_main(self._make_way)
        self._manager.reload()
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
        on_main(self._tidy)

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

    def restore(self, abstract: TrainState) -> Restored:
        """Reads the newest good checkpoint; damaged ones that are newer are set aside.

        Args:
          abstract: `jax.ShapeDtypeStruct`s with the shapes and dtypes that the run has, and
            shardings that say where the state is to live: on any devices, split or not.

        Raises:
          UserError: there is none, or it is of another network.
        """
        identity = self.read_identity()
        state = None
        while state is None:
            found = self._newest()
            # Going back must not lead to another run.
            check_identity(self.read_identity(), identity, self._workdir)
            self._check_layout(found, abstract)
            state = self._attempt(found.step, _read_state, found.folder, abstract)
            if state is not None:
                state = self._attempt(found.step, _checked, found.items[INTEGRITY], state)
        if self._manager is not None and self._damaged:
            on_main(self._set_aside)
            self._manager.reload()
            self._damaged.clear()
        return Restored(
            state,
            found.items[ITERATOR],
            found.calibration,
            found.items[PROGRESS]["finished"],
        )

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
            folders = _folders(self.directory)
            step = from_main(max(folders.keys() - self._damaged.keys(), default=-1))
            if step < 0 and self._damaged:
                raise UserError(
                    f"every checkpoint in {self.directory} is damaged: "
                    + "; ".join(f"step {n}: {why}" for n, why in self._damaged.items())
                    + ". Bring one back from a copy, or train anew in another --workdir."
                )
            if step < 0:
                return None
            folder = folders.get(step, self.directory / str(step))
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

    def _check_layout(self, found: _Found, abstract: TrainState) -> None:
        stored, expected = found.items[INTEGRITY]["layout"], layout(abstract)
        for name in sorted(stored.keys() | expected.keys()):
            if stored.get(name) != expected.get(name):
                raise UserError(
                    f"the checkpoint of step {found.step} in {self.directory} is of another "
                    f"network: {name} is {stored.get(name, 'missing')}, expected "
                    f"{expected.get(name, 'none')}. Give the settings that the run began "
                    "with."
                )

    def _make_way(self) -> None:
        """Renames the checkpoint that is about to be replaced."""
        folder = self.directory / str(self._saving)
        if folder.exists():
            folder.rename(folder.with_suffix(REPLACED))

    def _set_aside(self) -> None:
        """Renames damaged checkpoints, so that their steps can be saved again."""
        for step in self._damaged:
            folder = self.directory / str(step)
            name, copies = folder.with_suffix(DAMAGED), 1
            while name.exists():
                copies += 1
                name = folder.with_suffix(f"{DAMAGED}-{copies}")
            folder.rename(name)

    def _tidy(self) -> None:
        """Removes what a save left unfinished, and what was replaced by a finished one."""
        for path in self.directory.iterdir():
            if ocp.utils.TMP_DIR_SUFFIX in path.name:
                shutil.rmtree(path, ignore_errors=True)
            elif path.suffix == REPLACED and path.with_suffix("").exists():
                shutil.rmtree(path, ignore_errors=True)
            elif path.suffix == REPLACED:
                path.rename(path.with_suffix(""))

    def _give_up(self, error: Exception | None) -> NoReturn:
        """Ends a save that failed, in this process or another.

        Raises:
          UserError: saying what failed and what is left.
        """
        step, self._saving = self._saving, None
        on_main(self._tidy)
        if error is not None and not isinstance(error, OSError | ValueError):
            raise error
        last = from_main(max(_folders(self.directory), default=-1))
        left = "no checkpoint" if last < 0 else f"the checkpoint of step {last}"
        reason = "another process failed" if error is None else _in_few_words(error)
        raise UserError(
            f"the checkpoint of step {step} cannot be written to {self.directory} "
            f"({reason}); {left} is there to continue from. See to it that there is room, "
            "and give the same command again."
        ) from error


def _folders(directory: Path) -> dict[int, Path]:
    """Step -> folder of every checkpoint that was completed, damaged or not."""
    found: dict[int, Path] = {}
    # In this order a checkpoint comes before one that it replaced.
    for path in sorted(directory.iterdir()) if directory.is_dir() else ():
        match = STEP_FOLDER.fullmatch(path.name)
        if match and path.is_dir():
            found.setdefault(int(match[1]), path)
    return found


def _read_items(folder: Path, step: int) -> _Found:
    items = {}
    for name in JSON_ITEMS:
        try:
            items[name] = ocp.JsonCheckpointHandler().restore(folder / name)
        except FileNotFoundError:
            raise Damaged(f"{name} is missing") from None
        except ValueError:
            raise Damaged(f"{name} cannot be read") from None
    check_items(
        items[INTEGRITY], {name: items[name] for name in items if name != INTEGRITY}
    )
    if items[PROGRESS]["step"] != step:
        raise Damaged(f"it is that of step {items[PROGRESS]['step']}")
    return _Found(step, folder, items)


def _read_state(folder: Path, abstract: TrainState) -> TrainState:
    # The handler alone waits for no other process, which may have failed.
    with contextlib.closing(ocp.StandardCheckpointHandler()) as handler:
        state = handler.restore(folder / STATE, args=ocp.args.StandardRestore(abstract))
    # orbax hands back stored shapes without a word.
    if layout(state) != layout(abstract):
        raise Damaged("its arrays have other shapes than what was saved")
    return state


def _checked(sealed: Mapping[str, Any], state: TrainState) -> TrainState:
    check_arrays(sealed, state)
    return state


def _in_few_words(error: Exception) -> str:
    """What an error says, without the chain of paths that it came through."""
    if isinstance(error, Damaged):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = str(error).partition(" [")[0].rpartition(": ")[2]
    return textwrap.shorten(text, 120) or type(error).__name__


def _is_not_of_orbax(record: logging.LogRecord) -> bool:
    """A filter: what orbax logs is raised as well, and reported by the caller."""
    return "orbax" not in Path(record.pathname).parts
