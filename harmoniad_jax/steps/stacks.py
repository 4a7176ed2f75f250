"""Small arrays of one shape as one array: few large operations instead of many small ones.

An optimizer does the same to every array of a network. For hundreds of small ones that is
hundreds of operations in a step, each over before a GPU could begin the next.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from harmoniad_jax.steps.state import TrainState

# Elements from which on an array stays alone: it keeps a device busy by itself, and to copy
# it costs more than it saves.
LARGE = 2**20


class Stacks:
    """How the arrays of a tree are stacked: those of one shape on each other, in order.

    Attributes:
      are_stacked: for each of the stacks, whether it is one: [K, *shape] of K arrays. An
        array that is large, or the only one of its shape, is left as it is.
    """

    def __init__(self, tree: Any):
        """For all trees like this one, of arrays or their shapes."""
        leaves, self._structure = jax.tree.flatten(tree)
        places = defaultdict(list)
        for place, leaf in enumerate(leaves):
            is_large = math.prod(leaf.shape) >= LARGE
            places[leaf.shape, leaf.dtype, place if is_large else -1].append(place)
        self._places = tuple(places.values())
        self.are_stacked = [len(places) > 1 for places in self._places]

    def stack(self, tree: Any) -> list[Any]:
        """The stacks of a tree of host arrays, or of traced ones."""
        leaves = self._structure.flatten_up_to(tree)
        stack = np.stack if isinstance(leaves[0], np.ndarray) else jnp.stack
        return [
            stack([leaves[place] for place in places]) if is_stacked else leaves[places[0]]
            for places, is_stacked in zip(self._places, self.are_stacked, strict=True)
        ]

    def unstack(self, stacks: Sequence[Any]) -> Any:
        """The tree whose stacks these are: host arrays, or traced ones."""
        leaves = [None] * self._structure.num_leaves
        for stack, places, is_stacked in zip(
            stacks, self._places, self.are_stacked, strict=True
        ):
            for place, leaf in zip(places, _parts(stack, is_stacked), strict=True):
                leaves[place] = leaf
        return self._structure.unflatten(leaves)

    def stack_state(self, state: TrainState) -> TrainState:
        """A state with stacks of its parameters, and of all that is like them."""
        return _in_state(state, self._structure, self.stack)

    def unstack_state(self, state: TrainState) -> TrainState:
        """The state that was stacked."""
        structure = jax.tree.structure(self.are_stacked)
        return _in_state(state, structure, self.unstack)


def _parts(stack: Any, is_stacked: bool) -> Sequence[Any]:
    if not is_stacked:
        return [stack]
    if isinstance(stack, np.ndarray):
        return list(stack)
    # Its gradient is one concatenation; that of taking each part is a sum.
    return [part[0] for part in jax.lax.split(stack, [1] * len(stack), axis=0)]


def _in_state(
    state: TrainState, structure: Any, function: Callable[[Any], Any]
) -> TrainState:
    """Applies a function to all trees of a structure in a state."""

    def fits(node: Any) -> bool:
        return jax.tree.structure(node) == structure

    return jax.tree.map(
        lambda node: function(node) if fits(node) else node, state, is_leaf=fits
    )
