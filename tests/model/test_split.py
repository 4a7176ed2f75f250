"""The split against a cosine transform, and what it promises about bands and borders."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.fft
import scipy.special

from harmoniad_jax.model import split
from harmoniad_jax.model.split import (
    GATES,
    FrequencySplit,
    low_pass_gain,
    radial_frequency,
)

# One odd and one even axis.
GRID = (5, 6)

low_pass = jax.jit(split.low_pass, static_argnames=("gate", "mirror"))


def random_features(grid, batch=2, groups=2, width=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(batch, groups, *grid, width)).astype(np.float32)


def both_groups(value, groups=2):
    return jnp.full((groups,), value, jnp.float32)


def reference_gain(radius, cutoff, softness, gate):
    if gate == "sigmoid":
        at_zero = scipy.special.expit(cutoff / softness)
        return scipy.special.expit((cutoff - radius) / softness) / at_zero
    if gate == "gaussian":
        return 2.0 ** -((radius / cutoff) ** 2)
    if gate == "butterworth":
        return 1.0 / (1.0 + (radius / cutoff) ** 4)
    return np.where(radius <= cutoff, 1.0, 0.0)


def reference_low_pass(features, cutoff, softness, gate, mirror):
    """A mirrored map has no sines: its transform is the DCT-II, whose k-th cosine has
    k / h half periods a cell, k / h of Nyquist."""
    features = features.astype(np.float64)
    height, width = features.shape[2:4]
    if mirror:
        vertical = np.arange(height)[:, None] / height
        horizontal = np.arange(width)[None] / width
        gain = reference_gain(np.hypot(vertical, horizontal), cutoff, softness, gate)
        spectrum = scipy.fft.dctn(features, type=2, axes=(2, 3)) * gain[..., None]
        return scipy.fft.idctn(spectrum, type=2, axes=(2, 3))
    vertical = 2 * np.fft.fftfreq(height)[:, None]
    horizontal = 2 * np.fft.fftfreq(width)[None]
    gain = reference_gain(np.hypot(vertical, horizontal), cutoff, softness, gate)
    spectrum = np.fft.fft2(features, axes=(2, 3)) * gain[..., None]
    low = np.fft.ifft2(spectrum, axes=(2, 3))
    np.testing.assert_allclose(low.imag, 0, atol=1e-12)
    return low.real


@pytest.mark.parametrize("mirror", [True, False])
@pytest.mark.parametrize("gate", GATES)
def test_equals_the_cosine_transform(gate, mirror):
    features = random_features(GRID)
    low = low_pass(features, both_groups(0.3), both_groups(0.1), gate=gate, mirror=mirror)
    expected = reference_low_pass(features, 0.3, 0.1, gate, mirror)
    assert low.dtype == jnp.float32
    np.testing.assert_allclose(low, expected, atol=3e-6)


@pytest.mark.parametrize("mirror", [True, False])
@pytest.mark.parametrize("gate", GATES)
def test_bands_sum_to_the_input(gate, mirror):
    features = 100 * random_features(GRID)
    split = FrequencySplit(gate=gate, mirror=mirror, learnable=gate != "ideal")
    (low, high), _ = jax.jit(split.init_with_output)(jax.random.key(0), features)
    # The subtraction and the sum round once each, and by nothing else.
    tolerance = 2 * np.finfo(np.float32).eps * np.abs(features).max()
    np.testing.assert_allclose(low + high, features, rtol=0, atol=tolerance)
    # Neither band is the whole.
    assert np.abs(low).max() > 1 and np.abs(high).max() > 1


@pytest.mark.parametrize("mirror", [True, False])
@pytest.mark.parametrize("gate", GATES)
def test_a_constant_is_all_low(gate, mirror):
    constant = np.zeros((2, 2, *GRID, 3), np.float32) + np.float32([3.0, -0.5, 0.0])
    for cutoff, softness in [(0.02, 0.5), (0.25, 0.05), (0.9, 1e-3)]:
        settings = both_groups(cutoff), both_groups(softness)
        low = low_pass(constant, *settings, gate=gate, mirror=mirror)
        np.testing.assert_allclose(low, constant, atol=2e-6)


@pytest.mark.parametrize("softness", [1e-3, 0.05, 1.0])
@pytest.mark.parametrize("cutoff", [0.01, 0.25, 0.99])
@pytest.mark.parametrize("gate", GATES)
def test_gain_falls_from_one_to_zero(gate, cutoff, softness):
    radius = np.linspace(0, np.sqrt(2), 301, dtype=np.float32)
    gain = np.asarray(low_pass_gain(radius, cutoff, softness, gate))
    assert gain[0] == 1.0
    assert gain.min() >= 0.0 and gain.max() <= 1.0
    assert (np.diff(gain) <= 1e-7).all()
    np.testing.assert_allclose(
        gain, reference_gain(radius.astype(float), cutoff, softness, gate), atol=2e-4
    )


@pytest.mark.parametrize("gate", ["sigmoid", "gaussian", "butterworth"])
def test_gain_is_about_one_half_at_the_cutoff(gate):
    assert float(low_pass_gain(0.3, 0.3, 0.05, gate)) == pytest.approx(0.5, abs=0.01)


def test_unknown_gate():
    with pytest.raises(ValueError, match="'brick'.*sigmoid.*ideal"):
        low_pass_gain(jnp.zeros(()), 0.3, 0.05, "brick")


@pytest.mark.parametrize("size", [4, 5, 8, 9])
def test_radial_frequency_is_in_units_of_nyquist(size):
    radius = np.asarray(radial_frequency(size, size))
    assert radius.shape == (size, size // 2 + 1)
    assert radius[0, 0] == 0
    # One period in n cells is 2 / n of Nyquist; of an even axis the last is Nyquist's.
    np.testing.assert_allclose(radius[0], np.arange(size // 2 + 1) * 2 / size, rtol=1e-6)
    np.testing.assert_allclose(radius[1, 0], 2 / size, rtol=1e-6)
    np.testing.assert_allclose(radius[-1, 0], 2 / size, rtol=1e-6)
    assert radius.max() <= np.float32(np.sqrt(2))


def test_is_linear():
    first, second = random_features(GRID), random_features(GRID, seed=1)
    cutoff, softness = both_groups(0.3), both_groups(0.1)
    together = low_pass(2.0 * first - 3.0 * second, cutoff, softness)
    apart = 2.0 * low_pass(first, cutoff, softness) - 3.0 * low_pass(
        second, cutoff, softness
    )
    np.testing.assert_allclose(together, apart, atol=5e-6)


@pytest.mark.parametrize("mirror", [True, False])
def test_ideal_gate_is_an_orthogonal_projection(mirror):
    features = random_features(GRID)
    settings = (both_groups(0.4), both_groups(0.1))
    low = low_pass(features, *settings, gate="ideal", mirror=mirror)
    again = low_pass(low, *settings, gate="ideal", mirror=mirror)
    np.testing.assert_allclose(again, low, atol=3e-6)
    product = (low * (features - low)).sum((2, 3))
    np.testing.assert_allclose(product, 0, atol=2e-5)


@pytest.mark.parametrize("mirror", [True, False])
def test_mirror_keeps_borders_apart(mirror):
    """A defect at a border must not show at the opposite one."""
    size = 15
    places, opposite = [(0, 7), (7, 0), (0, 0)], [(-1, 7), (7, -1), (-1, -1)]
    features = np.zeros((3, 1, size, size, 1), np.float32)
    for image, place in enumerate(places):
        features[image, 0, *place] = 1.0
    low = low_pass(features, both_groups(0.25, 1), both_groups(0.05, 1), mirror=mirror)
    low = np.abs(low[:, 0, :, :, 0])
    for image, (here, there) in enumerate(zip(places, opposite, strict=True)):
        peak = low[image].max()
        assert low[image][here] == peak
        share = low[image][there] / peak
        # Without it the two borders are neighbours.
        assert share < 0.02 if mirror else share > 0.5


def test_groups_have_their_own_cutoff():
    features = np.repeat(random_features(GRID, groups=1), 2, axis=1)
    cutoff, softness = jnp.array([0.2, 0.7]), jnp.array([0.05, 0.2])
    low = low_pass(features, cutoff, softness)
    for group in range(2):
        alone = low_pass(
            features[:, group : group + 1],
            cutoff[group : group + 1],
            softness[group : group + 1],
        )
        np.testing.assert_allclose(low[:, group], alone[:, 0], atol=1e-6)
    # A higher cut-off leaves more in the low band.
    energy = np.square(low).sum((0, 2, 3, 4))
    assert energy[1] > 1.5 * energy[0]


def test_parameters_start_at_the_settings():
    split = FrequencySplit(cutoff=0.4, softness=0.03, learnable=True)
    params = split.init(jax.random.key(0), random_features(GRID, groups=3))["params"]
    assert set(params) == {"cutoff_logit", "log_softness"}
    np.testing.assert_allclose(jax.nn.sigmoid(params["cutoff_logit"]), [0.4] * 3, rtol=1e-6)
    np.testing.assert_allclose(jnp.exp(params["log_softness"]), [0.03] * 3, rtol=1e-6)


@pytest.mark.parametrize("mirror", [True, False])
def test_fixed_gate_has_no_parameters_and_splits_alike(mirror):
    features = random_features(GRID)
    learnable = FrequencySplit(cutoff=0.4, softness=0.03, mirror=mirror, learnable=True)
    fixed = FrequencySplit(cutoff=0.4, softness=0.03, mirror=mirror)
    assert not jax.tree.leaves(fixed.init(jax.random.key(0), features))
    expected = learnable.apply(learnable.init(jax.random.key(0), features), features)
    np.testing.assert_allclose(fixed.apply({}, features)[0], expected[0], atol=1e-6)


@pytest.mark.parametrize(
    ("gate", "mirror"), [("sigmoid", False), ("sigmoid", True), ("ideal", False)]
)
def test_the_matrix_is_the_transform(gate, mirror):
    features = random_features(GRID)
    settings = {"gate": gate, "cutoff": 0.4, "mirror": mirror}
    by_matrix, by_transform = (
        FrequencySplit(**settings, as_matrix=as_matrix).apply({}, features)
        for as_matrix in (True, False)
    )
    np.testing.assert_allclose(by_matrix[0], by_transform[0], atol=2e-6)
    np.testing.assert_allclose(by_matrix[1], by_transform[1], atol=2e-6)


def test_the_matrix_has_the_gradient_of_the_transform():
    features = random_features(GRID)
    weights = random_features(GRID, seed=1)

    def gradient(as_matrix):
        model = FrequencySplit(cutoff=0.4, learnable=True, as_matrix=as_matrix)
        params = model.init(jax.random.key(0), features)
        return jax.grad(lambda params: (weights * model.apply(params, features)[0]).sum())(
            params
        )

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
        *(gradient(as_matrix) for as_matrix in (True, False)),
    )


@pytest.mark.parametrize(
    ("backend", "side", "transforms"),
    [("cpu", 4, True), ("gpu", 4, False), ("tpu", 32, False), ("gpu", 33, True)],
)
def test_accelerators_multiply_unless_the_matrix_is_large(
    monkeypatch, backend, side, transforms
):
    monkeypatch.setattr(split.jax, "default_backend", lambda: backend)
    features = jax.ShapeDtypeStruct((2, 1, side, side, 3), np.float32)
    program = jax.make_jaxpr(lambda maps: FrequencySplit().apply({}, maps))(features)
    # The matrix itself is made by transforms of unit maps.
    shapes = [e.invars[0].aval.shape for e in equations(program.jaxpr, "fft")]
    assert ((2, 1, side, side, 3) in shapes or (2, 1, 3, side, side) in shapes) == (
        transforms
    )


def equations(jaxpr, name):
    """Those of a primitive, also within others."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == name:
            yield equation
        for inner in jax.core.jaxprs_in_params(equation.params):
            yield from equations(inner, name)


def test_gradient_reaches_cutoff_and_softness_of_each_group():
    features = random_features(GRID)
    split = FrequencySplit(learnable=True)
    variables = split.init(jax.random.key(0), features)

    def energy(params):
        low, _ = split.apply({"params": params}, features)
        return jnp.square(low[:, 0]).sum()

    gradient = jax.jit(jax.grad(energy))(variables["params"])
    for name in ("cutoff_logit", "log_softness"):
        assert gradient[name][0] != 0, name
        assert gradient[name][1] == 0, name
    # More of the energy is low where the cut-off rises.
    assert gradient["cutoff_logit"][0] > 0


@pytest.mark.parametrize("gate", ["gaussian", "butterworth"])
def test_gradient_is_finite_at_zero_frequency(gate):
    """The radius is zero there, and a root or power of it must not blow up."""
    features = random_features(GRID)
    split = FrequencySplit(gate=gate, learnable=True)
    variables = split.init(jax.random.key(0), features)

    def energy(variables, features):
        return jnp.square(split.apply(variables, features)[0]).sum()

    gradients = jax.jit(jax.grad(energy, argnums=(0, 1)))(variables, features)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    assert (np.asarray(gradients[0]["params"]["cutoff_logit"]) > 0).all()
