"""Trains one model on all categories of a data set, then evaluates it.

    python -m harmoniad_jax.train --config folder:root=photos --workdir runs/a

--config takes the path of a config file or the short name of a shipped one, such as mvtec.
Any setting can be changed: --config.train.num_steps=300. The same command continues a run
that was interrupted. SIGTERM and Ctrl-C end the step, save, and exit with status 75.

Several processes find each other on TPU VMs, GKE, Slurm and Open MPI; elsewhere each is
given [--coordinator_address HOST:PORT --num_processes N --process_id I].
"""

from pathlib import Path

from absl import flags
from ml_collections import config_flags

from harmoniad_jax import cli


def main() -> None:
    """The command's entry point."""
    config = config_flags.DEFINE_config_file("config", None, "A file or a short name.")
    workdir = flags.DEFINE_string("workdir", None, "Folder of the run, made if absent.")
    processes = cli.define_process_flags()
    flags.mark_flags_as_required(["config", "workdir"])

    def run() -> None:
        settings = cli.read_config(config)
        # Imported late: a mistake in the flags is reported without waiting for JAX.
        from harmoniad_jax.devices.startup import start
        from harmoniad_jax.training.loop import train_and_evaluate

        start(**processes())
        folder = Path(workdir.value).expanduser()
        train_and_evaluate(settings, folder, cli.overridden(config))

    cli.run(run, continues=True)


if __name__ == "__main__":
    main()
