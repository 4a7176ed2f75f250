"""Times a training step of the head against the same architecture in PyTorch.

    pip install torch
    python benchmarks/time_torch.py --json torch.json

The head is what is trained: frequency split, both branches, loss, gradient, optimizer.
Features are drawn; the encoder takes no part. First both are compared with dropout off,
from the same parameters: loss, gradients, and parameters after a step. Where they disagree
nothing is timed. Then both take a few steps in turn, since machines are noisy; the figure
is the median. The first step of each turn does not count: it finds memory and caches as the
others left them, and in training every step but one follows its like. PyTorch runs twice,
as it is written and through `torch.compile`.
The process keeps the memory that a step frees, as training does: PyTorch's steps have the
same gain. Where others use the machine too, the processor's time says more than the
clock, and OMP_WAIT_POLICY=PASSIVE keeps PyTorch's idle threads from counting in it.
"""

import argparse
import dataclasses
import importlib
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpy.linalg import norm

from harmoniad_jax.config import Config
from harmoniad_jax.devices.compilation import working_bytes
from harmoniad_jax.devices.memory import keep_memory, share_heap
from harmoniad_jax.model.encoders.encoder import Features
from harmoniad_jax.steps.losses import easy_share
from harmoniad_jax.steps.network import build_model
from harmoniad_jax.steps.optimizer import make_optimizer
from harmoniad_jax.steps.state import TrainState, create_state
from harmoniad_jax.steps.step import Steps

# Past the growth of the easy share, where most of a run is.
STEP = 2000
# Relative deviations that rounding explains. A mistake in one tensor is of order one there.
# In a tensor of small gradients, a position whose threshold or peak rounding moves counts.
# The first step of Adam follows signs, of which rounding turns the smallest gradients'.
TOLERANCES = {"loss": 1e-6, "gradient": 1e-5, "worst gradient": 1e-2, "step": 1e-2}
JAX, EAGER, COMPILED = "JAX", "PyTorch", "PyTorch, compiled"


def make_config(dropout: float | None = None) -> Config:
    """The default settings, without warm-up: its first step has a learning rate of zero."""
    config = Config()
    optimizer = dataclasses.replace(config.optimizer, warmup_steps=0)
    if dropout is not None:
        model = dataclasses.replace(config.model, dropout=dropout)
        config = dataclasses.replace(config, model=model)
    return dataclasses.replace(config, optimizer=optimizer)


def make_steps(
    config: Config,
    features: Features,
    optimizer: optax.GradientTransformation | None = None,
) -> Steps:
    """The project's step on features; the encoder is never called."""
    _, groups, *_, width = features.patches.shape
    model = build_model(config.model, groups=groups, width=width)
    if optimizer is None:
        optimizer = make_optimizer(config.optimizer, config.train.num_steps)
    return Steps(None, model, optimizer, config.loss, config.evaluation)


def recording_optimizer() -> optax.GradientTransformation:
    """Leaves the parameters alone; its state is the gradient."""
    return optax.GradientTransformation(
        init=lambda params: params,
        update=lambda gradients, state, params: (
            jax.tree.map(jnp.zeros_like, params),
            gradients,
        ),
    )


def draw_features(images: int, groups: int, grid: int, width: int) -> Features:
    """Features with what a fresh network cannot predict: independent normal numbers."""
    keys = jax.random.split(jax.random.key(0))
    return Features(
        jax.random.normal(keys[0], (images, groups, grid, grid, width)),
        jax.random.normal(keys[1], (images, width)),
    )


def make_state(steps: Steps, features: Features) -> TrainState:
    """A state in which every parameter counts; at the start some gates are zero."""
    create = jax.jit(create_state, static_argnums=(0, 1))
    state = create(steps.model, steps.optimizer, features, 0)
    leaves, structure = jax.tree.flatten(state.params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    leaves = [
        leaf + 0.02 * jax.random.normal(key, leaf.shape)
        for leaf, key in zip(leaves, keys, strict=True)
    ]
    params = jax.tree.unflatten(structure, leaves)
    return state.replace(params=params, step=jnp.asarray(STEP, jnp.int32))


def by_path(tree: Any) -> dict[str, np.ndarray]:
    """Values of a parameter tree by their path, with slashes."""
    return jax.device_get(flax.traverse_util.flatten_dict(tree, sep="/"))


def deviations(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> np.ndarray:
    """Relative to the norm of ours: of all tensors as one vector, then of each."""
    pairs = [(ours[name].ravel(), theirs[name].ravel()) for name in ours]
    joined = [np.concatenate(parts) for parts in zip(*pairs, strict=True)]
    return np.array([norm(a - b) / norm(a) for a, b in [joined, *pairs]])


def compare(torch_head: ModuleType, sizes: dict[str, int]) -> dict[str, float]:
    """How far loss, gradients and a step are apart without dropout, relative to ours."""
    config, features = make_config(dropout=0.0), draw_features(**sizes)
    steps = make_steps(config, features)
    recording = make_steps(config, features, recording_optimizer())
    state = make_state(steps, features)
    recorded, metrics = jax.jit(recording.update)(
        state.replace(opt_state=state.params), features
    )
    after, _ = jax.jit(steps.update)(state, features)
    theirs = start_torch(torch_head, config, state, features)
    before, ours_after, gradients = (
        torch_head.from_flax(by_path(tree))
        for tree in (state.params, after.params, recorded.opt_state)
    )
    loss, torch_gradients = theirs.gradients()
    of_gradients = deviations(gradients, torch_gradients)
    theirs.step()
    ours_change, theirs_change = (
        {name: values[name] - before[name] for name in before}
        for values in (ours_after, theirs.parameters())
    )
    return {
        "loss": abs(loss / float(metrics["loss"]) - 1),
        "gradient": float(of_gradients[0]),
        "worst gradient": float(of_gradients.max()),
        "step": float(deviations(ours_change, theirs_change)[0]),
    }


def start_torch(
    torch_head: ModuleType, config: Config, state: TrainState, features: Features
) -> Any:
    """The same head in PyTorch, with the state's parameters."""
    loss = config.loss
    easy = float(easy_share(STEP, loss.easy_share, loss.easy_steps))
    params, arrays = by_path(state.params), jax.device_get(tuple(features))
    return torch_head.Training(config, params, *arrays, easy)


def jax_step(sizes: dict[str, int]) -> tuple[Callable[[], float], float]:
    """One update at a time, compiled with its state donated; and its operations."""
    config, features = make_config(), draw_features(**sizes)
    steps = make_steps(config, features)
    state = make_state(steps, features)
    lowered = jax.jit(steps.update, donate_argnums=0).lower(state, features)
    compiled = lowered.compile()
    keep_memory(working_bytes(compiled))

    def step() -> float:
        nonlocal state
        state, metrics = compiled(state, features)
        return float(jax.block_until_ready(metrics)["loss"])

    return step, lowered.cost_analysis()["flops"]


def torch_steps(torch_head: ModuleType, sizes: dict[str, int]) -> dict[str, Callable]:
    config, features = make_config(), draw_features(**sizes)
    state = make_state(make_steps(config, features), features)
    eager, compiled = (start_torch(torch_head, config, state, features) for _ in range(2))
    compiled.compile()
    return {EAGER: eager.step, COMPILED: compiled.step}


def measure(
    steps: dict[str, Callable], rounds: int, in_a_row: int
) -> dict[str, dict[str, float]]:
    """Seconds of each function, called in turn: on the clock, and of all cores at work."""
    rows = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            step()  # the very first compiles
            for _ in range(in_a_row):
                start, worked = time.perf_counter(), time.process_time()
                step()
                rows[name].append(
                    (time.perf_counter() - start, time.process_time() - worked)
                )
    report = {}
    for name, measured in rows.items():
        clock, processor = zip(*measured, strict=True)
        report[name] = {
            "median": statistics.median(clock),
            "shortest": min(clock),
            "processor": statistics.median(processor),
        }
    return report


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--groups", type=int, default=2)
    parser.add_argument("--grid", type=int, default=16, help="patches along a side")
    parser.add_argument("--width", type=int, default=384, help="of the encoder")
    parser.add_argument("--rounds", type=int, default=5, help="0: compare, do not time")
    parser.add_argument("--steps", type=int, default=4, help="in a row, that count")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    share_heap()
    try:
        torch_head = importlib.import_module("torch_head")
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        print("PyTorch is not installed: pip install torch to compare.", file=sys.stderr)
        sys.exit(2)
    sizes = {name: getattr(options, name) for name in ("images", "groups", "grid", "width")}
    found = compare(torch_head, sizes)
    for name, value in found.items():
        print(f"deviation of the {name}: {value:.1e}, allowed {TOLERANCES[name]:.0e}")
    # Written so that a deviation that is no number counts.
    if not all(value <= TOLERANCES[name] for name, value in found.items()):
        print("The two disagree; nothing is timed.", file=sys.stderr)
        sys.exit(1)
    report = {
        "sizes": sizes,
        "rounds": options.rounds,
        "steps": options.steps,
        "deviations": found,
        "versions": {"jax": jax.__version__, "torch": torch_head.torch.__version__},
        "cores": len(os.sched_getaffinity(0)),
    }
    if options.rounds:
        ours, operations = jax_step(sizes)
        steps = {JAX: ours} | torch_steps(torch_head, sizes)
        report["gflop"] = operations / 1e9
        report["seconds"] = measure(steps, options.rounds, options.steps)
        print_table(report)
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")


def print_table(report: dict[str, Any]) -> None:
    """Seconds a step, and the rate: the operations that XLA counts in ours, over them."""
    versions = ", ".join(f"{name} {of}" for name, of in report["versions"].items())
    print(f"{report['cores']} cores, {versions}, {report['gflop']:.0f} GFLOP a step")
    columns = ("median", "shortest", "processor")
    print(f"{'seconds':18s}" + "".join(f"{name:>11s}" for name in columns) + "  GFLOP/s")
    for name, seconds in report["seconds"].items():
        figures = "".join(f"{seconds[column]:11.3f}" for column in columns)
        print(f"{name:18s}{figures}{report['gflop'] / seconds['median']:9.0f}")


if __name__ == "__main__":
    main()
