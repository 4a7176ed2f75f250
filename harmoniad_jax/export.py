"""Writes a finished run as one file that runs without JAX.

    python -m harmoniad_jax.export --workdir runs/a --output model.onnx

The file is compared with the run before it gets its name; `python -m harmoniad_runtime`
judges images with it. See docs/guide-deploy.md.
"""

import importlib.util
from pathlib import Path

from absl import flags

from harmoniad_jax import cli
from harmoniad_jax.errors import UserError


def main() -> None:
    """The command's entry point."""
    workdir = flags.DEFINE_string("workdir", None, "Folder of a finished run.")
    output = flags.DEFINE_string("output", None, "File to write, such as model.onnx.")
    kind = flags.DEFINE_enum("format", "onnx", ["onnx", "stablehlo"], "Of the file.")
    precision = flags.DEFINE_enum(
        "precision", "float32", ["float32", "float16", "int8"], "Of the weights."
    )
    encoder = flags.DEFINE_string("encoder", None, "Where the encoder is now.")
    root = flags.DEFINE_string("root", None, "Where the folder of images is now.")
    data_dir = flags.DEFINE_string("data_dir", None, "Where prepared data sets are now.")
    images = flags.DEFINE_integer("images", 24, "To compare on.", lower_bound=3)
    overwrite = flags.DEFINE_bool("overwrite", False, "Replace an existing file.")
    flags.mark_flags_as_required(["workdir", "output"])

    def run() -> None:
        places = {"data.root": root.value, "data.data_dir": data_dir.value}
        options = {
            "encoder": encoder.value,
            "places": {name: place for name, place in places.items() if place},
            "images": images.value,
            "overwrite": overwrite.value,
        }
        where = [Path(flag.value).expanduser() for flag in (workdir, output)]
        if kind.value == "stablehlo" and precision.value != "float32":
            raise UserError(
                f"--precision={precision.value} is for --format=onnx; StableHLO is written "
                "in float32."
            )
        if kind.value == "onnx":
            _check_installed("onnx", "onnxruntime")
        # Imported late: a mistake in the flags is reported without waiting for JAX.
        from harmoniad_jax.devices.compilation import enable_compilation_cache

        enable_compilation_cache()
        if kind.value == "onnx":
            from harmoniad_jax.exporting.onnx_file import export_onnx

            export_onnx(*where, precision=precision.value, **options)
        else:
            from harmoniad_jax.exporting.stablehlo_file import export_stablehlo

            export_stablehlo(*where, **options)

    cli.run(run)


def _check_installed(*modules: str) -> None:
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"{' and '.join(missing)} must be installed to export: pip install "
            "'harmoniad-jax[export]'."
        )


if __name__ == "__main__":
    main()
