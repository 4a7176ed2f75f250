"""How each primitive of JAX is said in ONNX.

A rule takes the graph, the equation and its inputs, and returns its output or a list of
them. Inputs are constants, tensors or values that are still to be repeated (`Spread`).
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from onnx import helper

from harmoniad_jax.exporting.graph import Graph, Tensor
from harmoniad_jax.exporting.values import (
    Equation,
    Spread,
    Value,
    is_known,
    refused,
    shape_constant,
    unspread,
    whole,
)

RULES: dict[str, Callable] = {}
# Functions that ONNX has an operator for, by their name: they are not looked into.
NAMED: dict[str, Callable] = {}


def rule(*names: str) -> Callable:
    """Registers the rule of some primitives."""

    def register(function: Callable) -> Callable:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


def _integers(values: Sequence[Any]) -> np.ndarray:
    return np.array([int(value) for value in values], np.int64)


# Element by element: ONNX repeats the operands itself.


def _elementwise(compute: Callable) -> Callable:
    """The rule of an operator that `compute` adds to a graph, of unrepeated operands."""

    def apply(graph: Graph, equation: Equation, *inputs: Value) -> Value:
        result = compute(graph, *map(unspread, inputs))
        (shape,) = equation.output_shapes
        pairs = zip(inputs, equation.input_shapes, strict=True)
        if any(not isinstance(v, Spread) and size == shape for v, size in pairs):
            return result
        return Spread(result, shape)

    return apply


def _operator(kind: str) -> Callable:
    return _elementwise(lambda graph, *inputs: graph.add(kind, *inputs))


for _primitive, _kind in {
    "abs": "Abs",
    "add": "Add",
    "and": "And",
    "div": "Div",
    "eq": "Equal",
    "erf": "Erf",
    "exp": "Exp",
    "ge": "GreaterOrEqual",
    "gt": "Greater",
    "le": "LessOrEqual",
    "log": "Log",
    "logistic": "Sigmoid",
    "lt": "Less",
    "max": "Max",
    "min": "Min",
    "mul": "Mul",
    "neg": "Neg",
    "not": "Not",
    "or": "Or",
    "pow": "Pow",
    "sign": "Sign",
    "sqrt": "Sqrt",
    "sub": "Sub",
    "tanh": "Tanh",
}.items():
    RULES[_primitive] = _operator(_kind)

ONE = np.float32(1.0)
RULES["square"] = _elementwise(lambda graph, x: graph.add("Mul", x, x))
RULES["rsqrt"] = _elementwise(
    lambda graph, x: graph.add("Reciprocal", graph.add("Sqrt", x))
)
RULES["expm1"] = _elementwise(lambda graph, x: graph.add("Sub", graph.add("Exp", x), ONE))
RULES["log1p"] = _elementwise(lambda graph, x: graph.add("Log", graph.add("Add", x, ONE)))
RULES["erfc"] = _elementwise(lambda graph, x: graph.add("Sub", ONE, graph.add("Erf", x)))
RULES["ne"] = _elementwise(lambda graph, x, y: graph.add("Not", graph.add("Equal", x, y)))


@rule("integer_pow")
def _integer_pow(graph: Graph, equation: Equation, base: Value) -> Value:
    exponent = equation.params["y"]

    def power(graph: Graph, x: Tensor) -> Tensor:
        if exponent not in (2, 3):
            return graph.add("Pow", x, np.float32(exponent))
        square = graph.add("Mul", x, x)
        return square if exponent == 2 else graph.add("Mul", square, x)

    return _elementwise(power)(graph, equation, base)


@rule("select_n")
def _select(graph: Graph, equation: Equation, which: Value, *cases: Value) -> Value:
    def choose(graph: Graph, which: Tensor, first: Tensor, second: Tensor) -> Tensor:
        return graph.add("Where", which, second, first)

    return _elementwise(choose)(graph, equation, which, *cases)


@rule("convert_element_type")
def _convert(graph: Graph, equation: Equation, values: Value) -> Value:
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(equation.output_dtype))
    cast = _elementwise(lambda graph, x: graph.add("Cast", x, to=kind))
    return cast(graph, equation, values)


@rule("stop_gradient", "copy", "copy_p", "optimization_barrier")
def _same(graph: Graph, equation: Equation, *values: Value) -> list[Value]:
    return list(values)


# Shapes.


@rule("broadcast_in_dim")
def _broadcast(graph: Graph, equation: Equation, values: Value, *_) -> Value:
    (shape,), (before, *_) = equation.output_shapes, equation.input_shapes
    sizes: list[Any] = [1] * len(shape)
    for axis, size in zip(equation.params["broadcast_dimensions"], before, strict=True):
        sizes[axis] = size
    placed = _reshaped(graph, whole(graph, values), before, sizes)
    return placed if tuple(sizes) == tuple(shape) else Spread(placed, tuple(shape))


@rule("tile")
def _tile(graph: Graph, equation: Equation, values: Value) -> Value:
    (before,), (shape,) = equation.input_shapes, equation.output_shapes
    if all(old == 1 or old == new for old, new in zip(before, shape, strict=True)):
        return Spread(whole(graph, values), tuple(shape))
    repeats = _integers(equation.params["reps"])
    return graph.add("Tile", whole(graph, values), repeats)


@rule("reshape", "squeeze", "expand_dims")
def _reshape(graph: Graph, equation: Equation, values: Value, *_) -> Value:
    (before, *_), (after,) = equation.input_shapes, equation.output_shapes
    return _reshaped(graph, whole(graph, values), before, after)


@rule("transpose")
def _transpose(graph: Graph, equation: Equation, values: Value) -> Value:
    return _permuted(graph, whole(graph, values), equation.params["permutation"])


@rule("concatenate")
def _concatenate(graph: Graph, equation: Equation, *parts: Value) -> Value:
    axis = int(equation.params["dimension"])
    return graph.add("Concat", *[whole(graph, part) for part in parts], axis=axis)


@rule("stack")
def _stack(graph: Graph, equation: Equation, *parts: Value) -> Value:
    axis = int(equation.params["axis"])
    placed = []
    for part, shape in zip(parts, equation.input_shapes, strict=True):
        sizes = [*shape[:axis], 1, *shape[axis:]]
        placed.append(_reshaped(graph, whole(graph, part), shape, sizes))
    return graph.add("Concat", *placed, axis=axis)


@rule("slice")
def _slice(graph: Graph, equation: Equation, values: Value) -> Value:
    params, (shape,) = equation.params, equation.input_shapes
    return _sliced(
        *(graph, whole(graph, values), shape),
        *(params["start_indices"], params["limit_indices"], params["strides"]),
    )


@rule("gather")
def _gather(graph: Graph, equation: Equation, values: Value, indices: Value) -> Value:
    """An index that is a constant: a slice at one place."""
    places = _constant(equation, indices)
    numbers, sizes = equation.params["dimension_numbers"], equation.params["slice_sizes"]
    if places.ndim != 1:
        raise refused("gather at several places")
    (shape, _), (after,) = equation.input_shapes, equation.output_shapes
    starts = [0] * len(shape)
    for axis, place in zip(numbers.start_index_map, places, strict=True):
        starts[axis] = int(place)
    ends = [
        start + size if start else size for start, size in zip(starts, sizes, strict=True)
    ]
    found = _sliced(graph, whole(graph, values), shape, starts, ends)
    return _reshaped(graph, found, None, after) if numbers.collapsed_slice_dims else found


@rule("split")
def _split(graph: Graph, equation: Equation, values: Value) -> list[Value]:
    sizes, axis = _integers(equation.params["sizes"]), int(equation.params["axis"])
    found = graph.add("Split", whole(graph, values), sizes, axis=axis, outputs=len(sizes))
    return found if isinstance(found, list) else [found]


@rule("pad")
def _pad(graph: Graph, equation: Equation, values: Value, filling: Value) -> Value:
    config = equation.params["padding_config"]
    if any(int(inside) for *_, inside in config):
        raise refused("padding between elements")
    margins = _integers([low for low, *_ in config] + [high for _, high, _ in config])
    return graph.add("Pad", whole(graph, values), margins, unspread(filling))


# Sums, products and orders.


@rule("reduce_sum", "reduce_max", "reduce_min")
def _reduce(graph: Graph, equation: Equation, values: Value) -> Value:
    kinds = {
        "reduce_sum": "ReduceSum",
        "reduce_max": "ReduceMax",
        "reduce_min": "ReduceMin",
    }
    axes = _integers(equation.params["axes"])
    return graph.add(kinds[equation.name], whole(graph, values), axes, keepdims=0)


@rule("top_k")
def _top_k(graph: Graph, equation: Equation, values: Value) -> list[Value]:
    count = _integers([equation.params["k"]])
    axis = int(equation.params.get("axis", -1))
    return graph.add("TopK", whole(graph, values), count, outputs=2, axis=axis)


@rule("conv_general_dilated")
def _convolution(graph: Graph, equation: Equation, images: Value, kernel: Value) -> Value:
    params = equation.params
    order, padding = params["dimension_numbers"], params["padding"]
    if any(n != 1 for n in params["lhs_dilation"]) or params["batch_group_count"] != 1:
        raise refused("transposed convolution")
    convolved = graph.add(
        "Conv",
        _permuted(graph, whole(graph, images), order.lhs_spec),
        _permuted(graph, whole(graph, kernel), order.rhs_spec),
        strides=[int(n) for n in params["window_strides"]],
        pads=[int(low) for low, _ in padding] + [int(high) for _, high in padding],
        dilations=[int(n) for n in params["rhs_dilation"]],
        group=int(params["feature_group_count"]),
    )
    return _permuted(graph, convolved, np.argsort(order.out_spec))


@rule("dot_general")
def _dot(graph: Graph, equation: Equation, left: Value, right: Value) -> Value:
    """As matrix products: shared axes first, summed ones last on the left."""
    (left_summed, right_summed), (left_shared, right_shared) = equation.params[
        "dimension_numbers"
    ]
    left_shape, right_shape = equation.input_shapes
    (shape,) = equation.output_shapes
    left, right = whole(graph, left), whole(graph, right)
    left_own = _others(left_shape, left_summed, left_shared)
    right_own = _others(right_shape, right_summed, right_shared)
    last = len(left_shape) - 1
    if not left_shared and tuple(left_summed) == (last,) and len(right_own) == 1:
        # A weight matrix: the left side keeps its shape.
        order = [*right_summed, *right_own]
        return graph.add("MatMul", left, _permuted(graph, right, order))
    shared = [left_shape[axis] for axis in left_shared]
    rows = [left_shape[axis] for axis in left_own]
    columns = [right_shape[axis] for axis in right_own]
    summed = [left_shape[axis] for axis in left_summed]
    order = [*left_shared, *left_own, *left_summed]
    left = _permuted(graph, left, order)
    sizes = [*shared, math.prod(rows), math.prod(summed)]
    left = _reshaped(graph, left, [left_shape[axis] for axis in order], sizes)
    order = [*right_shared, *right_summed, *right_own]
    right = _permuted(graph, right, order)
    sizes = [*shared, math.prod(summed), math.prod(columns)]
    right = _reshaped(graph, right, [right_shape[axis] for axis in order], sizes)
    product = graph.add("MatMul", left, right)
    sizes = [*shared, math.prod(rows), math.prod(columns)]
    return _reshaped(graph, product, sizes, shape)


# Functions with an operator of their own.


def _layer_normalization(
    graph: Graph, equation: Equation, values: Value, scale: Value, bias: Value, epsilon
) -> Value:
    """`program.layer_normalization`."""
    return graph.add(
        *("LayerNormalization", whole(graph, values)),
        *(whole(graph, scale), whole(graph, bias)),
        axis=-1,
        epsilon=float(epsilon),
    )


def _depthwise(graph: Graph, equation: Equation, maps: Value, kernel: Value) -> Value:
    """`fsam.depthwise`: maps [B, h, w, D], kernel [k, k, D], zeros beyond the border."""
    size, _, channels = equation.input_shapes[1]
    weights = _permuted(graph, whole(graph, kernel), (2, 0, 1))
    weights = _reshaped(graph, weights, None, (channels, 1, size, size))
    convolved = graph.add(
        "Conv",
        _permuted(graph, whole(graph, maps), (0, 3, 1, 2)),
        weights,
        pads=[size // 2] * 4,
        group=int(channels),
    )
    return _permuted(graph, convolved, (0, 2, 3, 1))


NAMED["layer_normalization"] = _layer_normalization
NAMED["depthwise"] = _depthwise


# What the rules share.


def _others(shape: Sequence[Any], *taken: Sequence[int]) -> list[int]:
    gone = {axis for axes in taken for axis in axes}
    return [axis for axis in range(len(shape)) if axis not in gone]


def _permuted(graph: Graph, values: Tensor | np.ndarray, order: Sequence[int]):
    order = [int(axis) for axis in order]
    if order == sorted(order):
        return values
    if isinstance(values, np.ndarray):
        return np.transpose(values, order)
    return graph.add("Transpose", values, perm=order)


def _reshaped(
    graph: Graph,
    values: Tensor | np.ndarray,
    before: Sequence[Any] | None,
    after: Sequence[Any],
):
    if before is not None and tuple(before) == tuple(after):
        return values
    if isinstance(values, np.ndarray):
        return np.reshape(values, tuple(after))
    return graph.add("Reshape", values, shape_constant(after))


def _sliced(
    graph: Graph,
    values: Tensor | np.ndarray,
    shape: Sequence[Any],
    starts: Sequence[Any],
    ends: Sequence[Any],
    steps: Sequence[int] | None = None,
):
    """The part from `starts` to `ends`; axes of a free size are taken whole."""
    steps = steps or [1] * len(shape)
    cut = [
        axis
        for axis, size in enumerate(shape)
        if not (is_known(starts[axis]) and starts[axis] == 0 and ends[axis] == size)
        or steps[axis] != 1
    ]
    if not cut:
        return values
    chosen = [[sizes[axis] for axis in cut] for sizes in (starts, ends, steps)]
    first, last, step = map(_integers, chosen)
    return graph.add("Slice", values, first, last, _integers(cut), step)


def _constant(equation: Equation, value: Value) -> np.ndarray:
    if not isinstance(value, np.ndarray):
        raise refused(f"{equation.name} at a place that the image decides")
    return value
