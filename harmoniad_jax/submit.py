"""Predicts the private test images of MVTec AD 2, for the server that has their labels.

    python -m harmoniad_jax.submit --workdir runs/mvtec_ad_2 --output submission

Writes an anomaly map and a thresholded one for each image. Thresholds were set on the
validation images; [--pixel_false_positive_rate 0.001] moves them, without new training.
Its images and encoder may have moved: [--data_dir tfds] [--encoder weights]
"""

from pathlib import Path

from absl import flags

from harmoniad_jax import cli


def main() -> None:
    """The command's entry point."""
    workdir = flags.DEFINE_string("workdir", None, "Folder of the run.")
    output = flags.DEFINE_string("output", None, "Folder to write to.")
    data_dir = flags.DEFINE_string("data_dir", None, "Where prepared data sets are now.")
    rate = flags.DEFINE_float(
        "pixel_false_positive_rate",
        None,
        "Share of good pixels that may be called defective.",
    )
    encoder = flags.DEFINE_string("encoder", None, "Where the encoder is now.")
    flags.mark_flags_as_required(["workdir", "output"])

    def run() -> None:
        # Imported late: a mistake in the flags is reported without waiting for JAX.
        from harmoniad_jax.devices.compilation import enable_compilation_cache
        from harmoniad_jax.inference.submission import submit

        enable_compilation_cache()
        submit(
            Path(workdir.value).expanduser(),
            Path(output.value).expanduser(),
            data_dir=data_dir.value,
            encoder=encoder.value,
            pixel_false_positive_rate=rate.value,
        )

    cli.run(run)


if __name__ == "__main__":
    main()
