"""Imports point one way: commands, training and report, then data, model, metrics."""

import ast
import itertools
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "harmoniad_jax"
COMMANDS = ("train", "evaluate", "predict", "summarize", "export", "cli")


def sources(*folders):
    found = [sorted((ROOT / folder).rglob("*.py")) for folder in folders]
    return list(itertools.chain.from_iterable(found))


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sources(PACKAGE)}


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
    for name in ("config", "data.sources", "model.harmoniad", "training.loop"):
        assert f"{PACKAGE}.{name}" in MODULES


@pytest.mark.parametrize(
    ("part", "allowed"),
    [
        ("errors.py", ()),
        ("fields.py", ()),
        ("config.py", ("errors", "fields")),
        ("locks.py", ()),
        ("signals.py", ()),
        ("cli.py", ("config", "errors", "fields", "signals")),
        ("model", ("model", "errors")),
        ("data", ("data", "errors")),
        ("metrics", ("metrics",)),
        ("report", ("report", "metrics", "config", "errors", "fields")),
    ],
)
def test_part_imports_nothing_of_ours_but(part, allowed):
    path = ROOT / PACKAGE / part
    for file in [path] if path.is_file() else sources(path):
        outside = {name for name in ours(file) if not below(name, *allowed)}
        assert not outside, f"{file.relative_to(ROOT)} imports {', '.join(outside)}"


def test_builders_know_how_data_is_read_and_nothing_else_of_ours():
    for file in sources("tfds_builders"):
        outside = {
            name for name in ours(file) if not below(name, "data", "errors", "locks")
        }
        assert not outside, f"{file.relative_to(ROOT)} imports {', '.join(outside)}"
        heavy = {name for name in imports(file.read_text()) if below(name, "jax", "flax")}
        assert not heavy, f"{file.relative_to(ROOT)} imports {', '.join(heavy)}"


def test_only_training_prepares_data_sets():
    for module, path in MODULES.items():
        if any(below(name, "tfds_builders") for name in imports(path.read_text())):
            assert below(module, f"{PACKAGE}.training"), module


def test_training_does_not_know_the_commands():
    for file in sources(f"{PACKAGE}/training"):
        known = {name for name in ours(file) if below(name, *COMMANDS)}
        assert not known, f"{file.relative_to(ROOT)} imports {', '.join(known)}"


def test_metrics_are_numpy_and_scipy_alone():
    for file in sources(f"{PACKAGE}/metrics"):
        for name in imports(file.read_text()):
            top = name.partition(".")[0]
            assert top in {PACKAGE, "numpy", "scipy"} | sys.stdlib_module_names, (
                f"{file.relative_to(ROOT)} imports {name}"
            )


@pytest.mark.parametrize("part", ["data", "metrics", "report"])
def test_only_model_and_training_know_jax(part):
    for file in sources(f"{PACKAGE}/{part}"):
        found = imports(file.read_text())
        heavy = {name for name in found if below(name, "jax", "flax", "optax")}
        assert not heavy, f"{file.relative_to(ROOT)} imports {', '.join(heavy)}"


def test_the_flags_are_read_before_jax_is_loaded():
    """A mistake on the command line is reported at once."""
    for name in ("train", "evaluate", "predict", "summarize"):
        tree = ast.parse(MODULES[f"{PACKAGE}.{name}"].read_text())
        kinds = (ast.Import, ast.ImportFrom)
        top = [ast.unparse(node) for node in tree.body if isinstance(node, kinds)]
        for module in imports("\n".join(top)):
            assert not below(module, "jax", "flax", f"{PACKAGE}.training")


def test_orbax_is_called_in_one_file():
    files = [
        module
        for module, path in MODULES.items()
        if any(below(name, "orbax") for name in imports(path.read_text()))
    ]
    assert files == [f"{PACKAGE}.training.checkpoints"]


def test_no_file_imports_another_framework_or_relatively():
    """But for the yardstick in PyTorch, which benchmark_torch.py loads if it is asked."""
    yardstick = ROOT / "scripts" / "torch_head.py"
    for file in sources(PACKAGE, "configs", "tfds_builders", "scripts", "tests"):
        for name in imports(file.read_text()):
            torch = below(name, "torch") and file != yardstick
            refused = name.startswith(".") or below(name, "tensorflow", "clu") or torch
            assert not refused, f"{file.relative_to(ROOT)} imports {name}"
