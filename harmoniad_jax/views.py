"""Draws views of one image of each product, to see whether a variation would be a defect.

    python -m harmoniad_jax.views --config folder:root=photos --output views.png

Each row begins with a training image as it is. Look for views that a good part would never
look like: lower config.variation.strength, or the limit that makes them, such as
--config.variation.rotation=0. Nothing is trained.
"""

from pathlib import Path

from absl import flags
from ml_collections import config_flags

from harmoniad_jax import cli


def main() -> None:
    """The command's entry point."""
    config = config_flags.DEFINE_config_file("config", None, "A file or a short name.")
    output = flags.DEFINE_string("output", None, "The PNG file to write.")
    count = flags.DEFINE_integer("count", 8, "Views of each image.", lower_bound=1)
    flags.mark_flags_as_required(["config", "output"])

    def run() -> None:
        settings = cli.read_config(config)
        # Imported late: a mistake in the flags is reported without waiting for JAX.
        from harmoniad_jax.studies.views import write_views

        path = Path(output.value).expanduser()
        rows = write_views(settings, path, count.value)
        print(f"{count.value} views of an image of each of {rows}: {path}")

    cli.run(run)


if __name__ == "__main__":
    main()
