"""Evaluates the latest checkpoint of a run, with the settings that it was trained with.

python -m harmoniad_jax.evaluate --workdir runs/a [--root photos] [--encoder weights]
"""

from pathlib import Path

from absl import flags

from harmoniad_jax import cli


def main() -> None:
    """The command's entry point."""
    workdir = flags.DEFINE_string("workdir", None, "Folder of the run.")
    root = flags.DEFINE_string("root", None, "Where the images are now, if they moved.")
    encoder = flags.DEFINE_string("encoder", None, "Where the encoder is, if it moved.")
    flags.mark_flags_as_required(["workdir"])

    def run() -> None:
        # Imported late: a mistake in the flags is reported without waiting for JAX.
        from harmoniad_jax.training.evaluation import evaluate_run

        folder = Path(workdir.value).expanduser()
        evaluate_run(folder, root=root.value, encoder=encoder.value)

    cli.run(run)


if __name__ == "__main__":
    main()
