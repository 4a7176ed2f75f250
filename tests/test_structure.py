"""Imports point one way: from the commands down to the floors of `ROOMS`."""

import ast
import itertools
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "harmoniad_jax"
RUNTIME = "harmoniad_runtime"


def sources(*folders):
    found = [sorted((ROOT / folder).rglob("*.py")) for folder in folders]
    return list(itertools.chain.from_iterable(found))


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sources(PACKAGE, RUNTIME)}


def imports(source):
    """Every imported module, wherever the import stands.

    For `from a import b`, "a.b" where that is a module of ours, else "a". A relative
    import begins with a dot.
    """
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                found.add(whole if whole in MODULES else base)
    return found


def below(module, *packages):
    return any(module == name or module.startswith(f"{name}.") for name in packages)


def ours(path):
    """What a file imports of the package, as names relative to it."""
    return {
        name.removeprefix(PACKAGE).lstrip(".")
        for name in imports(path.read_text())
        if below(name, PACKAGE)
    }


def test_the_reader_of_imports_sees_them_all():
    source = """
import os, numpy.linalg as la
from harmoniad_jax import cli, __version__
from harmoniad_jax.data.records import Record
from . import sibling
from ..model import layers
def late():
    if True:
        import torch.nn
"""
    assert imports(source) == {
        "os",
        "numpy.linalg",
        "harmoniad_jax.cli",
        "harmoniad_jax",
        "harmoniad_jax.data.records",
        ".",
        "..model",
        "torch.nn",
    }


def test_the_package_is_found():
    for name in ("config", "data.folder", "model.harmoniad", "training.loop"):
        assert f"{PACKAGE}.{name}" in MODULES


# The floors of the house: a room imports of ours what its line names, and itself.
BASICS = ("errors", "fields", "folders", "locks", "phases", "signals", "words")
ROOMS = {
    "config": ("errors", "fields"),
    "clip_models": ("errors",),
    "config_files": ("clip_models", "config", "errors"),
    "terminal": ("errors", "signals"),
    "cli": ("config", "config_files", "errors", "fields", "terminal"),
    "data": ("config", "errors", "words"),
    "metrics": (),
    "report": ("config", "errors", "fields", "metrics", "words"),
    "model": ("errors",),
    "devices": ("config", "errors", "folders", "words"),
    "steps": ("config", "devices", "model"),
    "run": (
        *(*BASICS, "config", "data", "devices", "metrics", "model", "steps"),
        "tfds_builders",
    ),
    "checkpoints": ("devices", "errors", "locks", "run", "steps"),
    "features": (*BASICS, "config", "data", "devices", "model", "run"),
    "inference": (
        *(*BASICS, "config", "data", "devices", "model", "report", "steps"),
        *("run", "checkpoints", "features"),
    ),
    "exporting": (
        *("config", "data", "errors", "folders", "model", "steps", "words"),
        *("run", "checkpoints", "inference", "harmoniad_runtime"),
    ),
    "serving": (
        *("data", "devices", "errors", "folders", "locks", "report", "signals"),
        *("inference", "harmoniad_runtime"),
    ),
    "evaluation": (
        *(*BASICS, "config", "data", "devices", "metrics", "model", "report", "steps"),
        *("run", "checkpoints", "features", "inference"),
    ),
    "training": (
        *(*BASICS, "config", "data", "devices", "model", "report", "steps"),
        *("run", "checkpoints", "features", "inference", "evaluation"),
    ),
    "studies": (
        *(*BASICS, "config", "data", "devices", "metrics", "model", "report"),
        *("run", "checkpoints", "features", "inference", "evaluation", "training"),
    ),
}
COMMANDS = (
    *("train", "evaluate", "predict", "summarize", "submit", "ablate", "robustness"),
    *("views", "export", "serve", "calibrate"),
)
UNHEAVY = ("cli", "config", "terminal")  # what commands may import at their top
LIGHT = ("data", "metrics", "report")  # rooms that know neither JAX nor Flax


def test_every_room_has_a_floor():
    rooms = {path.parent.name for path in (ROOT / PACKAGE).glob("*/__init__.py")}
    assert rooms <= set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_room_imports_nothing_of_ours_but_the_floors_below(room):
    path = ROOT / PACKAGE / room
    files = sources(path) if path.is_dir() else [path.with_suffix(".py")]
    for file in files:
        packages = {"tfds_builders", RUNTIME}
        found = ours(file) | {
            package
            for package in packages
            if any(below(name, package) for name in imports(file.read_text()))
        }
        found -= {""}  # the package itself, for its version
        outside = {name for name in found if not below(name, room, *ROOMS[room])}
        assert not outside, f"{file.relative_to(ROOT)} imports {', '.join(outside)}"


@pytest.mark.parametrize("name", BASICS)
def test_basics_import_nothing_of_ours(name):
    assert not ours(ROOT / PACKAGE / f"{name}.py")


def test_the_floors_are_in_order():
    """A room names floors above its own line only: so there is no circle."""
    for index, (room, allowed) in enumerate(ROOMS.items()):
        higher = set(list(ROOMS)[index:]) & set(allowed)
        assert not higher, f"{room} names {', '.join(higher)}"


def test_builders_know_how_data_is_read_and_nothing_else_of_ours():
    for file in sources("tfds_builders"):
        outside = {
            name for name in ours(file) if not below(name, "data", "errors", "locks")
        }
        assert not outside, f"{file.relative_to(ROOT)} imports {', '.join(outside)}"
        heavy = {name for name in imports(file.read_text()) if below(name, "jax", "flax")}
        assert not heavy, f"{file.relative_to(ROOT)} imports {', '.join(heavy)}"


def test_the_runtime_needs_no_more_than_is_installed_with_it():
    """Nor does what it imports of the package, however far."""
    libraries = {"numpy", "scipy", "PIL", "onnxruntime"}
    libraries |= {"tifffile", "imagecodecs", "simplejpeg"}
    optional = {"pillow_heif"}
    waiting, seen = {name for name in MODULES if below(name, RUNTIME)}, set()
    while waiting:
        module = waiting.pop()
        seen.add(module)
        for name in imports(MODULES[module].read_text()):
            # A module's packages are imported with it.
            parents = {name.rpartition(".")[0], name} & set(MODULES)
            waiting |= parents - seen - {PACKAGE}
            top = name.partition(".")[0]
            known = libraries | optional | {PACKAGE, RUNTIME} | sys.stdlib_module_names
            assert top in known, f"{module} imports {name}"
    assert {f"{PACKAGE}.data.preprocess", f"{PACKAGE}.inference.writer"} <= seen


def test_metrics_are_numpy_and_scipy_alone():
    for file in sources(f"{PACKAGE}/metrics"):
        for name in imports(file.read_text()):
            top = name.partition(".")[0]
            assert top in {PACKAGE, "numpy", "scipy"} | sys.stdlib_module_names, (
                f"{file.relative_to(ROOT)} imports {name}"
            )


@pytest.mark.parametrize("part", LIGHT)
def test_light_rooms_do_not_know_jax(part):
    for file in sources(f"{PACKAGE}/{part}"):
        found = imports(file.read_text())
        heavy = {name for name in found if below(name, "jax", "flax", "optax")}
        assert not heavy, f"{file.relative_to(ROOT)} imports {', '.join(heavy)}"


def test_the_flags_are_read_before_jax_is_loaded():
    """A mistake on the command line is reported at once."""
    for name in COMMANDS:
        tree = ast.parse(MODULES[f"{PACKAGE}.{name}"].read_text())
        kinds = (ast.Import, ast.ImportFrom)
        top = [ast.unparse(node) for node in tree.body if isinstance(node, kinds)]
        for module in imports("\n".join(top)):
            heavy = [f"{PACKAGE}.{room}" for room in ROOMS if room not in UNHEAVY]
            heavy = [name for name in heavy if not name.endswith(LIGHT)]
            assert not below(module, "jax", "flax", *heavy)


def loaded_with(module):
    """All that is imported with a module of ours, however far, but for late imports."""
    waiting, seen = {module}, set()
    while waiting:
        name = waiting.pop()
        seen.add(name)
        if name in MODULES:
            kinds = (ast.Import, ast.ImportFrom)
            body = ast.parse(MODULES[name].read_text()).body
            top = [ast.unparse(node) for node in body if isinstance(node, kinds)]
            found = imports("\n".join(top))
            # A module's packages are imported with it.
            found |= {one.rpartition(".")[0] for one in found if one in MODULES}
            waiting |= found - seen
    return seen


def test_prediction_loads_no_library_that_it_does_not_use():
    """A person waits for it to start."""
    loaded = loaded_with(f"{PACKAGE}.inference.predict")
    assert {f"{PACKAGE}.run.run", "transformers", "orbax.checkpoint"} <= loaded
    slow = ("grain", "matplotlib", "tensorboardX", "tensorflow_datasets", "tfds_builders")
    for name in loaded:
        assert not below(name, *slow)


def test_orbax_is_called_in_one_file():
    files = [
        module
        for module, path in MODULES.items()
        if any(below(name, "orbax") for name in imports(path.read_text()))
    ]
    assert files == [f"{PACKAGE}.checkpoints.store"]


def test_no_file_imports_another_framework_or_relatively():
    """But for the yardstick in PyTorch, which time_torch.py loads if it is asked."""
    yardstick = ROOT / "benchmarks" / "torch_head.py"
    folders = (PACKAGE, RUNTIME, "configs", "tfds_builders", "benchmarks", "tests")
    for file in sources(*folders):
        for name in imports(file.read_text()):
            torch = below(name, "torch") and file != yardstick
            refused = name.startswith(".") or below(name, "tensorflow", "clu") or torch
            assert not refused, f"{file.relative_to(ROOT)} imports {name}"
