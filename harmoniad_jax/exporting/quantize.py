"""Weights and activations of the dense layers in 8 bits."""

import tempfile
from pathlib import Path

import onnx
from onnx import numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic


def quantized(model: onnx.ModelProto, width: int) -> onnx.ModelProto:
    """A model whose dense layers multiply whole numbers.

    Weights have a scale for each output channel, activations one for each call, found while
    it runs: so a batch must be one image. Smoothing, interpolation, the split and attention
    stay in float32. Weights use 7 of 8 bits, since processors without VNNI add pairs of
    products in 16 bits: all processors shall give the same numbers.

    Args:
      model: as `to_onnx` gives it.
      width: D of the features.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "int8.onnx"
        quantize_dynamic(
            model,
            path,
            op_types_to_quantize=["MatMul"],
            nodes_to_quantize=dense_layers(model, width),
            per_channel=True,
            reduce_range=True,
            weight_type=QuantType.QInt8,
            extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
        )
        return onnx.load(path)


def dense_layers(model: onnx.ModelProto, width: int) -> list[str]:
    """The products with trained weights, by the names of their nodes.

    They sum over at least a quarter of `width`, and interpolation over fewer cells. Trained
    weights have negative numbers, and matrices that smooth have none.
    """
    constants = {constant.name: constant for constant in model.graph.initializer}

    def is_dense(node: onnx.NodeProto) -> bool:
        weights = constants.get(node.input[1]) if node.op_type == "MatMul" else None
        if weights is None or len(weights.dims) != 2 or weights.dims[0] < width // 4:
            return False
        return bool((numpy_helper.to_array(weights) < 0).any())

    return [node.name for node in model.graph.node if is_dense(node)]
