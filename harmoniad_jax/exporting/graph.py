"""An ONNX graph that grows node by node."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import helper, numpy_helper

from harmoniad_jax.errors import UserError

# Operators as of ONNX 1.15: LayerNormalization came with 17, axes of ReduceMax as an input
# with 18. Readers from 2024 on know it.
OPSET = 20
IR_VERSION = 9
# Of a protocol buffer, less what the nodes take.
MOST_BYTES = 2**31 - 2**24
# Smaller constants are kept in float32: they take no room, and some are exact thresholds.
SMALLEST_HALVED = 1024
# Equal constants up to this size in bytes are stored once.
LARGEST_COMPARED = 1 << 16


class Tensor(NamedTuple):
    """A value that the graph computes, by its name."""

    name: str


class Graph:
    """Nodes and constants, in order.

    Args of `add` are `Tensor`s or numpy arrays, which become constants.
    """

    def __init__(self, *, half_weights: bool = False):
        """An empty graph.

        Args:
          half_weights: store large float32 constants in float16; they are computed with
            in float32.
        """
        self._half_weights = half_weights
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}
        self._known: dict[Any, str] = {}
        self._kept: list[np.ndarray] = []  # so that no id is given to another array
        self._count = 0

    def add(self, kind: str, *inputs: Tensor | np.ndarray, outputs: int = 1, **attributes):
        """Adds a node.

        Returns:
          Its output as a `Tensor`; a list of them where there are several.
        """
        names = [self._name_of(value) for value in inputs]
        results = [self._new_name(kind) for _ in range(outputs)]
        node = helper.make_node(kind, names, results, name=results[0], **attributes)
        self._nodes.append(node)
        tensors = [Tensor(name) for name in results]
        return tensors[0] if outputs == 1 else tensors

    def model(
        self,
        inputs: Mapping[str, tuple[np.dtype, Sequence[int | str]]],
        outputs: Mapping[str, tuple[Tensor, np.dtype, Sequence[int | str]]],
        metadata: Mapping[str, str],
    ) -> onnx.ModelProto:
        """The whole as a model; what no output needs is left out.

        Args:
          inputs: dtype and shape of each, by name; a text in a shape is a free size.
          outputs: the value, dtype and shape of each, by name.
          metadata: text by key.

        Raises:
          UserError: its constants are too many for one file.
        """
        nodes = list(self._nodes)
        for name, (value, *_) in outputs.items():
            nodes.append(helper.make_node("Identity", [value.name], [name], name=name))
        needed, kept = set(outputs), []
        for node in reversed(nodes):
            if needed & set(node.output):
                kept.append(node)
                needed |= set(node.input)
        constants = [value for name, value in self._constants.items() if name in needed]
        size = sum(value.ByteSize() for value in constants)
        if size > MOST_BYTES:
            raise UserError(
                f"the weights take {size / 1e9:.1f} GB, and an ONNX file holds 2 GB; store "
                "them in half the room with --precision=float16, or train with a smaller "
                "encoder."
            )

        def described(name: str, dtype: np.dtype, shape: Sequence[int | str]):
            kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
            return helper.make_tensor_value_info(name, kind, list(shape))

        graph = helper.make_graph(
            kept[::-1],
            "harmoniad",
            [described(name, *what) for name, what in inputs.items()],
            [described(name, *what) for name, (_, *what) in outputs.items()],
            constants,
        )
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="harmoniad_jax",
        )
        helper.set_model_props(model, dict(metadata))
        return model

    def _name_of(self, value: Tensor | np.ndarray) -> str:
        return value.name if isinstance(value, Tensor) else self._constant(value)

    def _constant(self, value: np.ndarray) -> str:
        array = np.asarray(value)
        if array.nbytes <= LARGEST_COMPARED:
            key: Any = (array.dtype.str, array.shape, array.tobytes())
        else:
            key = id(array)
            self._kept.append(array)
        if key not in self._known:
            self._known[key] = self._stored(array)
        return self._known[key]

    def _stored(self, array: np.ndarray) -> str:
        name = self._new_name("constant")
        halved = None
        if self._half_weights and array.dtype == np.float32:
            if array.size >= SMALLEST_HALVED:
                with np.errstate(over="ignore"):
                    halved = array.astype(np.float16)
        if halved is None or not np.isfinite(halved).all():
            self._constants[name] = numpy_helper.from_array(_contiguous(array), name)
            return name
        self._constants[name] = numpy_helper.from_array(_contiguous(halved), name)
        return self.add("Cast", Tensor(name), to=onnx.TensorProto.FLOAT).name

    def _new_name(self, kind: str) -> str:
        self._count += 1
        return f"{kind}_{self._count}"


def _contiguous(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).reshape(array.shape)
