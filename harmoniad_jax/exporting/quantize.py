"""Weights and activations of the dense layers in 8 bits."""

import tempfile
from pathlib import Path

import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic


def quantized(model: onnx.ModelProto, width: int) -> onnx.ModelProto:
    """A model whose dense layers multiply whole numbers.

    Weights have a scale for each output channel, activations one for each call, found while
    it runs: so a batch must be one image. Interpolation, the split and attention stay in
    float32. Weights use 7 of 8 bits, since processors without VNNI add pairs of products in
    16 bits: all processors shall give the same numbers.

    Args:
      model: as `to_onnx` gives it.
      width: D of the features. Dense layers sum over at least a quarter of it, and
        interpolation over fewer cells.
    """
    sizes = {constant.name: tuple(constant.dims) for constant in model.graph.initializer}

    def is_dense(node: onnx.NodeProto) -> bool:
        size = sizes.get(node.input[1], ()) if node.op_type == "MatMul" else ()
        return len(size) == 2 and size[0] >= width // 4

    dense = [node.name for node in model.graph.node if is_dense(node)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "int8.onnx"
        quantize_dynamic(
            model,
            path,
            op_types_to_quantize=["MatMul"],
            nodes_to_quantize=dense,
            per_channel=True,
            reduce_range=True,
            weight_type=QuantType.QInt8,
            extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
        )
        return onnx.load(path)
