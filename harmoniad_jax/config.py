"""Every setting of a run: its meaning, its default, what is allowed, what it touches.

A new setting is one edit: its line here. What may change when a run is continued, the key
of the feature cache and whether thresholds still hold follow from what it touches.

A config file returns a `ConfigDict` of these defaults with its own changes, the command
line overrides single fields, and `parse_config` turns the result into the frozen
dataclasses that the program works with. No other code reads a `ConfigDict`, and no other
code checks a setting.
"""

import dataclasses
import difflib
import hashlib
import json
import typing
from collections.abc import Mapping
from typing import Any

import ml_collections

from harmoniad_jax.errors import UserError, raise_problems
from harmoniad_jax.fields import (
    FEATURES,
    LEARNING,
    NOTHING,
    SCORES,
    Removed,
    convert,
    field_types,
    setting,
    type_name,
)


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The images to train and test on."""

    # Where they come from: "folder" (a folder in the MVTec layout), "demo" (procedural
    # images, drawn once), or a public data set: "mvtec_ad", "visa", "btad", "mpdd",
    # "mvtec_ad_2", "mvtec_loco", "real_iad", "robust_ad". Several are joined, and their
    # categories are then called SOURCE/CATEGORY.
    sources: tuple[str, ...] = setting(("folder",), touches=LEARNING)
    # The folder that holds the categories; for "demo", the folder to draw them in (empty:
    # the user's cache folder).
    root: str = setting("", touches=NOTHING)
    # Instead of a folder in the MVTec layout, for "folder": a table of paths and labels
    # (harmoniad_jax/data/table.py). `root` is what its paths are relative to; empty: its
    # own folder.
    csv: str = setting("", touches=NOTHING)
    # Or folders by name, below `root` or below each product's folder in it
    # (harmoniad_jax/data/named_folders.py): of defect-free images, of defective ones, of
    # defect-free ones to test on, and of masks.
    normal_dir: tuple[str, ...] = setting((), touches=NOTHING)
    abnormal_dir: tuple[str, ...] = setting((), touches=NOTHING)
    normal_test_dir: tuple[str, ...] = setting((), touches=NOTHING)
    mask_dir: tuple[str, ...] = setting((), touches=NOTHING)
    # Share of the defect-free images that is tested on instead of trained on, where neither
    # a table nor `normal_test_dir` says which.
    normal_split_ratio: float = setting(0.0, at_least=0, below=1, touches=LEARNING)
    # Where prepared public data sets are; empty: TFDS's own, ~/tensorflow_datasets.
    data_dir: str = setting("", touches=NOTHING)
    # Where what was downloaded by hand is, to prepare them from; empty: downloads/manual
    # of `data_dir`.
    manual_dir: str = setting("", touches=NOTHING)
    # The split of a prepared data set that is tested on, such as "test1" of robust_ad.
    test_split: str = setting("test", touches=NOTHING)
    # Hold out the validation images of a data set that has its own, and train on all of its
    # training images. False: they are not used, as in runs of earlier versions.
    validation: bool = setting(True, touches=NOTHING, older=False)
    # The categories to take; all that are there if empty.
    categories: tuple[str, ...] = setting((), touches=LEARNING)
    # Train on every category equally often, however many images it has.
    class_balanced: bool = setting(False, touches=LEARNING)
    # Side S of the encoder's square input in pixels, a multiple of its patch. 0: the side
    # CLIP was trained at, or 16 patches for DINOv2.
    image_side: int = setting(0, touches=FEATURES)
    # How images that are not square become the encoder's input. "squash": to the square.
    # "aspect": each category to a shape of its own, of about as many patches as the square
    # and near the median aspect of its training images. Compared in docs/results/shape.md.
    fit: str = setting(
        "squash", choices=("squash", "aspect"), touches=FEATURES, older="squash"
    )
    # What is white in images deeper than 8 bits, such as 4095 for a 12-bit camera. 0: what
    # a file states, else what is measured once on the training images.
    white_level: float = setting(0.0, at_least=0, touches=FEATURES)
    # Larger images are refused: one takes 3 bytes of memory a pixel in each thread.
    max_megapixels: float = setting(500.0, above=0, touches=NOTHING)
    # Threads that decode and scale images in each process. 0: one for each core.
    threads: int = setting(0, at_least=0, touches=NOTHING)
    # Decode every image once before training, so that a damaged one is found at the
    # start and not hours later.
    check_images: bool = setting(True, touches=NOTHING)


@dataclasses.dataclass(frozen=True)
class VariationConfig:
    """How good images may differ from those at hand, see `data/variation.py`.

    Each of the others is the limit of an amount that is drawn for each view.
    """

    # Views K of each training image, which are encoded and trained on besides it.
    views: int = setting(0, at_least=0, touches=LEARNING)
    # A factor on all limits: 0.5 for a line whose light and camera are fixed well.
    strength: float = setting(1.0, at_least=0, touches=LEARNING)
    # Brighter or darker, in stops: 1 is twice the light.
    exposure: float = setting(0.5, at_least=0, touches=LEARNING)
    # Share by which the distance from the image's mean grows or shrinks.
    contrast: float = setting(0.25, at_least=0, below=1, touches=LEARNING)
    # The curve of the tones: exponent 2 ** gamma.
    gamma: float = setting(0.25, at_least=0, touches=LEARNING)
    # Warmer or colder: share of red added and of blue taken away.
    temperature: float = setting(0.05, at_least=0, below=1, touches=LEARNING)
    # Light that falls off: by that share from the middle to a side, and to the corners.
    uneven: float = setting(0.3, at_least=0, below=1, touches=LEARNING)
    # Sensor noise of a white pixel, as a share of white.
    noise: float = setting(0.05, at_least=0, touches=LEARNING)
    # Out of focus: deviation in pixels of the encoder's input.
    blur: float = setting(1.0, at_least=0, touches=LEARNING)
    # Compression as JPEG: 0.6 is quality 38.
    jpeg: float = setting(0.6, at_least=0, below=1, touches=LEARNING)
    # The part is turned, in degrees, and shifted, as a share of the longer side.
    rotation: float = setting(
        5.0, at_least=0, at_most=180, touches=LEARNING, older=1.0, earlier=(3.0,)
    )
    shift: float = setting(
        0.05, at_least=0, below=1, touches=LEARNING, older=0.01, earlier=(0.03,)
    )


@dataclasses.dataclass(frozen=True)
class UntrainedEncoderConfig:
    """A small CLIP vision architecture with random weights, for `encoder.name=untrained`.

    It needs no download, and serves the demo and the tests only.
    """

    width: int = setting(64, at_least=1, touches=LEARNING)
    depth: int = setting(2, at_least=1, touches=LEARNING)
    heads: int = setting(2, at_least=1, touches=LEARNING)
    patch: int = setting(8, at_least=1, touches=LEARNING)
    seed: int = setting(0, at_least=0, touches=LEARNING)


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """The frozen image encoder."""

    # A CLIP or DINOv2 model: a name on the model hub, or a local folder that holds
    # config.json and flax_model.msgpack, model.safetensors or pytorch_model.bin.
    # "untrained": see below.
    name: str = setting("openai/clip-vit-large-patch14-336", touches=NOTHING)
    # Blocks to read features from, 1-based, shallow to deep. Empty: eight mid-depth
    # blocks, 3-10 of 12 or every second of 5-19 of 24.
    taps: tuple[int, ...] = setting((), touches=FEATURES)
    # Number G of feature groups that the taps are averaged into.
    groups: int = setting(2, touches=FEATURES)
    # Compute dtype: "float32", "bfloat16", or "auto" for bfloat16 on accelerators and
    # float32 on CPU. Features are float32 either way.
    dtype: str = setting("auto", choices=("auto", "float32", "bfloat16"), touches=FEATURES)
    # How attention is computed: "library", as `transformers` does, or "fused", by JAX's
    # own function, which keeps no attention weights in memory and calls cuDNN on a GPU.
    attention: str = setting("library", choices=("library", "fused"), touches=FEATURES)
    # What is subtracted from the patch features of an image: "none" or its "class_token".
    recentre: str = setting("none", choices=("none", "class_token"), touches=FEATURES)
    # Colour is smoothed by this deviation in pixels of the input, and brightness is not:
    # noise in colour hides defects, and small defects show in brightness. 0: not at all,
    # where they are small and of another colour alone.
    chroma_sigma: float = setting(2.0, at_least=0, touches=FEATURES, older=0.0)
    untrained: UntrainedEncoderConfig = UntrainedEncoderConfig()


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The trained network. The switches are there for ablations."""

    # "harmoniad": both branches. "high", "low": one branch alone, scored on its own
    # band. "plain": no split, one branch of linear-attention blocks with about as many
    # parameters.
    variant: str = setting(
        "harmoniad", choices=("harmoniad", "high", "low", "plain"), touches=LEARNING
    )
    # The gate of the split: "sigmoid", "gaussian", "butterworth" or "ideal".
    gate: str = setting(
        "sigmoid", choices=("sigmoid", "gaussian", "butterworth", "ideal"), touches=LEARNING
    )
    # Cut-off of the split in (0, 1), as a share of the Nyquist frequency.
    cutoff: float = setting(0.25, above=0, below=1, touches=LEARNING)
    # Width of the sigmoid gate's edge, in the same unit.
    softness: float = setting(0.05, above=0, touches=LEARNING)
    # Train cut-off and softness, per group, from these values on. Long trainings suffer
    # from it (docs/method.md). The ideal gate cannot be trained.
    learnable_gate: bool = setting(False, touches=LEARNING)
    # Extend feature maps by their mirror image before the transform, which else joins
    # opposite borders.
    mirror: bool = setting(False, touches=LEARNING)
    # Let FSAM, which predicts the high band, read both bands instead of the high one alone:
    # which texture is normal depends on what it is the texture of. False: as in runs of
    # earlier versions.
    high_reads_low: bool = setting(True, touches=LEARNING, older=False)
    # Number of FSAM blocks, GSCM blocks, and blocks of the plain variant; each a multiple
    # of `encoder.groups`.
    high_depth: int = setting(4, touches=LEARNING)
    low_depth: int = setting(4, touches=LEARNING)
    plain_depth: int = setting(8, touches=LEARNING)
    # Channels per attention head.
    head_width: int = setting(64, touches=LEARNING)
    # Dropout of the noisy bottlenecks: without it the network learns to copy anomalies.
    dropout: float = setting(0.2, at_least=0, below=1, touches=LEARNING)
    # Parts of FSAM. The first of its blocks for each group attends to the whole image: a
    # convolution does not see how a part lies. False: as in runs of earlier versions.
    high_attention: bool = setting(True, touches=LEARNING, older=False)
    edge_kernels: bool = setting(True, touches=LEARNING)
    channel_gate: bool = setting(True, touches=LEARNING)
    spatial_gate: bool = setting(True, touches=LEARNING)
    shrinkage: bool = setting(True, touches=LEARNING)
    # Parts of the GSCM path: the pooled context, the encoder's class token (through a
    # noisy bottleneck of its own), and a lower resolution.
    global_context: bool = setting(True, touches=LEARNING)
    class_token: bool = setting(True, touches=LEARNING)
    decimate: bool = setting(True, touches=LEARNING)
    # What its sides are divided by: 2 is half. 3 suits an image side of 336, where FSAM
    # then sees more than GSCM.
    decimation: int = setting(2, at_least=2, touches=LEARNING)


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """L = hardcos(fused) + high_weight hardcos(high) + low_weight hardcos(low)."""

    # The sum is what is scored: a small share of the loss keeps each branch to its band.
    high_weight: float = setting(0.3, at_least=0, touches=LEARNING, older=1.0)
    low_weight: float = setting(0.3, at_least=0, touches=LEARNING, older=1.0)
    # Scale down the gradient of positions that are already rebuilt well.
    hard_mining: bool = setting(True, touches=LEARNING)
    # Share of a batch's positions that count as easy, reached after `easy_steps` steps of
    # linear growth, and the factor on their gradient (Dinomaly, where the share is 0.9).
    easy_share: float = setting(0.95, at_least=0, below=1, touches=LEARNING, older=0.9)
    easy_steps: int = setting(1000, at_least=0, touches=LEARNING)
    easy_gradient: float = setting(0.1, at_least=0, touches=LEARNING)
    # The growth takes no more than this share of the run, so that short runs mine too; 0:
    # however short it is, as in runs of earlier versions.
    easy_within: float = setting(0.2, at_least=0, at_most=1, touches=LEARNING, older=0.0)


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """StableAdamW with warm-up and cosine decay (the recipe of Dinomaly)."""

    learning_rate: float = setting(2e-3, above=0, touches=LEARNING)
    final_learning_rate: float = setting(2e-4, at_least=0, touches=LEARNING)
    # Steps of linear warm-up; at most a third of the run, so that short runs learn too.
    warmup_steps: int = setting(100, at_least=0, touches=LEARNING)
    b1: float = setting(0.9, at_least=0, below=1, touches=LEARNING)
    b2: float = setting(0.999, at_least=0, below=1, touches=LEARNING)
    epsilon: float = setting(1e-10, above=0, touches=LEARNING)
    weight_decay: float = setting(1e-4, at_least=0, touches=LEARNING)
    # Divide by the largest second moment so far instead of the current one.
    amsgrad: bool = setting(True, touches=LEARNING)
    # Largest root mean square of a tensor's update before its step is scaled down.
    update_clip: float = setting(1.0, above=0, touches=LEARNING)
    # Largest global norm of the gradient.
    gradient_clip: float = setting(0.1, above=0, touches=LEARNING)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The length and the rhythm of training."""

    num_steps: int = setting(10_000, at_least=1, touches=LEARNING)
    # Images per step over all devices, whatever their number, which must divide it.
    batch_size: int = setting(16, at_least=1, touches=LEARNING)
    # Work through a batch in so many parts, one after the other, if it does not fit into
    # memory. The loss is that of the whole batch: a part's activations are computed
    # again for its gradient, which costs one more forward pass.
    micro_batches: int = setting(1, at_least=1, touches=LEARNING)
    # Compute the activations of every block again for its gradient instead of keeping
    # them: less memory, one more forward pass.
    remat: bool = setting(False, touches=NOTHING)
    # Dtype of what lies between norms and residual sums in a training step: "float32" or
    # "bfloat16". All else is float32: what is summed up, norms, gates, loss, parameters,
    # optimizer, and every prediction.
    dtype: str = setting(
        "float32", choices=("float32", "bfloat16"), touches=LEARNING, older="float32"
    )
    # Seed of the weights, the order of the images and the dropout.
    seed: int = setting(0, at_least=0, touches=LEARNING)
    # Steps between two lines of `metrics.jsonl`.
    log_every_steps: int = setting(20, at_least=1, touches=NOTHING)
    checkpoint_every_steps: int = setting(200, at_least=1, touches=NOTHING)
    # The newest checkpoints that are kept, and besides them those whose step is a
    # multiple of `keep_every_steps`; 0: none.
    keep_checkpoints: int = setting(2, at_least=1, touches=NOTHING)
    keep_every_steps: int = setting(0, at_least=0, touches=NOTHING)
    # A step whose loss or gradient is not finite is skipped: it changes nothing. After
    # so many in a row training stops.
    max_skipped_steps: int = setting(10, at_least=1, touches=NOTHING)
    # Find out where numbers break: everything in float32 at full precision, and training
    # stops at the first number that is not finite and says where it arose. Slow.
    check_numerics: bool = setting(False, touches=LEARNING)
    # Steps that are dispatched at once where features are in device memory.
    steps_per_call: int = setting(10, at_least=1, touches=NOTHING)


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """From feature distances to anomaly maps, image scores and metrics."""

    # Images per step, rounded up to a multiple of the number of devices.
    batch_size: int = setting(16, at_least=1, touches=NOTHING)
    # Side of anomaly maps and masks in cells. 0: 16 for each patch of the encoder, so that
    # small defects keep their size in patches at every resolution.
    map_side: int = setting(0, at_least=0, touches=SCORES, older=256)
    # Standard deviation of the Gaussian that smooths the maps, in their cells.
    smoothing_sigma: float = setting(2.0, at_least=0, touches=SCORES, older=4.0)
    # Share of a map's largest pixels whose mean is the image score; 0: the maximum.
    top_share: float = setting(0.01, at_least=0, at_most=1, touches=SCORES)
    # Weight of a feature group as a share of that of the next shallower one, in anomaly
    # maps and in image scores: 1 gives all the same, 0 takes the shallowest alone. The
    # shallow features say where a defect is, the deep ones whether there is one
    # (docs/results/travel.md).
    map_decay: float = setting(0.25, at_least=0, at_most=1, touches=SCORES, older=0.1)
    score_decay: float = setting(0.5, at_least=0, at_most=1, touches=SCORES)
    # If this share of a map lies above the mean of good images, the map is lowered until it
    # does not. Changed light, blur or noise raise all of a map, and a defect raises a part
    # of it. Image scores stay. 0: never, as in runs of earlier versions.
    background_share: float = setting(
        0.75, at_least=0, at_most=1, touches=SCORES, older=0.0
    )
    # Weights of the branches' standardised maps; that of the fused reconstruction has 1. On
    # real images they add nothing to the fused one (docs/results/ablation.md).
    high_weight: float = setting(0.0, at_least=0, touches=SCORES)
    low_weight: float = setting(0.0, at_least=0, touches=SCORES)
    # Held-out images (training images where none are), evenly taken, that the maps are
    # standardised with.
    calibration_images: int = setting(256, at_least=1, touches=LEARNING)
    # "half": a cell is defective where half of it is. "any": where any of it is, which
    # grows every defect; only to compare with older tables.
    mask_rule: str = setting("half", choices=("half", "any"), touches=NOTHING)
    # The largest false-positive rate of pixels that AUPRO looks at. MVTec AD 2 is measured
    # at 0.05.
    fpr_limit: float = setting(0.3, above=0, at_most=1, touches=NOTHING)
    # Compute metrics batch by batch, in memory that hardly grows with the number of
    # images; the pixel metrics are then within a bound that is reported, and overlaps by
    # the size of defects within 1/64.
    streaming: bool = setting(False, touches=NOTHING)
    # Write `report/index.html`.
    report: bool = setting(True, touches=NOTHING)


@dataclasses.dataclass(frozen=True)
class CacheConfig:
    """Features of images on disk: each image is encoded once, for all runs."""

    # Encode all training images before the first step, and train on what was stored.
    enabled: bool = setting(True, touches=NOTHING)
    # Store those of held-out and test images too: for runs that are evaluated in several
    # ways, or many runs on the same images.
    evaluation: bool = setting(False, touches=NOTHING)
    # Where they are stored; empty: the user's cache folder.
    folder: str = setting("", touches=NOTHING)
    # The size that the folder is kept below: the features that were not used for longest
    # are removed. A data set that does not fit alone is trained on without the cache.
    max_gigabytes: float = setting(100.0, above=0, touches=NOTHING)
    # "float16", or "float32" for twice the size and no rounding.
    dtype: str = setting("float16", choices=("float16", "float32"), touches=FEATURES)
    # Keep all features in the memory of every device, so that training reads nothing
    # from the host: "auto" on accelerators where they take at most half of what is
    # free, "always" or "never".
    on_device: str = setting("auto", choices=("auto", "always", "never"), touches=NOTHING)


@dataclasses.dataclass(frozen=True)
class CalibrationConfig:
    """Thresholds, from good images that training never sees. No test label is used."""

    # Share of each category's training images that is held out.
    holdout: float = setting(0.1, at_least=0, below=1, touches=LEARNING)
    # Which image of each of so many equal parts of a category, in the order of their names:
    # "random" or the "middle" one. The middle one only to continue runs of earlier
    # versions: in a cycle of stations it may always be of the same one.
    holdout_choice: str = setting(
        "random", choices=("random", "middle"), touches=LEARNING, older="middle"
    )
    # Hold copies of an image out together, or none of them. Only to continue runs of
    # versions that did not.
    copies_together: bool = setting(True, touches=LEARNING, older=False)
    # Share of good images that may be called defective.
    false_positive_rate: float = setting(0.01, above=0, below=1, touches=NOTHING)
    # Share of the pixels of good images that may lie above the pixel threshold.
    pixel_false_positive_rate: float = setting(0.001, above=0, below=1, touches=NOTHING)


@dataclasses.dataclass(frozen=True)
class ShardingConfig:
    """The mesh of devices. A batch is split over all of them, data x model."""

    # Devices along the two axes; `data` 0: all there are, divided by `model`.
    data: int = setting(0, at_least=0, touches=NOTHING)
    # Parameters and optimizer state are split over so many devices (FSDP), and replicated
    # over the others: needed only where they do not fit into one device's memory.
    model: int = setting(1, at_least=1, touches=NOTHING)
    # Split the frozen encoder's weights over `model` too.
    encoder: bool = setting(False, touches=NOTHING)


@dataclasses.dataclass(frozen=True)
class Config:
    data: DataConfig = DataConfig()
    variation: VariationConfig = VariationConfig()
    cache: CacheConfig = CacheConfig()
    encoder: EncoderConfig = EncoderConfig()
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
    sharding: ShardingConfig = ShardingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    calibration: CalibrationConfig = CalibrationConfig()

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @property
    def hash(self) -> str:
        """Twelve hexadecimal digits of the SHA-256 of all settings."""
        return settings_hash(self.to_dict())


def settings_hash(values: Mapping[str, Any]) -> str:
    """See `Config.hash`."""
    text = json.dumps(values, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


# Settings that runs of earlier versions have: such a run is read if the value is neutral.
REMOVED = {
    "model.dropout_place": Removed(
        "layers", "where the noisy bottlenecks drop activations"
    ),
    "evaluation.fused_weight": Removed(1.0, "the weight of the fused map"),
    "evaluation.standardise": Removed(True, "whether maps are standardised"),
}


def default_config() -> ml_collections.ConfigDict:
    """The defaults as the `ConfigDict` that config files change and return."""
    return ml_collections.ConfigDict(Config().to_dict())


def parse_config(values: Mapping[str, Any] | ml_collections.ConfigDict) -> Config:
    """Turns nested values into a `Config`, refusing unknown and ill-typed fields.

    Raises:
      UserError: listing every such field, with a suggestion where one is close.
    """
    if isinstance(values, ml_collections.ConfigDict):
        values = values.to_dict()
    if not isinstance(values, Mapping):
        raise UserError(f"the config is {values!r}; get_config() must return a ConfigDict")
    problems: list[str] = []
    config = _parse(Config, values, "", problems)
    raise_problems(problems)
    return config


def with_settings(config: Config, changes: Mapping[str, Any]) -> Config:
    """A config with some settings changed, by dotted name, such as "train.seed".

    Raises:
      UserError: unknown or ill-typed settings.
    """
    values = config.to_dict()
    for path, value in changes.items():
        *groups, name = path.split(".")
        group = values
        for part in groups:
            group = group.setdefault(part, {})
            if not isinstance(group, dict):
                raise UserError(f"{unknown_field(path)}.")
        group[name] = value
    return parse_config(values)


def unknown_field(path: str) -> str:
    """What to say of a setting that does not exist."""
    if path in REMOVED:
        return f"config.{path} was removed; it meant {REMOVED[path].meant}"
    known = [name for name, _ in field_types(Config)]
    leaf = path.rpartition(".")[2]
    same_leaf = [name for name in known if name.rpartition(".")[2] == leaf]
    close = same_leaf or difflib.get_close_matches(path, known, n=1)
    hint = f"did you mean config.{close[0]}?" if close else "see harmoniad_jax/config.py"
    return f"config.{path} is no setting; {hint}"


def _parse(kind: type, values: Mapping[str, Any], prefix: str, problems: list[str]):
    hints = typing.get_type_hints(kind)
    problems += [unknown_field(prefix + name) for name in values if name not in hints]
    parsed = {}
    for name, hint in hints.items():
        if name not in values:
            problems.append(f"config.{prefix}{name} is missing")
        elif dataclasses.is_dataclass(hint):
            if isinstance(values[name], Mapping):
                parsed[name] = _parse(hint, values[name], f"{prefix}{name}.", problems)
            else:
                problems.append(f"config.{prefix}{name} is not a group of settings")
        else:
            try:
                parsed[name] = convert(values[name], hint)
            except (TypeError, ValueError):
                problems.append(
                    f"config.{prefix}{name} is {values[name]!r}; expected {type_name(hint)}"
                )
    return kind(**parsed) if len(parsed) == len(hints) else None
