"""Judges new images with a trained model.

    python -m harmoniad_jax.predict --workdir runs/a --input photos/today --output out

Leaves `predictions.csv`, anomaly maps and overlays in the output folder. A file that cannot
be read is a row with its error, and makes the exit status 1.
"""

import sys
from pathlib import Path

from absl import flags

from harmoniad_jax import cli


def main() -> None:
    """The command's entry point."""
    workdir = flags.DEFINE_string("workdir", None, "Folder of a finished run.")
    source = flags.DEFINE_string("input", None, "An image, a folder of images, or a glob.")
    output = flags.DEFINE_string("output", None, "Folder to write to.")
    category = flags.DEFINE_string("category", None, "Product class, if all are of one.")
    rate = flags.DEFINE_float(
        "false_positive_rate", None, "Share of good images that may be called defective."
    )
    threshold = flags.DEFINE_float("threshold", None, "Score above which is defective.")
    maps = flags.DEFINE_enum("maps", "png", ["png", "npy", "none"], "Anomaly maps.")
    map_size = flags.DEFINE_enum("map_size", "image", ["image", "model"], "Their size.")
    overlays = flags.DEFINE_bool("overlays", True, "Draw the maps over the images.")
    overwrite = flags.DEFINE_bool("overwrite", False, "Write into a folder with files.")
    encoder = flags.DEFINE_string("encoder", None, "Where the encoder is now.")
    white_level = flags.DEFINE_float(
        "white_level", None, "What is white in images deeper than 8 bits.", lower_bound=0
    )
    profile = flags.DEFINE_bool(
        "profile_startup", False, "Print where the time to the first result went."
    )
    flags.mark_flags_as_required(["workdir", "input", "output"])

    def run() -> None:
        # Imported late: a mistake in the flags is reported without waiting for JAX.
        from harmoniad_jax import phases
        from harmoniad_jax.devices.compilation import enable_compilation_cache
        from harmoniad_jax.inference.files import UNREADABLE_STATUS
        from harmoniad_jax.inference.predict import predict_files

        phases.note("importing", phases.since_start())
        enable_compilation_cache()
        unreadable = predict_files(
            Path(workdir.value).expanduser(),
            source.value,
            Path(output.value).expanduser(),
            category=category.value,
            false_positive_rate=rate.value,
            threshold=threshold.value,
            maps=maps.value,
            map_size=map_size.value,
            overlays=overlays.value,
            overwrite=overwrite.value,
            encoder=encoder.value,
            white_level=white_level.value,
            profile_startup=profile.value,
        )
        if unreadable:
            sys.exit(UNREADABLE_STATUS)

    cli.run(run)


if __name__ == "__main__":
    main()
