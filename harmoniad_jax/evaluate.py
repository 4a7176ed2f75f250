"""Evaluates the latest checkpoint of a run, with the settings that it was trained with.

    python -m harmoniad_jax.evaluate --workdir runs/a

Its images and encoder may have moved: [--root photos] [--data_dir tfds] [--encoder weights]
Another split of a prepared data set: [--test_split test1]
Thresholds follow from [--false_positive_rate 0.01], without new training.

For another scoring, call `train` again with --config.evaluation.NAME=VALUE. It evaluates a
finished run, and does not train it again. `predict` keeps the scores that the thresholds of
training were measured with.
"""

from pathlib import Path

from absl import flags

from harmoniad_jax import cli


def main() -> None:
    """The command's entry point."""
    workdir = flags.DEFINE_string("workdir", None, "Folder of the run.")
    root = flags.DEFINE_string("root", None, "Where the folder of images is now.")
    csv = flags.DEFINE_string("csv", None, "Where the table of images is now.")
    data_dir = flags.DEFINE_string("data_dir", None, "Where prepared data sets are now.")
    split = flags.DEFINE_string(
        "test_split", None, "Split of a prepared data set to evaluate on."
    )
    rate = flags.DEFINE_float(
        "false_positive_rate", None, "Share of good images that may be called defective."
    )
    encoder = flags.DEFINE_string("encoder", None, "Where the encoder is now.")
    processes = cli.define_process_flags()
    flags.mark_flags_as_required(["workdir"])

    def run() -> None:
        # Imported late: a mistake in the flags is reported without waiting for JAX.
        from harmoniad_jax.devices.startup import start
        from harmoniad_jax.evaluation.evaluate import evaluate_run

        start(**processes())
        folder = Path(workdir.value).expanduser()
        evaluate_run(
            folder,
            root=root.value,
            csv=csv.value,
            data_dir=data_dir.value,
            test_split=split.value,
            encoder=encoder.value,
            false_positive_rate=rate.value,
        )

    cli.run(run)


if __name__ == "__main__":
    main()
