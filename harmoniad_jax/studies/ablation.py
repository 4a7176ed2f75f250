"""An ablation: variants and seeds trained one after the other, kept, and compared."""

import datetime
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from harmoniad_jax.checkpoints.folders import has_checkpoints
from harmoniad_jax.checkpoints.store import Checkpoints
from harmoniad_jax.config import Config, with_settings
from harmoniad_jax.data.records import Dataset
from harmoniad_jax.devices.compilation import flops
from harmoniad_jax.errors import UserError
from harmoniad_jax.evaluation.evaluate import evaluate
from harmoniad_jax.fields import SCORES, flatten, touching
from harmoniad_jax.folders import write_whole
from harmoniad_jax.inference.restore import open_trained
from harmoniad_jax.locks import lock
from harmoniad_jax.report.summary import read_run
from harmoniad_jax.run.datasets import open_dataset
from harmoniad_jax.run.identity import differences
from harmoniad_jax.run.run import describe, prepare_run, resolve_config
from harmoniad_jax.run.stored import parse_stored
from harmoniad_jax.studies.ablation_tables import (
    choices_table,
    leave_one_out,
    summarise,
    variants_table,
)
from harmoniad_jax.studies.travelling import CONFIDENCE, travels, travels_table
from harmoniad_jax.studies.variants import (
    EVALUATION,
    REFERENCE,
    VARIANTS,
    choose,
    tap_variants,
    trained_as,
)
from harmoniad_jax.training.loop import train_and_evaluate

logger = logging.getLogger(__name__)

KEPT = "kept.json"  # of a run, in its folder
LOCK = ".lock"  # of who makes the run; in the folder of the runs, of who writes the tables
FIGURES = "ablation.json"  # of all, in the folder of the runs


class Ablation:
    """The runs of some variants and seeds in one folder."""

    def __init__(self, base: Config, workdir: Path, names: list[str], seeds: list[int]):
        """Checks everything before the first run.

        Args:
          base: settings of all variants.
          workdir: folder of the runs.
          names: of the variants; empty for all that fit the encoder.
          seeds: of each variant.

        Raises:
          UserError: an unknown variant, settings that do not go together, no test images,
            or several hosts.
        """
        if jax.process_count() > 1:
            raise UserError(
                f"an ablation does not train on {jax.process_count()} hosts together; start"
                " it on the devices of one host."
            )
        self._base, self._workdir = base, workdir
        self._seeds = list(dict.fromkeys(seeds))
        self._known = VARIANTS | tap_variants(describe(base))
        self._chosen = choose(names, self._known)
        for name in list(self._chosen):
            try:
                config, _ = resolve_config(self._config(name, seeds[0]))
            except UserError as error:
                if names or name == REFERENCE:
                    raise UserError(f"variant {name!r}: {error}") from None
                logger.info("variant %s does not fit and is left out: %s", name, error)
                del self._chosen[name]
        if not open_dataset(config).test:
            raise UserError("the data set has no test images: there is nothing to compare.")

    @property
    def path(self) -> Path:
        """The file of all metrics."""
        return self._workdir / FIGURES

    def run(self) -> str:
        """Makes the runs that are not there yet; returns the tables.

        Raises:
          UserError: the folder cannot be used; runs that are there have other settings; or
            some could not be made, after all others were.
        """
        self._check_folder()
        runs = [(name, seed) for seed in self._seeds for name in self._chosen]
        for run in runs:
            if not self._is_made(*run):
                self._check_begun(*run)
        failed: dict[tuple[str, int], UserError] = {}
        # First what nobody is at; then what other processes are making, so that what one
        # of them leaves behind, killed perhaps, is made here.
        for wait in (False, True):
            for run in runs:
                try:
                    if run not in failed:
                        self._make(*run, wait=wait)
                except UserError as error:
                    failed[run] = error
                    logger.warning("%s-%d could not be made: %s", *run, error)
        text = self._write()
        if failed:
            names = ", ".join(f"{name}-{seed}" for name, seed in failed)
            raise UserError(f"these runs could not be made: {names}. Reasons are above.")
        return text

    def _check_folder(self) -> None:
        """Makes the folder of the runs, and locks it once.

        Raises:
          UserError: it cannot be made, written or locked.
        """
        try:
            self._workdir.mkdir(parents=True, exist_ok=True)
            lock(self._workdir / LOCK, wait=True).close()
        except OSError as error:
            raise UserError(
                f"--workdir={self._workdir} cannot be made, written or locked ({error})."
            ) from None

    def _config(self, name: str, seed: int) -> Config:
        changes = {
            "evaluation.report": False,
            "cache.evaluation": self._base.cache.enabled,
            "train.seed": seed,
        }
        return with_settings(self._base, changes | dict(self._known[name]))

    def _folder(self, name: str, seed: int) -> Path:
        return self._workdir / f"{name}-{seed}"

    def _make(self, name: str, seed: int, *, wait: bool) -> None:
        """Makes a run, unless it is there or another process is at it.

        Args:
          name: of the variant.
          seed: of the run.
          wait: for another process, and for the run that this one evaluates.

        Raises:
          UserError: it cannot be made.
        """
        folder, source = self._folder(name, seed), trained_as(name, self._known)
        if self._is_made(name, seed):
            return
        if source and not self._is_made(source, seed):
            if wait:  # it comes before this one
                raise UserError(f"there is no {source}-{seed}, which it evaluates.")
            return
        folder.mkdir(parents=True, exist_ok=True)
        claim = lock(folder / LOCK)
        if claim is None and wait:
            logger.info("waiting for another process, which makes %s-%d", name, seed)
            claim = lock(folder / LOCK, wait=True)
        if claim is None:
            return
        with claim:
            # Another process may have made it since.
            if not self._is_made(name, seed):
                self._train_and_keep(name, seed, source)
        self._write()

    def _is_made(self, name: str, seed: int) -> bool:
        """Whether the metrics of a run are kept.

        Raises:
          UserError: those of other settings are.
        """
        folder = self._folder(name, seed)
        kept = folder / KEPT
        if not kept.is_file():
            return False
        if problems := _differences(_read_kept(kept), self._config(name, seed)):
            raise UserError(
                f"{folder} was made with other settings: {'; '.join(problems)}. Give "
                "another --workdir, or delete it."
            )
        return True

    def _check_begun(self, name: str, seed: int) -> None:
        """Looks at what a run that is not finished would go on with.

        Scoring of earlier versions stays with a run. It would be kept as what is asked for.

        Raises:
          UserError: it began with another scoring, or with other settings of earlier
            versions.
        """
        folder = self._folder(name, seed)
        if not has_checkpoints(folder):
            return
        with Checkpoints(folder, read_only=True) as checkpoints:
            stored = checkpoints.read_identity()
        begun = flatten(stored.config.to_dict())
        wanted = flatten(self._config(name, seed).to_dict())
        problems = [
            f"config.{path} is {begun[path]!r}, wanted {wanted[path]!r}"
            for path in wanted
            if path in {*touching(Config, SCORES), *stored.older}
            and begun[path] != wanted[path]
        ]
        if problems:
            raise UserError(
                f"{folder} was begun with other settings: {'; '.join(problems)}. Give "
                "another --workdir, or delete it."
            )

    def _train_and_keep(self, name: str, seed: int, source: str | None) -> None:
        """Trains a variant, or evaluates the run of the one that is trained alike.

        Raises:
          UserError: it cannot be trained or evaluated.
        """
        config, folder = self._config(name, seed), self._folder(name, seed)
        logger.info("variant %s, seed %d", name, seed)
        changes = self._known[name]
        if source is None:
            self._check_begun(name, seed)
            results = train_and_evaluate(config, folder)
        else:
            # All of it, so that nothing depends on how that run was evaluated last.
            evaluation = {
                f"{EVALUATION}{field}": value
                for field, value in config.to_dict()["evaluation"].items()
            }
            results = evaluate(open_trained(self._folder(source, seed), evaluation), folder)
        # What was compiled for one variant is of no use to the next.
        jax.clear_caches()
        run = {
            "variant": name,
            "seed": seed,
            "changes": dict(changes),
            "config": config.to_dict(),
            "date": str(datetime.date.today()),
            "device": f"{jax.device_count()} {jax.devices()[0].device_kind}",
            **_cost(config),
            "seconds": 0.0 if source else read_run(folder).seconds,
            **{key: results[key] for key in ("step", "mean", "per_category")},
        }
        write_whole(folder / KEPT, json.dumps(run, indent=2) + "\n")

    def _results(self) -> dict[str, dict[int, Any]]:
        """variant -> seed -> what is kept of a run: of this call and of those before."""
        found: dict[str, dict[int, Any]] = {}
        for path in sorted(self._workdir.glob(f"*/{KEPT}")):
            run = _read_kept(path)
            name, seed = run["variant"], run["seed"]
            if name not in self._known:
                problems = [f"there is no variant {name} any more"]
            else:
                problems = _differences(run, self._config(name, seed))
            if problems:
                logger.warning("%s is left out: %s", path.parent, "; ".join(problems))
            else:
                found.setdefault(name, {})[seed] = run
        return {
            name: dict(sorted(found[name].items())) for name in self._known if name in found
        }

    def _write(self) -> str:
        """Writes tables and metrics of what is there; returns the tables."""
        with lock(self._workdir / LOCK, wait=True):
            return self._write_alone()

    def _write_alone(self) -> str:
        results = self._results()
        if REFERENCE not in results:  # another process is at it, or it failed
            return ""
        choices, rows = leave_one_out(results, REFERENCE), travels(results, REFERENCE)
        parts = [self._title(results)]
        if rows:
            parts += [_TRAVELS, travels_table(rows)]
        parts += [_EXPLANATION, variants_table(results, REFERENCE)]
        if choices:
            parts += [_CHOICES, choices_table(choices)]
        text = "\n\n".join(parts) + "\n"
        write_whole(self._workdir / "ablation.md", text)
        metrics = {
            "config": self._base.to_dict(),
            "reference": REFERENCE,
            "travels": rows,
            "variants": summarise(results, REFERENCE),
            "leave_one_out": choices,
            "runs": results,
        }
        write_whole(self.path, json.dumps(metrics, indent=2) + "\n")
        return text

    def _title(self, results: dict[str, dict[int, Any]]) -> str:
        runs = [run for seeds in results.values() for run in seeds.values()]
        dates, devices = (
            ", ".join(sorted({run[key] for run in runs})) for key in ("date", "device")
        )
        train = self._base.train
        return (
            f"{dates}, {devices}, encoder {Path(self._base.encoder.name).name}, "
            f"{train.num_steps} steps of {train.batch_size} images."
        )


_TRAVELS = f"""\
What travels, in percent points above `{REFERENCE}`. A product gains where the mean of these
four metrics is higher. "Chosen without" counts the products without which the others would
choose the variant; "gain there" is its mean gain on the product left out, nothing where it
is not chosen. In brackets the {CONFIDENCE:.0%} interval for products and seeds like these;
with one seed, for products alone. Change a default only if most products gain."""

_EXPLANATION = f"""\
In percent: mean over the categories and, with several seeds, over those; ± one standard
deviation over seeds; in brackets the difference from `{REFERENCE}`, seed by seed."""

_CHOICES = f"""\
Chosen on all categories but one, and looked at on that one: by how much the variant that
gains most on the others is above `{REFERENCE}` there, in percent points."""


def _read_kept(path: Path) -> dict[str, Any]:
    """What is kept of a run.

    Raises:
      UserError: it is damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(
            f"{path} is damaged ({error}). Bring it back from a copy, or delete it to make "
            "the run anew."
        ) from None


def _differences(run: Mapping[str, Any], config: Config) -> list[str]:
    """In what a kept run differs from what is asked for; paths may."""
    try:
        stored = parse_stored(run["config"])
    except UserError as error:  # of a version that had other settings
        return [str(error)]
    given = flatten(run["config"])
    problems = differences(stored, config) + [
        # How that version evaluated is not what the default says now.
        f"config.{name} did not exist yet"
        for name in flatten(config.to_dict())
        if name.startswith(EVALUATION) and name not in given
    ]
    if not problems and stored.evaluation != config.evaluation:
        problems = ["config.evaluation is another"]
    return problems


def _cost(config: Config) -> dict[str, Any]:
    """Trainable parameters and floating-point operations of a step's trained part."""
    run = prepare_run(config, Dataset(train=[], test=[]))
    state = run.abstract_state
    features = run.encoder.feature_shapes(config.train.batch_size)
    return {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        "flops": flops(run.steps.counted.update, state, features),
    }
