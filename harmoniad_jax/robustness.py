"""Evaluates trained runs on corrupted test images, at five severities of each corruption.

    python -m harmoniad_jax.robustness runs/harmoniad runs/plain --output robustness

Corruptions are those of studies/corruptions.py: noise, blur, JPEG, brightness, contrast,
uneven lighting, rotation and shift. They are applied to the images as they are on disk,
before they are scaled. Masks follow where pixels move. A defect that is moved out of the
picture leaves its image defective, and then counts in the image metrics only. Nothing is
trained; the maps are standardised as for clean images.

The output folder gets the seven metrics of every run, corruption and severity, their means
and those of each category, as robustness.json, tables as robustness.md, and a plot of the
means against severity as robustness.png. After an interruption the same command continues.

With --bands every corruption that moves no pixels is also let through the low or the high
frequency band of the features alone; the other band is that of the clean image. --images,
--corruptions and --severities make it shorter.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from harmoniad_jax import cli
from harmoniad_jax.errors import UserError


def main() -> None:
    """The command's entry point."""
    output = flags.DEFINE_string("output", None, "Folder for tables and plot.")
    images = flags.DEFINE_integer(
        "images", None, "Of each category, at most (default: all).", lower_bound=1
    )
    corruptions = flags.DEFINE_list("corruptions", [], "Names with commas; all if empty.")
    severities = flags.DEFINE_list("severities", [], "1 to 5, with commas; all if empty.")
    bands = flags.DEFINE_bool("bands", False, "Each through one band of features as well.")
    flags.mark_flags_as_required(["output"])

    def run(folders: Sequence[str]) -> None:
        if not folders:
            raise UserError("name the folders of trained runs, such as runs/a runs/b.")
        if not all(level.isdecimal() for level in severities.value):
            given = ",".join(severities.value)
            raise UserError(f"--severities={given} is not a list of numbers from 1 to 5.")
        # Imported late: a mistake in the flags is reported without waiting for JAX.
        from harmoniad_jax.devices.startup import start
        from harmoniad_jax.studies.robustness import Robustness

        robustness = Robustness(
            [Path(folder) for folder in folders],
            Path(output.value).expanduser(),
            images=images.value,
            corruptions=corruptions.value,
            severities=list(map(int, severities.value)),
            bands=bands.value,
        )
        # Evaluations are many: a line for each would bury the tables.
        logging.getLogger("harmoniad_jax").setLevel(logging.WARNING)
        start(None, None, None)
        print(robustness.run())
        print(f"Everything is in {output.value}")

    cli.run(run, takes_arguments=True, continues=True)


if __name__ == "__main__":
    main()
