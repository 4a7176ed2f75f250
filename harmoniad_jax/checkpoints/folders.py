"""The folders that checkpoints lie in: their names, what is removed and what is renamed.

    checkpoints/
      1200/                              of step 1200, complete
      1400.damaged/                      set aside, so that the step can be saved again
      1600.replaced/                     complete, until another of its step is
      1600.orbax-checkpoint-tmp/         not complete, and of no use if the writer is gone

Every function that changes something is called by all processes of a run, and does its work
in the main one while the others wait.
"""

import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from harmoniad_jax.devices.processes import is_main, together
from harmoniad_jax.errors import UserError, system_problem
from harmoniad_jax.locks import Lock, lock

FOLDER = "checkpoints"
DAMAGED, REPLACED = ".damaged", ".replaced"
UNFINISHED = ".orbax-checkpoint-tmp"
STEP = re.compile(rf"(0|[1-9][0-9]*)({re.escape(REPLACED)})?")


def has_checkpoints(workdir: Path) -> bool:
    """Whether `workdir` holds a checkpoint that was completed, damaged or not."""
    return StepFolders(workdir).newest() is not None


class StepFolders:
    """The checkpoint folders of one run directory."""

    def __init__(self, workdir: Path):
        self.directory = (workdir / FOLDER).absolute()
        self._workdir = workdir
        self._lock: Lock | None = None

    def path(self, step: int) -> Path:
        """Where the checkpoint of a step is or will be."""
        return self.directory / str(step)

    def readable(self) -> dict[int, Path]:
        """Step -> folder of every checkpoint that was completed, damaged or not."""
        found: dict[int, Path] = {}
        # In this order a checkpoint comes before one that it replaced.
        for path in sorted(self.directory.iterdir()) if self.directory.is_dir() else ():
            match = STEP.fullmatch(path.name)
            if match and path.is_dir():
                found.setdefault(int(match[1]), path)
        return found

    def newest(self, besides: Iterable[int] = ()) -> int | None:
        """The last step with a completed checkpoint, as the main process sees it.

        Args:
          besides: steps that do not count.
        """
        step = max(self.readable().keys() - set(besides), default=-1)
        if jax.process_count() > 1:
            step = int(multihost_utils.broadcast_one_to_all(np.int32(step)))
        return None if step < 0 else step

    def open(self) -> None:
        """Makes the folder, keeps other commands out, and removes what is of no use.

        Raises:
          UserError: the folder cannot be made, or another command writes to it.
        """
        _on_main(self._open)

    def make_way(self, step: int) -> None:
        """Renames a checkpoint that is to be replaced."""

        def rename() -> None:
            if self.path(step).exists():
                self.path(step).rename(self.path(step).with_suffix(REPLACED))

        _on_main(rename)

    def set_aside(self, steps: Iterable[int]) -> None:
        """Renames damaged checkpoints, so that their steps can be saved again."""

        def rename() -> None:
            for path in map(self.path, steps):
                name, copies = path.with_suffix(DAMAGED), 1
                while name.exists():
                    copies += 1
                    name = path.with_suffix(f"{DAMAGED}-{copies}")
                path.rename(name)

        _on_main(rename)

    def tidy(self) -> None:
        """Removes what a save left unfinished, and what was replaced by a finished one."""
        _on_main(self.tidy_alone)

    def tidy_alone(self) -> None:
        """The same where the other processes do not call it."""
        for path in self.directory.iterdir() if is_main() else ():
            if UNFINISHED in path.name:
                shutil.rmtree(path, ignore_errors=True)
            elif path.suffix == REPLACED and path.with_suffix("").exists():
                shutil.rmtree(path, ignore_errors=True)
            elif path.suffix == REPLACED:
                path.rename(path.with_suffix(""))

    def close(self) -> None:
        """Lets other commands in."""
        if self._lock is not None:
            self._lock.close()

    def _open(self) -> None:
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._lock = lock(self.directory / ".lock")
        except OSError as error:
            raise UserError(
                f"--workdir={self._workdir} cannot be used. {system_problem(error)}"
            ) from None
        if self._lock is None:
            raise UserError(
                f"another process is training in {self._workdir}; wait for it, or stop it "
                "first."
            )
        self.tidy_alone()


def _on_main(action: Callable[[], None]) -> None:
    """Lets the main process change the folders while the others wait.

    Raises:
      UserError: on all of them, if it cannot.
    """

    def act() -> None:
        try:
            if is_main():
                action()
        except OSError as error:
            raise UserError(system_problem(error, "the folder of the run")) from None

    together(act)
