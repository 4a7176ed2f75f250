"""The frozen encoder against the library's own models, formats, sides and errors."""

import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import flax.serialization
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import transformers

from harmoniad_jax.errors import UserError
from harmoniad_jax.model.encoders.chroma import smooth_chroma
from harmoniad_jax.model.encoders.encoder import (
    describe_encoder,
    describe_untrained_clip,
    load_encoder,
)
from harmoniad_jax.model.encoders.positions import resize_position_embedding
from harmoniad_jax.model.encoders.registry import FAMILIES
from harmoniad_jax.model.encoders.weights import hash_params

SIDE, PATCH, WIDTH, DEPTH = 16, 4, 8, 3
TAPS, GROUPS = (1, 2, 3), ((1, 2), (3,))
MEAN, STD = [0.1, 0.4, 0.7], [0.2, 0.3, 0.5]
TORCH_FIXTURE = Path(__file__).with_name("position_embedding_torch.json")
VISION = {
    "hidden_size": WIDTH,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": 2,
    "patch_size": PATCH,
    "image_size": SIDE,
}


class Checkpoint(NamedTuple):
    """A tiny random model of the library, and the folder that it was saved to."""

    folder: Path
    model: transformers.FlaxPreTrainedModel
    params: Any  # the vision parameters


def random_params(shapes, seed=0):
    """Every parameter random, the biases and scales too; none keeps its default."""
    rng = np.random.default_rng(seed)
    flat = flax.traverse_util.flatten_dict(shapes)
    flat = {
        name: rng.normal(float(name[-1] == "scale"), 0.3, leaf.shape).astype(np.float32)
        for name, leaf in flat.items()
    }
    return flax.traverse_util.unflatten_dict(flat)


def vision_model(family, **changes):
    settings = VISION | changes
    if family == "clip":
        config = transformers.CLIPVisionConfig(intermediate_size=16, **settings)
        return transformers.FlaxCLIPVisionModel(config, _do_init=False)
    config = transformers.Dinov2Config(mlp_ratio=2, **settings)
    return transformers.FlaxDinov2Model(config, _do_init=False)


def init_shapes(model, *inputs):
    return jax.eval_shape(model.module.init, jax.random.key(0), *inputs)["params"]


def save_preprocessing(folder):
    settings = {"image_mean": MEAN, "image_std": STD, "do_normalize": True}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))


@pytest.fixture(scope="module", params=["clip", "dinov2"])
def checkpoint(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    model = vision_model(request.param)
    params = random_params(init_shapes(model, jnp.zeros((1, SIDE, SIDE, 3))))
    model.save_pretrained(folder, params=params)
    save_preprocessing(folder)
    return Checkpoint(folder, model, params)


def copy_config(checkpoint, folder):
    for name in ("config.json", "preprocessor_config.json"):
        (folder / name).write_bytes((checkpoint.folder / name).read_bytes())
    return folder


def write_safetensors(folder, params, prefix="", dtype=np.float32, **extra):
    """Writes Flax parameters under the names and in the layout of PyTorch."""
    flat = flax.traverse_util.flatten_dict(params)
    tensors = dict(extra)
    for name, leaf in flat.items():
        last = {"kernel": "weight", "scale": "weight", "embedding": "weight"}
        if name[-1] == "kernel":
            # (in, out) -> (out, in); (row, column, in, out) -> (out, in, row, column).
            leaf = leaf.transpose(3, 2, 0, 1) if leaf.ndim == 4 else leaf.T
        name = (*name[:-1], last.get(name[-1], name[-1]))
        tensors[prefix + ".".join(name)] = np.ascontiguousarray(leaf, dtype)
    path = folder / "model.safetensors"
    safetensors.numpy.save_file(tensors, path, metadata={"format": "pt"})
    return path


def load(folder, image_side=SIDE, **kwargs):
    settings = {"taps": TAPS, "groups": 2} | kwargs
    return load_encoder(describe_encoder(str(folder)), image_side=image_side, **settings)


def images(side=SIDE, batch=2):
    rng = np.random.default_rng(1)
    return rng.integers(0, 256, (batch, side, side, 3), np.uint8)


def encode(encoder, batch):
    return jax.device_get(jax.jit(encoder.encode)(encoder.params, batch))


def library_features(model, params, batch):
    """Taps [B, G, N, D] and class token from the library's public call, in numpy."""
    pixels = (batch / 255.0 - np.array(MEAN)) / np.array(STD)

    @jax.jit
    def call(params, pixels):
        return model(pixels, params=params, output_hidden_states=True).hidden_states

    hidden = call(params, pixels.transpose(0, 3, 1, 2).astype(np.float32))
    hidden = [np.asarray(state, np.float64) for state in hidden]
    assert len(hidden) == DEPTH + 1
    normal = [
        (state - state.mean(-1, keepdims=True))
        / np.sqrt(state.var(-1, keepdims=True) + 1e-6)
        for state in hidden
    ]
    taps = [np.mean([normal[tap][:, 1:] for tap in group], axis=0) for group in GROUPS]
    return np.stack(taps, axis=1), normal[DEPTH][:, 0]


def assert_same_tree(first, second):
    first = flax.traverse_util.flatten_dict(first, sep="/")
    second = flax.traverse_util.flatten_dict(second, sep="/")
    assert first.keys() == second.keys()
    for name, leaf in first.items():
        np.testing.assert_array_equal(leaf, second[name], err_msg=name)


def test_taps_are_the_librarys_hidden_states(checkpoint):
    encoder = load(checkpoint.folder)
    assert encoder.groups == GROUPS
    got = encode(encoder, images())
    taps, class_token = library_features(checkpoint.model, checkpoint.params, images())
    expected_shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), got)
    declared = encoder.feature_shapes(2)
    assert expected_shapes == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), declared)
    assert got.patches.shape == (2, 2, 4, 4, WIDTH)
    np.testing.assert_allclose(got.patches.reshape(taps.shape), taps, atol=2e-5)
    np.testing.assert_allclose(got.class_token, class_token, atol=2e-5)
    # Different taps are different features, and so are different images.
    assert np.abs(got.patches[:, 0] - got.patches[:, 1]).max() > 0.1
    assert np.abs(got.patches[0] - got.patches[1]).max() > 0.1


def test_patches_keep_their_places(checkpoint):
    """A change of one patch of the image shows most at its own row and column."""
    encoder = load(checkpoint.folder, taps=(1,), groups=1)
    batch = np.repeat(images(batch=1), 2, axis=0)
    batch[1, PATCH : 2 * PATCH, 2 * PATCH : 3 * PATCH] = [255, 0, 255]
    patches = encode(encoder, batch).patches[:, 0]
    change = np.abs(patches[1] - patches[0]).sum(-1)
    assert np.unravel_index(change.argmax(), change.shape) == (1, 2)


@pytest.mark.parametrize("image_side", [28])
def test_other_image_sides(checkpoint, image_side):
    """Equal to the library's model at that side, with position embeddings resized."""
    encoder = load(checkpoint.folder, image_side)
    grid = image_side // PATCH
    assert encoder.grid == grid
    got = encode(encoder, images(image_side))
    assert got.patches.shape == (2, 2, grid, grid, WIDTH)

    family = "clip" if "vision_model" in checkpoint.params else "dinov2"
    model = vision_model(family, image_size=image_side)
    path = FAMILIES[family].position_embedding
    flat = flax.traverse_util.flatten_dict(checkpoint.params)
    resized = resize_position_embedding(flat[path].reshape(-1, WIDTH), (grid, grid))
    flat[path] = resized if family == "clip" else resized[None]
    params = flax.traverse_util.unflatten_dict(flat)
    taps, class_token = library_features(model, params, images(image_side))
    np.testing.assert_allclose(got.patches.reshape(taps.shape), taps, atol=2e-5)
    np.testing.assert_allclose(got.class_token, class_token, atol=2e-5)
    # The identity of the weights is that of the checkpoint, whatever the side.
    assert encoder.weight_hash == load(checkpoint.folder).weight_hash


def test_images_that_are_not_square(checkpoint):
    """Attention knows no places: a 2 x 8 grid is a 4 x 4 one with its embeddings.

    So the library's square model, on the same patches in rows of four, is the oracle.
    """
    wide = np.random.default_rng(2).integers(0, 256, (2, 2 * PATCH, 8 * PATCH, 3), np.uint8)
    encoder = load(checkpoint.folder).for_shapes([wide.shape[1:3], (SIDE, SIDE)])
    got = encode(encoder, wide)
    assert got.patches.shape == encoder.feature_shapes(2, wide.shape[1:3]).patches.shape
    assert got.patches.shape == (2, 2, 2, 8, WIDTH)

    tiles = wide.reshape(2, 2, PATCH, 8, PATCH, 3).swapaxes(2, 3)
    tiles = tiles.reshape(2, 4, 4, PATCH, PATCH, 3).swapaxes(2, 3)
    square = tiles.reshape(2, SIDE, SIDE, 3)
    family = "clip" if "vision_model" in checkpoint.params else "dinov2"
    path = FAMILIES[family].position_embedding
    flat = flax.traverse_util.flatten_dict(checkpoint.params)
    resized = resize_position_embedding(flat[path].reshape(-1, WIDTH), (2, 8))
    flat[path] = resized.reshape(flat[path].shape)
    params = flax.traverse_util.unflatten_dict(flat)
    taps, class_token = library_features(checkpoint.model, params, square)
    np.testing.assert_allclose(got.patches.reshape(taps.shape), taps, atol=2e-5)
    np.testing.assert_allclose(got.class_token, class_token, atol=2e-5)
    # Squares are encoded as ever, and with the very same weights.
    plain = load(checkpoint.folder)
    for ours, before in zip(
        encode(encoder, images()), encode(plain, images()), strict=True
    ):
        np.testing.assert_array_equal(ours, before)
    assert encoder.weight_hash == plain.weight_hash
    assert plain.for_shapes([(SIDE, SIDE)]) is plain


def test_a_shape_that_the_encoder_was_not_fitted_to_is_refused(checkpoint):
    encoder = load(checkpoint.folder).for_shapes([(2 * PATCH, 8 * PATCH)])
    images = np.zeros((1, 8 * PATCH, 2 * PATCH, 3), np.uint8)
    with pytest.raises(KeyError, match="8x2"):
        encode(encoder, images)


def test_position_embeddings_are_resized_along_each_axis():
    """What does not change along an axis does not change along it afterwards."""
    rows = np.repeat(np.arange(5.0), 5)
    embedding = np.stack([rows, rows.reshape(5, 5).T.ravel()], axis=-1)
    embedding = np.concatenate([[[9.0, 8.0]], embedding]).astype(np.float32)
    resized = resize_position_embedding(embedding, (3, 7))
    assert resized.shape == (1 + 3 * 7, 2)
    np.testing.assert_array_equal(resized[0], [9, 8])
    grid = resized[1:].reshape(3, 7, 2)
    assert (np.ptp(grid[..., 0], axis=1) < 1e-5).all()
    assert (np.ptp(grid[..., 1], axis=0) < 1e-5).all()
    square = [resize_position_embedding(embedding, (n, n)) for n in (3, 7)]
    np.testing.assert_allclose(
        grid[:, 0, 0], square[0][1:].reshape(3, 3, 2)[:, 0, 0], atol=1e-5
    )
    np.testing.assert_allclose(
        grid[0, :, 1], square[1][1:].reshape(7, 7, 2)[0, :, 1], atol=1e-5
    )


def test_the_layout_is_that_of_the_module(checkpoint):
    description = describe_encoder(str(checkpoint.folder))
    assert description.depth > 1
    family, config = description.family, description.hf_config
    images = np.zeros((1, *2 * [description.architecture.image_side], 3), np.float32)
    init = family.module(config).init
    whole = jax.eval_shape(init, jax.random.key(0), images)["params"]
    assert family.layout(config) == whole
    assert config.num_hidden_layers == description.depth


@pytest.mark.parametrize("case", [0, 1], ids=["4_to_7", "7_to_3"])
def test_position_embeddings_are_resized_as_in_pytorch(case):
    case = json.loads(TORCH_FIXTURE.read_text())["cases"][case]
    source, target = case["source"], case["target"]
    class_token = np.array([[7.0, 8.0, 9.0]], np.float32)
    grid = np.array(case["grid"], np.float32).reshape(source**2, 3)
    embedding = np.concatenate([class_token, grid])
    resized = resize_position_embedding(embedding, (target, target))
    assert resized.dtype == np.float32
    np.testing.assert_array_equal(resized[:1], class_token)
    expected = np.array(case["resized"]).reshape(target**2, 3)
    np.testing.assert_allclose(resized[1:], expected, atol=2e-6)


def test_position_embeddings_of_the_same_grid_are_kept():
    embedding = np.random.default_rng(0).normal(size=(17, 3)).astype(np.float32)
    np.testing.assert_array_equal(resize_position_embedding(embedding, (4, 4)), embedding)


def test_constant_position_embeddings_stay_constant():
    resized = resize_position_embedding(np.full((26, 2), 3.0, np.float32), (9, 9))
    np.testing.assert_allclose(resized, np.full((82, 2), 3.0), rtol=1e-6)


def test_both_formats_give_the_same_weights(checkpoint, tmp_path):
    flax_format = load(checkpoint.folder)
    assert_same_tree(flax_format.params, checkpoint.params)
    assert flax_format.weight_hash == hash_params(checkpoint.params)

    # Without Flax weights the PyTorch ones are read.
    copy_config(checkpoint, tmp_path)
    write_safetensors(tmp_path, checkpoint.params)
    torch_format = load(tmp_path)
    assert_same_tree(torch_format.params, checkpoint.params)
    assert torch_format.weight_hash == flax_format.weight_hash


def test_checkpoint_with_a_task_head(tmp_path):
    """PyTorch models with a head carry their encoder under a prefix."""
    model = vision_model("dinov2")
    params = random_params(init_shapes(model, jnp.zeros((1, SIDE, SIDE, 3))))
    model.config.save_pretrained(tmp_path)
    head = {"classifier.weight": np.ones((5, 2 * WIDTH), np.float32)}
    write_safetensors(tmp_path, params, prefix="dinov2.", **head)
    assert_same_tree(load(tmp_path).params, params)


@pytest.fixture(scope="module")
def full_clip(tmp_path_factory):
    """A CLIP checkpoint with its text tower, as the published ones are."""
    folder = tmp_path_factory.mktemp("full_clip")
    text = {
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 11,
        "max_position_embeddings": 5,
    }
    config = transformers.CLIPConfig(
        text_config=text, vision_config={"intermediate_size": 16, **VISION}
    )
    model = transformers.FlaxCLIPModel(config, _do_init=False)
    tokens = jnp.ones((1, 5), jnp.int32)
    shapes = init_shapes(model, tokens, jnp.zeros((1, SIDE, SIDE, 3)), tokens, tokens)
    params = random_params(shapes)
    model.save_pretrained(folder, params=params)
    return Checkpoint(folder, model, params)


@pytest.mark.parametrize("file", ["flax_model.msgpack", "model.safetensors"])
def test_full_clip_gives_its_vision_tower(full_clip, tmp_path, file):
    folder = full_clip.folder
    if file == "model.safetensors":
        (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
        # Published CLIP checkpoints hold these integer buffers too.
        buffers = {
            "text_model.embeddings.position_ids": np.arange(5)[None],
            "vision_model.embeddings.position_ids": np.arange(17)[None],
        }
        write_safetensors(tmp_path, full_clip.params, **buffers)
        folder = tmp_path
    assert json.loads((folder / "config.json").read_text())["model_type"] == "clip"
    assert (folder / file).is_file()
    encoder = load(folder)
    vision = {"vision_model": full_clip.params["vision_model"]}
    assert_same_tree(encoder.params, vision)
    # No preprocessor_config.json there: the statistics that CLIP was trained with.
    assert encoder.image_mean == FAMILIES["clip"].image_mean
    assert encoder.image_std == FAMILIES["clip"].image_std
    if file == "flax_model.msgpack":
        patches = encode(encoder, images()).patches
        assert patches.shape == (2, 2, 4, 4, WIDTH)
        assert np.isfinite(patches).all()


@pytest.mark.parametrize("file", ["flax_model.msgpack", "model.safetensors"])
def test_half_precision_weights_become_float32(checkpoint, tmp_path, file):
    copy_config(checkpoint, tmp_path)
    half = jax.tree.map(lambda leaf: leaf.astype(np.float16), checkpoint.params)
    if file == "model.safetensors":
        write_safetensors(tmp_path, half, dtype=np.float16)
    else:
        (tmp_path / file).write_bytes(flax.serialization.to_bytes(half))
    encoder = load(tmp_path)
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(encoder.params)}
    assert dtypes == {np.dtype(np.float32)}
    full = jax.tree.map(lambda leaf: leaf.astype(np.float32), half)
    assert_same_tree(encoder.params, full)
    assert encoder.weight_hash == hash_params(full)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(jnp.float32, 1e-6), (jnp.bfloat16, 0.02)]
)
def test_fused_attention_is_the_librarys(checkpoint, dtype, tolerance):
    """The same features from another program."""
    batch = images()
    encoders = [
        load(checkpoint.folder, dtype=dtype, attention=name)
        for name in ("library", "fused")
    ]
    library, fused = (encode(encoder, batch) for encoder in encoders)
    for got, expected in zip(fused, library, strict=True):
        error = np.linalg.norm(got - expected) / np.linalg.norm(expected)
        assert error < tolerance
    programs = {
        str(jax.make_jaxpr(encoder.encode)(encoder.params, batch)) for encoder in encoders
    }
    assert len(programs) == 2


def test_recentring_subtracts_the_class_token_from_all_patches(checkpoint):
    one_block = {"taps": (DEPTH,), "groups": 1}
    plain = encode(load(checkpoint.folder, **one_block), images())
    got = encode(load(checkpoint.folder, recentre="class_token", **one_block), images())
    np.testing.assert_array_equal(got.class_token, plain.class_token)
    expected = plain.patches - plain.class_token[:, None, None, None]
    np.testing.assert_allclose(got.patches, expected, atol=1e-5)


def test_the_encoder_sees_images_whose_colour_is_smoothed(checkpoint):
    encoder = load(checkpoint.folder)
    seen = smooth_chroma(jnp.asarray(images(), jnp.float32), 2.0)
    got = encode(load(checkpoint.folder, chroma_sigma=2.0), images())
    np.testing.assert_allclose(got.patches, encode(encoder, seen).patches, atol=1e-4)
    assert np.abs(got.patches - encode(encoder, images()).patches).max() > 0.1


def test_bfloat16_compute_gives_close_float32_features(checkpoint):
    encoder = load(checkpoint.folder, dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(encoder.params)} == {
        jnp.dtype(jnp.bfloat16)
    }
    single = load(checkpoint.folder)
    assert encoder.weight_hash == single.weight_hash
    got, expected = encode(encoder, images()), encode(single, images())
    for low, full in zip(got, expected, strict=True):
        assert low.dtype == np.float32
        error = np.linalg.norm(low - full) / np.linalg.norm(full)
        assert 0 < error < 0.05


def test_weight_hash_sees_every_change(checkpoint):
    digest = hash_params(checkpoint.params)
    flat = flax.traverse_util.flatten_dict(checkpoint.params)
    assert digest == hash_params(flax.traverse_util.unflatten_dict(dict(flat)))
    name, leaf = next(iter(flat.items()))
    nudged = leaf.copy()
    nudged.flat[0] = np.nextafter(nudged.flat[0], np.float32(9))
    for change in ({name: nudged}, {name: leaf.astype(np.float16)}, {("other",): leaf}):
        assert digest != hash_params(flax.traverse_util.unflatten_dict(flat | change))


def test_image_statistics_are_the_checkpoints(checkpoint, tmp_path):
    encoder = load(checkpoint.folder)
    assert encoder.image_mean == tuple(MEAN)
    assert encoder.image_std == tuple(STD)
    (tmp_path / "config.json").write_bytes((checkpoint.folder / "config.json").read_bytes())
    write_safetensors(tmp_path, checkpoint.params)
    family = encoder.description.family
    assert load(tmp_path).image_mean == family.image_mean
    assert load(tmp_path).image_std == family.image_std


def test_image_statistics_change_the_features(checkpoint, tmp_path):
    """Pixels p enter the module as (p / 255 - mean) / std, channel by channel."""
    seen = []

    class Spy:
        dtype = jnp.float32

        def apply(self, variables, pixels, **kwargs):
            seen.append(pixels)
            hidden = jnp.zeros((len(pixels), 17, WIDTH))
            return type("Output", (), {"hidden_states": [hidden] * (DEPTH + 1)})

    encoder = load(checkpoint.folder)
    object.__setattr__(encoder, "module", Spy())
    encoder.encode(encoder.params, images())
    expected = (images() / 255.0 - np.array(MEAN)) / np.array(STD)
    np.testing.assert_allclose(seen[0], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("depth", "expected"),
    [(12, (3, 4, 5, 6, 7, 8, 9, 10)), (24, (5, 7, 9, 11, 13, 15, 17, 19)), (2, (1, 2))],
)
def test_default_taps(depth, expected):
    description = describe_untrained_clip(
        width=8, depth=depth, heads=1, patch=8, image_side=32
    )
    assert description.default_taps == expected


def test_default_image_side(checkpoint):
    description = describe_encoder(str(checkpoint.folder))
    native = description.hf_config.model_type.startswith("clip")
    assert description.default_image_side == (SIDE if native else 16 * PATCH)


def test_untrained_encoder_needs_no_files():
    description = describe_untrained_clip(width=8, depth=1, heads=2, patch=8, image_side=16)
    encoder = load_encoder(description, image_side=32, taps=(1,), groups=1)
    patches = encode(encoder, images(32)).patches
    assert patches.shape == (2, 1, 4, 4, 8)
    assert np.abs(patches[0] - patches[1]).max() > 0.1


@pytest.mark.parametrize(
    "name", ["nobody/no-such-encoder", "no-such-encoder", "no/such/folder/here"]
)
def test_unknown_name_points_to_a_local_folder(name):
    start = time.monotonic()
    with pytest.raises(UserError, match="local folder") as caught:
        describe_encoder(name)
    assert time.monotonic() - start < 10
    assert name in str(caught.value)
    assert "config.json" in str(caught.value)
    assert "--config.encoder.name=" in str(caught.value)


@pytest.mark.parametrize("content", [None, "", "{", "[]", '"clip"'])
def test_folder_without_a_readable_config(tmp_path, content):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match="config.json") as caught:
        describe_encoder(str(tmp_path))
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("config", [{"model_type": "vit"}, {}])
def test_unknown_architecture(tmp_path, config):
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="clip.*dinov2"):
        describe_encoder(str(tmp_path))


def test_unreadable_preprocessing(checkpoint, tmp_path):
    copy_config(checkpoint, tmp_path)
    write_safetensors(tmp_path, checkpoint.params)
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0.5')
    with pytest.raises(UserError, match="preprocessor_config.json"):
        load(tmp_path)


def test_folder_without_weights(checkpoint, tmp_path):
    copy_config(checkpoint, tmp_path)
    (tmp_path / "tf_model.h5").write_bytes(b"unread")
    with pytest.raises(UserError, match="flax_model.msgpack.*model.safetensors"):
        load(tmp_path)


def damage(content, how):
    if how == "truncated":
        return content[: len(content) // 2]
    if how == "empty":
        return b""
    return b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"


@pytest.mark.parametrize("file", ["flax_model.msgpack", "model.safetensors"])
@pytest.mark.parametrize("how", ["truncated", "empty", "lfs_pointer"])
def test_damaged_weights_name_their_file(checkpoint, tmp_path, file, how):
    copy_config(checkpoint, tmp_path)
    if file == "model.safetensors":
        content = write_safetensors(tmp_path, checkpoint.params).read_bytes()
    else:
        content = (checkpoint.folder / file).read_bytes()
    (tmp_path / file).write_bytes(damage(content, how))
    with pytest.raises(UserError) as caught:
        load(tmp_path)
    assert str(tmp_path / file) in str(caught.value)


@pytest.mark.parametrize("file", ["flax_model.msgpack", "model.safetensors"])
def test_incomplete_checkpoint_names_file_and_parameter(checkpoint, tmp_path, file):
    copy_config(checkpoint, tmp_path)
    flat = flax.traverse_util.flatten_dict(checkpoint.params, sep="/")
    missing = next(name for name in flat if name.endswith("fc1/kernel"))
    del flat[missing]
    params = flax.traverse_util.unflatten_dict(flat, sep="/")
    if file == "model.safetensors":
        write_safetensors(tmp_path, params)
    else:
        (tmp_path / file).write_bytes(flax.serialization.to_bytes(params))
    with pytest.raises(UserError) as caught:
        load(tmp_path)
    assert str(tmp_path / file) in str(caught.value)
    assert missing in str(caught.value)


@pytest.mark.parametrize("file", ["flax_model.msgpack", "model.safetensors"])
def test_weights_of_another_size_are_refused(checkpoint, tmp_path, file):
    copy_config(checkpoint, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["hidden_size"] = 2 * WIDTH
    (tmp_path / "config.json").write_text(json.dumps(config))
    if file == "model.safetensors":
        write_safetensors(tmp_path, checkpoint.params)
    else:
        (tmp_path / file).write_bytes((checkpoint.folder / file).read_bytes())
    with pytest.raises(UserError) as caught:
        load(tmp_path)
    assert str(tmp_path / file) in str(caught.value)


def test_real_encoder(real_encoder):
    description = describe_encoder(str(real_encoder))
    encoder = load_encoder(
        description, image_side=56, taps=description.default_taps, groups=2
    )
    features = encode(encoder, images(56))
    assert features.patches.shape == (2, 2, 4, 4, description.width)
    assert all(np.isfinite(leaf).all() for leaf in features)
    # Normalised tokens: the mean over channels is zero, the class token's variance one.
    np.testing.assert_allclose(features.patches.mean(-1), 0, atol=1e-4)
    np.testing.assert_allclose(features.class_token.var(-1), 1, rtol=1e-3)
    assert np.abs(features.patches[0] - features.patches[1]).max() > 0.1
