"""Trains variants of the method on the same images with several seeds, and compares them.

    python scripts/ablate.py --workdir runs/ablation --seeds 0,1,2 \
        --variants harmoniad,plain,bare-modules \
        --config configs/folder.py:root=photos,encoder=weights/dinov2-small

Without --variants all of ablation/variants.py are made that fit the encoder; that file also
holds what each of them changes. The first of them, the method as it is, is what the others
are compared with. Any setting can be changed for all of them, such as
--config.train.num_steps=300; reports are not written.

An image, test images too, is encoded once for all variants that read the encoder alike, and
its features are stored rounded; --config.cache.enabled=False does without. After every run
ablation.json and ablation.md are written anew, with what is there. Interrupted, the same
command goes on where it was, and it takes up more variants or seeds later. Started several
times at once, on machines that share the folder or on one accelerator that a run does not
fill (then with XLA_PYTHON_CLIENT_MEM_FRACTION=0.1, say), they divide the runs among them.
"""

import datetime
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from ablation.tables import choices_table, leave_one_out, summarise, variants_table
from ablation.variants import (
    EVALUATION,
    REFERENCE,
    VARIANTS,
    choose,
    tap_variants,
    trained_as,
)
from absl import flags
from ml_collections import config_flags

from harmoniad_jax import cli
from harmoniad_jax.config import Config, with_settings
from harmoniad_jax.data.records import Dataset
from harmoniad_jax.errors import UserError
from harmoniad_jax.fields import flatten
from harmoniad_jax.report.summary import read_run
from harmoniad_jax.training.checkpoint_folders import LOCK, lock
from harmoniad_jax.training.compilation import flops
from harmoniad_jax.training.datasets import open_dataset
from harmoniad_jax.training.evaluation import evaluate, restore_run, write_whole
from harmoniad_jax.training.identity import differences, parse_stored
from harmoniad_jax.training.loop import train_and_evaluate
from harmoniad_jax.training.setup import describe, prepare_run, resolve_config
from harmoniad_jax.training.startup import start

logger = logging.getLogger("harmoniad_jax.ablate")

KEPT = "kept.json"  # of a run, in its folder
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
          UserError: an unknown variant, settings that do not go together, no test images.
        """
        self._base, self._workdir, self._seeds = base, workdir, seeds
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

    def run(self) -> str:
        """Makes the runs that no process made or is making; returns the tables."""
        # Seed by seed: every variant has a first figure before any has a second.
        missing = [(name, seed) for seed in self._seeds for name in self._chosen]
        while True:
            left = [run for run in missing if not self._make(*run)]
            if left in ([], missing):
                break
            missing = left  # others may have ended meanwhile
        if left:
            runs = ", ".join(f"{name}-{seed}" for name, seed in left)
            logger.warning("left to other processes, which are at work: %s", runs)
        return self._write()

    def _config(self, name: str, seed: int) -> Config:
        changes = {
            "evaluation.report": False,
            "cache.evaluation": self._base.cache.enabled,
            "train.seed": seed,
        }
        return with_settings(self._base, changes | dict(self._known[name]))

    def _folder(self, name: str, seed: int) -> Path:
        return self._workdir / f"{name}-{seed}"

    def _make(self, name: str, seed: int) -> bool:
        """Makes a run, unless its figures are kept already.

        Returns:
          Whether they are kept now; if not, another process is at work on this run, or on
          the one that it evaluates.
        """
        folder = self._folder(name, seed)
        if self._is_kept(name, seed):
            return True
        source = trained_as(name, self._known)
        if source and not self._is_kept(source, seed):
            return False
        folder.mkdir(parents=True, exist_ok=True)
        claim = lock(folder / LOCK)
        if claim is None:
            return False
        with claim:
            # Another may have made it since.
            if not self._is_kept(name, seed):
                self._train_and_keep(name, seed, source)
        self._write()
        return True

    def _is_kept(self, name: str, seed: int) -> bool:
        """Whether the figures of a run are there.

        Raises:
          UserError: those of other settings are.
        """
        config, folder = self._config(name, seed), self._folder(name, seed)
        kept = folder / KEPT
        if kept.is_file():
            if problems := _differences(json.loads(kept.read_text()), config):
                raise UserError(
                    f"{folder} was made with other settings: {'; '.join(problems)}. Give "
                    "another --workdir, or delete it."
                )
        return kept.is_file()

    def _train_and_keep(self, name: str, seed: int, source: str | None) -> None:
        """Trains a variant, or evaluates the run of the one that is trained alike."""
        config, folder = self._config(name, seed), self._folder(name, seed)
        logger.info("variant %s, seed %d", name, seed)
        changes = self._known[name]
        if source is None:
            results = train_and_evaluate(config, folder)
        else:
            results = evaluate(*restore_run(self._folder(source, seed), changes), folder)
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
        results: dict[str, dict[int, Any]] = {}
        for name in self._known:
            for path in sorted(self._workdir.glob(f"{name}-*/{KEPT}")):
                run = json.loads(path.read_text())
                if run["variant"] != name:
                    continue  # the name of another begins with this one's
                if problems := _differences(run, self._config(name, run["seed"])):
                    logger.warning("%s is left out: %s", path.parent, "; ".join(problems))
                    continue
                results.setdefault(name, {})[run["seed"]] = run
        return results

    def _write(self) -> str:
        """Writes tables and figures of what is there; returns the tables."""
        with lock(self._workdir / LOCK, wait=True):
            return self._write_alone()

    def _write_alone(self) -> str:
        results = self._results()
        if REFERENCE not in results:
            return f"There is no run of {REFERENCE} yet, to compare the others with.\n"
        choices = leave_one_out(results, REFERENCE)
        parts = [self._title(results), _EXPLANATION, variants_table(results, REFERENCE)]
        if choices:
            parts += [_CHOICES, choices_table(choices)]
        text = "\n\n".join(parts) + "\n"
        write_whole(self._workdir / "ablation.md", text)
        figures = {
            "config": self._base.to_dict(),
            "reference": REFERENCE,
            "variants": summarise(results, REFERENCE),
            "leave_one_out": choices,
            "runs": results,
        }
        write_whole(self._workdir / FIGURES, json.dumps(figures, indent=2) + "\n")
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


_EXPLANATION = f"""\
In percent: mean over the categories and, with several seeds, over those; ± one standard
deviation over seeds; in brackets the difference from `{REFERENCE}`, seed by seed."""

_CHOICES = f"""\
Chosen on all categories but one, and looked at on that one: by how much the variant that
gains most on the others is above `{REFERENCE}` there, in percent points."""


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
    state = run.abstract_state()
    features = run.encoder.feature_shapes(config.train.batch_size)
    return {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        "flops": flops(run.steps.whole.update, state, features),
    }


def main() -> None:
    """The command's entry point."""
    config = config_flags.DEFINE_config_file("config", None, "The config file to run.")
    workdir = flags.DEFINE_string("workdir", None, "Folder of the runs, made if absent.")
    names = flags.DEFINE_list("variants", [], "Names with commas; all if empty.")
    seeds = flags.DEFINE_list(
        "seeds", None, "Numbers with commas (default: config.train.seed)."
    )
    flags.mark_flags_as_required(["config", "workdir"])

    def run() -> None:
        given = ",".join(seeds.value or ["0"])
        if not all(seed.isdecimal() for seed in given.split(",")):
            raise UserError(f"--seeds={given} are no numbers, such as 0,1,2.")
        base = cli.read_config(config)
        start(None, None, None)
        if jax.process_count() > 1:
            raise UserError("an ablation is made by a single process, and there are more.")
        folder = Path(workdir.value).expanduser()
        numbers = [base.train.seed]
        if seeds.value:
            numbers = list(dict.fromkeys(map(int, seeds.value)))
        ablation = Ablation(base, folder, names.value, numbers)
        folder.mkdir(parents=True, exist_ok=True)
        print(ablation.run())
        print(f"The figures are in {folder / FIGURES}")

    cli.run(run, continues=True)


if __name__ == "__main__":
    main()
