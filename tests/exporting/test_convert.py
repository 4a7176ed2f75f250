"""JAX functions as ONNX graphs: every rule, at several batch sizes, against JAX."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest

from harmoniad_jax.errors import UserError
from harmoniad_jax.exporting import graph, rules
from harmoniad_jax.exporting.convert import to_onnx
from harmoniad_jax.model.fsam import depthwise

HEIGHT, WIDTH = 4, 6
RANDOM = np.random.default_rng(0)
WEIGHTS = RANDOM.normal(size=(3, 5)).astype(np.float32)
KERNEL = RANDOM.normal(size=(2, 3, 3, 7)).astype(np.float32)
EDGES = RANDOM.normal(size=(3, 3, 3)).astype(np.float32)
MIXING = RANDOM.normal(size=(3, HEIGHT, WIDTH)).astype(np.float32)


def share(images):
    """Of [B, 4, 6, 3] uint8: floats in [-0.5, 0.5]."""
    return images.astype(jnp.float32) / 255 - 0.5


def positive(images):
    return images.astype(jnp.float32) / 255 + 0.1


# Each a function of [B, 4, 6, 3] float32 in [-0.5, 0.5].
FUNCTIONS = {
    "elementwise": lambda x: jnp.abs(x) + jnp.sign(x) * jnp.exp(x) - jnp.tanh(-x),
    "roots": lambda x: jnp.sqrt(x + 1) + jax.lax.rsqrt(x + 1) + jnp.log(x + 1),
    "logs": lambda x: jnp.log1p(x) + jnp.expm1(x) + jax.nn.sigmoid(x),
    "errors": lambda x: jax.lax.erf(x) + jax.lax.erfc(x),
    "powers": lambda x: x**2 + x**3 + x**5 + (x + 1) ** x + jnp.square(x) / 3,
    "extremes": lambda x: jnp.maximum(x, 0.1) + jnp.minimum(x, x[..., :1]),
    "comparisons": lambda x: jnp.where(
        (x > 0.1) & (x <= 0.4) | ~(x >= -0.2) | (x < -0.4), x, jnp.where(x == 0, 2.0, -x)
    ),
    "inequality": lambda x: jnp.where(x != x[:, :1], x, 9.0),
    "activations": lambda x: jax.nn.elu(x) + jax.nn.gelu(x) + jax.nn.relu(x),
    "softmax": lambda x: jax.nn.softmax(x, axis=-1),
    "reductions": lambda x: x.sum(1) + x.mean((1, 2))[:, None] + x.max(1) - x.min(2)[:, :1],
    "transposed": lambda x: x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1),
    "flat rows": lambda x: (x.reshape(-1, 3) @ WEIGHTS).reshape(-1, HEIGHT, WIDTH, 5),
    "contraction": lambda x: jnp.einsum("bhwd,bhwe->bde", x, x),
    "two axes": lambda x: jnp.einsum("bhwd,dhw->b", x, MIXING)[:, None],
    "constant first": lambda x: jnp.einsum("dhw,bhwd->bhw", MIXING, x),
    "batched constant": lambda x: jnp.einsum("dhv,bhwd->bdvw", MIXING, x),
    "joined": lambda x: jnp.concatenate([x, jnp.ones_like(x[:, :1])], axis=1),
    "every second": lambda x: jax.lax.slice_in_dim(x, 1, 4, 2, axis=1),
    "stacked": lambda x: jnp.stack([x, 2 * x], axis=1).sum(2) + jnp.stack([x, x], 2).sum(1),
    "token of all": lambda x: jnp.broadcast_to(WEIGHTS[None, :1, :3], (x.shape[0], 1, 3)),
    "tiled": lambda x: jnp.tile(x[:, :2], (1, 2, 1, 1)) + jnp.tile(x[:, :1], (1, 4, 1, 1)),
    "places": lambda x: x[:, 1] + x[:, -1] + x[:, 2:3, :, 1:][:, 0, :, :1],
    "split": lambda x: sum(jnp.split(x, 3, axis=-1)),
    "padded": lambda x: jnp.pad(x, ((0, 0), (1, 2), (0, 1), (0, 0)), constant_values=0.5),
    "top": lambda x: jax.lax.top_k(x.reshape(x.shape[0], -1), 5)[0],
    "convolution": lambda x: jax.lax.conv_general_dilated(
        x, KERNEL, (2, 1), [(1, 0), (0, 2)], rhs_dilation=(1, 2),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    ),
    "depthwise": lambda x: depthwise(x, jnp.asarray(EDGES)),
    "barrier": lambda x: jax.lax.optimization_barrier((x, jnp.ones(3)))[1] + x,
    "stopped": lambda x: jax.lax.stop_gradient(x) + jnp.copy(x),
    "enlarged": lambda x: jax.image.resize(x, (x.shape[0], 7, 9, 3), "cubic"),
    "constants": lambda x: x + jnp.fft.rfft(jnp.arange(8.0)).real[:3],
}  # fmt: skip


def converted(function, **options):
    return to_onnx(
        lambda images: (function(share(images)),),
        shape=(HEIGHT, WIDTH),
        outputs=["result"],
        metadata={},
        **options,
    )


def run(model, images):
    session = onnxruntime.InferenceSession(model.SerializeToString())
    (result,) = session.run(None, {"images": images})
    return result


@pytest.mark.parametrize("name", FUNCTIONS)
def test_onnx_runtime_computes_what_jax_computes(name):
    model = converted(FUNCTIONS[name])
    onnx.checker.check_model(model)
    for batch in (1, 3):
        images = RANDOM.integers(0, 256, (batch, HEIGHT, WIDTH, 3), np.uint8)
        expected = np.asarray(FUNCTIONS[name](share(images)))
        found = run(model, images)
        assert found.dtype == expected.dtype
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)


def primitives(jaxpr):
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        for value in equation.params.values():
            if hasattr(value, "jaxpr"):
                yield from primitives(value.jaxpr)


def test_no_rule_is_left_untested():
    (batch,) = jax.export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, HEIGHT, WIDTH, 3), jnp.float32)
    seen = set()
    for function in FUNCTIONS.values():
        seen |= set(primitives(jax.make_jaxpr(function)(images).jaxpr))
    # The same under the names of other versions of JAX.
    alike = {"copy_p", "expand_dims"}
    assert set(rules.RULES) - seen - alike == set()


def test_what_the_images_do_not_decide_is_computed_beforehand():
    kinds = {node.op_type for node in converted(FUNCTIONS["constants"]).graph.node}
    assert kinds <= {"Cast", "Div", "Sub", "Add", "Identity"}


def test_what_no_output_needs_is_left_out():
    def function(x):
        jnp.exp(x) @ np.ones((3, 1000), np.float32)
        return x

    model = converted(function)
    assert {node.op_type for node in model.graph.node} == {"Cast", "Div", "Sub", "Identity"}
    assert model.ByteSize() < 2000


@pytest.mark.parametrize(
    "function",
    [jnp.sort, jnp.cumsum, lambda x: x[jnp.array([0, 0])], lambda x: jnp.exp(1j * x).real],
)
def test_what_no_rule_is_written_for_is_refused_in_one_line(function):
    with pytest.raises(UserError, match="cannot be exported to ONNX") as error:
        converted(function)
    assert "\n" not in str(error.value)


def test_weights_in_half_the_room():
    weights = RANDOM.normal(size=(3, 1000)).astype(np.float32)
    whole, half = (
        converted(lambda x: x @ weights, half_weights=half) for half in (False, True)
    )
    assert half.ByteSize() < 0.6 * whole.ByteSize()
    images = RANDOM.integers(0, 256, (2, HEIGHT, WIDTH, 3), np.uint8)
    difference = np.abs(run(half, images) - run(whole, images)).max()
    assert 0 < difference < 1e-2


def test_weights_beyond_the_range_of_float16_stay():
    weights = np.full((3, 1000), 1e5, np.float32)
    model = converted(lambda x: x @ weights, half_weights=True)
    images = RANDOM.integers(0, 256, (2, HEIGHT, WIDTH, 3), np.uint8)
    np.testing.assert_allclose(run(model, images), share(images) @ weights, rtol=1e-4)


def test_more_than_a_file_holds_is_refused(monkeypatch):
    monkeypatch.setattr(graph, "MOST_BYTES", 5000)
    weights = RANDOM.normal(size=(3, 1000)).astype(np.float32)
    with pytest.raises(UserError, match="ONNX file holds 2 GB.*--precision=float16"):
        converted(lambda x: x @ weights)
