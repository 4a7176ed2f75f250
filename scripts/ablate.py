"""Trains variants of the method on the same images with several seeds, and compares them.

    python scripts/ablate.py --workdir runs/ablation --seeds 0,1,2 \
        --variants harmoniad,plain,no-mirror \
        --config configs/folder.py:root=photos,encoder=weights/dinov2-small

Without --variants all of ablation/variants.py are made, which also holds what each of them
changes; the first of them, the method as it is, is what the others are compared with. Any
setting can be changed for all of them: --config.train.num_steps=300.

Each image is encoded once for all runs (`config.cache`). After every run ablation.json and
ablation.md are written anew, with what is there. Interrupted, the same command goes on
where it was, and it takes up more variants or seeds later.
"""

import datetime
import json
import logging
import os
from pathlib import Path
from typing import Any

import jax
from ablation.tables import rotation, rotation_table, summarise, variants_table
from ablation.variants import REFERENCE, VARIANTS, choose, is_trained, tap_variants
from absl import flags
from ml_collections import config_flags

from harmoniad_jax import cli
from harmoniad_jax.config import Config, with_settings
from harmoniad_jax.data.records import Dataset
from harmoniad_jax.errors import UserError
from harmoniad_jax.report.summary import read_run
from harmoniad_jax.training.compilation import flops
from harmoniad_jax.training.evaluation import evaluate, restore_run
from harmoniad_jax.training.loop import train_and_evaluate
from harmoniad_jax.training.setup import describe, prepare_run, resolve_config
from harmoniad_jax.training.startup import start

logger = logging.getLogger("harmoniad_jax.ablate")

KEPT = "ablation.json"  # of each run and, over all of them, in the folder of the runs


class Ablation:
    """The runs of some variants and seeds in one folder."""

    def __init__(self, base: Config, workdir: Path, names: list[str], seeds: list[int]):
        """Checks all settings before the first run.

        Raises:
          UserError: an unknown variant, or settings that do not go together.
        """
        self._base, self._workdir, self._seeds = base, workdir, seeds
        self._known = VARIANTS | tap_variants(describe(base))
        self._chosen = choose(names, self._known)
        for name in self._chosen:
            resolve_config(self._config(name, seeds[0]))

    def run(self) -> str:
        """Makes the runs that are not there yet; returns the tables."""
        # Seed by seed: every variant has a first figure before any has a second.
        for seed in self._seeds:
            for name in self._chosen:
                self._make(name, seed)
                text = self._write()
        return text

    def _config(self, name: str, seed: int) -> Config:
        changes = {"evaluation.report": False, "train.seed": seed}
        return with_settings(self._base, changes | dict(self._known[name]))

    def _folder(self, name: str, seed: int) -> Path:
        return self._workdir / f"{name}-{seed}"

    def _make(self, name: str, seed: int) -> None:
        """Makes a run, unless its figures are kept already."""
        config, folder = self._config(name, seed), self._folder(name, seed)
        kept = folder / KEPT
        if kept.is_file():
            if json.loads(kept.read_text())["config_hash"] != config.hash:
                raise UserError(
                    f"{folder} was made with other settings; give another --workdir, or "
                    "delete it."
                )
            return
        logger.info("variant %s, seed %d", name, seed)
        changes = self._known[name]
        trains = is_trained(changes)
        if trains:
            results = train_and_evaluate(config, folder)
        else:
            folder.mkdir(parents=True, exist_ok=True)
            reference = self._folder(REFERENCE, seed)
            results = evaluate(*restore_run(reference, changes), folder)
        # What was compiled for one variant is of no use to the next.
        jax.clear_caches()
        result = {
            "config_hash": config.hash,
            "variant": name,
            "seed": seed,
            "settings": dict(changes),
            **_cost(config),
            "seconds": read_run(folder).seconds if trains else 0.0,
            **{key: results[key] for key in ("step", "mean", "per_category")},
        }
        _write_text(kept, json.dumps(result, indent=2) + "\n")

    def _results(self) -> dict[str, dict[int, Any]]:
        """variant -> seed -> what is kept of a run: of this call and of those before."""
        kept = [json.loads(path.read_text()) for path in self._workdir.glob(f"*/{KEPT}")]
        runs = {(run["variant"], run["seed"]): run for run in kept}
        results: dict[str, dict[int, Any]] = {}
        for name in self._known:
            for seed in sorted(seed for variant, seed in runs if variant == name):
                run = runs[name, seed]
                if run["config_hash"] == self._config(name, seed).hash:
                    results.setdefault(name, {})[seed] = run
        return results

    def _write(self) -> str:
        results = self._results()
        choices = rotation(results, REFERENCE)
        tables = {
            "title": self._title(),
            "variants": variants_table(results, REFERENCE),
            "rotation": rotation_table(choices),
        }
        text = _MARKDOWN.format(reference=REFERENCE, **tables)
        _write_text(self._workdir / "ablation.md", text)
        figures = {
            "title": self._title(),
            "config": self._base.to_dict(),
            "reference": REFERENCE,
            "variants": summarise(results, REFERENCE),
            "rotation": choices,
            "runs": results,
        }
        path = self._workdir / KEPT
        _write_text(path, json.dumps(figures, indent=2) + "\n")
        return text

    def _title(self) -> str:
        train = self._base.train
        kind = jax.devices()[0].device_kind
        return (
            f"{datetime.date.today()}, {jax.device_count()} {kind}, "
            f"encoder {Path(self._base.encoder.name).name}, {train.num_steps} steps of "
            f"{train.batch_size} images."
        )


_MARKDOWN = """\
{title}

In percent: mean over the categories and, with several seeds, over those; ± one standard
deviation over seeds; in brackets the difference from `{reference}`, seed by seed.

{variants}

Chosen on all categories but one, and looked at on that one: by how much the variant with
the best mean of these figures on the others is above `{reference}`, in percent points.

{rotation}
"""


def _cost(config: Config) -> dict[str, Any]:
    """Trainable parameters and floating-point operations of a step's trained part."""
    run = prepare_run(config, Dataset(train=[], test=[]))
    state = run.abstract_state()
    features = run.encoder.feature_shapes(config.train.batch_size)
    return {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        "flops": flops(run.steps.whole.update, state, features),
    }


def _write_text(path: Path, text: str) -> None:
    """Whole or not at all."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def main() -> None:
    """The command's entry point."""
    config = config_flags.DEFINE_config_file("config", None, "The config file to run.")
    workdir = flags.DEFINE_string("workdir", None, "Folder of the runs, made if absent.")
    names = flags.DEFINE_list("variants", [], "Names with commas; all if empty.")
    seeds = flags.DEFINE_list("seeds", ["0"], "Numbers with commas.")
    flags.mark_flags_as_required(["config", "workdir"])

    def run() -> None:
        if not seeds.value or not all(seed.isdecimal() for seed in seeds.value):
            raise UserError(
                f"--seeds={','.join(seeds.value)} are no numbers, such as 0,1,2."
            )
        base = cli.read_config(config)
        start(None, None, None)
        folder = Path(workdir.value).expanduser()
        numbers = list(dict.fromkeys(map(int, seeds.value)))
        ablation = Ablation(base, folder, names.value, numbers)
        folder.mkdir(parents=True, exist_ok=True)
        print(ablation.run())
        print(f"The figures are in {folder / KEPT}")

    cli.run(run, continues=True)


if __name__ == "__main__":
    main()
