"""Trains variants of the method on the same images with several seeds, and compares them.

    python -m harmoniad_jax.ablate --workdir runs/ablation --seeds 0,1,2 \
        --variants harmoniad,plain,bare-modules \
        --config folder:root=photos,encoder=weights/dinov2-small

Without --variants it makes all variants of studies/variants.py that fit the encoder. The
first one, the method as it is, is the reference for the others. Any setting can be changed
for all of them, such as --config.train.num_steps=300. No reports are written.

Every image, test images too, is encoded once for all variants that read the encoder alike,
and its features are stored rounded; --config.cache.enabled=False does without. After every
run ablation.json and ablation.md are written anew. After an interruption the same command
continues. It also takes up more variants or seeds later.

Started several times at once, by srun too, the processes divide the runs among them. Each
process ends when all runs are there. They may be on machines that share the folder and its
locks (see locks.py), on the GPUs of one machine, each with its own CUDA_VISIBLE_DEVICES, or
on one GPU that a run does not fill, with XLA_PYTHON_CLIENT_PREALLOCATE=false. Start the
other processes when the first one trains: by then the images are encoded. A TPU chip serves
one process only.
"""

from pathlib import Path

from absl import flags
from ml_collections import config_flags

from harmoniad_jax import cli
from harmoniad_jax.errors import UserError


def main() -> None:
    """The command's entry point."""
    config = config_flags.DEFINE_config_file("config", None, "A file or a short name.")
    workdir = flags.DEFINE_string("workdir", None, "Folder of the runs, made if absent.")
    names = flags.DEFINE_list("variants", [], "Names with commas; all if empty.")
    seeds = flags.DEFINE_list(
        "seeds", [], "Numbers with commas (default: config.train.seed)."
    )
    flags.mark_flags_as_required(["config", "workdir"])

    def run() -> None:
        if not all(seed.isdecimal() for seed in seeds.value):
            given = ",".join(seeds.value)
            raise UserError(f"--seeds={given} is not a list of numbers, such as 0,1,2.")
        base = cli.read_config(config)
        numbers = list(map(int, seeds.value)) or [base.train.seed]
        # Imported late: a mistake in the flags is reported without waiting for JAX.
        from harmoniad_jax.devices.compilation import enable_compilation_cache
        from harmoniad_jax.devices.memory import share_heap
        from harmoniad_jax.studies.ablation import Ablation

        # Not `start`: several processes share the runs, and not a run.
        share_heap()
        enable_compilation_cache()
        ablation = Ablation(base, Path(workdir.value).expanduser(), names.value, numbers)
        print(ablation.run())
        print(f"The metrics are in {ablation.path}")

    cli.run(run, continues=True)


if __name__ == "__main__":
    main()
