"""Every setting of a run: its meaning, its default, and what is allowed.

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

from harmoniad_jax.errors import UserError
from harmoniad_jax.fields import convert, field_types, type_name


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The images to train and test on."""

    # Where they come from: "folder" (a folder in the MVTec layout), "demo" (procedural
    # images, drawn once), or a public data set: "mvtec_ad", "visa", "btad". Several are
    # joined, and their categories are then called SOURCE/CATEGORY.
    sources: tuple[str, ...] = ("folder",)
    # The folder that holds the categories; for "demo", the folder to draw them in (empty:
    # the user's cache folder).
    root: str = ""
    # Where prepared public data sets are; empty: TFDS's own, ~/tensorflow_datasets.
    data_dir: str = ""
    # Where what was downloaded by hand is, to prepare them from; empty: downloads/manual
    # of `data_dir`.
    manual_dir: str = ""
    # The categories to take; all that are there if empty.
    categories: tuple[str, ...] = ()
    # Train on every category equally often, however many images it has.
    class_balanced: bool = False
    # Side S of the encoder's square input in pixels, a multiple of its patch. 0: the side
    # CLIP was trained at, or 16 patches for DINOv2.
    image_side: int = 0
    # Threads that decode and scale images in each process. 0: one for each core.
    threads: int = 0
    # Decode every image once before training, so that a damaged one is found at the
    # start and not hours later.
    check_images: bool = True


@dataclasses.dataclass(frozen=True)
class UntrainedEncoderConfig:
    """A small CLIP vision architecture with random weights, for `encoder.name=untrained`.

    It needs no download, and serves the demo and the tests only.
    """

    width: int = 64
    depth: int = 2
    heads: int = 2
    patch: int = 8
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """The frozen image encoder."""

    # A CLIP or DINOv2 model: a name on the model hub, or a local folder that holds
    # config.json and flax_model.msgpack, model.safetensors or pytorch_model.bin.
    # "untrained": see below.
    name: str = "openai/clip-vit-large-patch14-336"
    # Blocks to read features from, 1-based, shallow to deep. Empty: eight mid-depth
    # blocks, 3-10 of 12 or every second of 5-19 of 24.
    taps: tuple[int, ...] = ()
    # Number G of feature groups that the taps are averaged into.
    groups: int = 2
    # Compute dtype: "float32", "bfloat16", or "auto" for bfloat16 on accelerators and
    # float32 on CPU. Features are float32 either way.
    dtype: str = "auto"
    # How attention is computed: "library", as `transformers` does, or "fused", by JAX's
    # own function, which keeps no attention weights in memory and calls cuDNN on a GPU.
    attention: str = "library"
    # What is subtracted from the patch features of an image: "none", its "class_token", or
    # "image_mean", the mean of its patches.
    recentre: str = "none"
    untrained: UntrainedEncoderConfig = UntrainedEncoderConfig()


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The trained network. The switches are there for ablations."""

    # "harmoniad": both branches. "high", "low": one branch alone, scored on its own
    # band. "plain": no split, one branch of linear-attention blocks with about as many
    # parameters.
    variant: str = "harmoniad"
    # The gate of the split: "sigmoid", "gaussian", "butterworth" or "ideal".
    gate: str = "sigmoid"
    # Cut-off of the split in (0, 1), as a share of the Nyquist frequency.
    cutoff: float = 0.25
    # Width of the sigmoid gate's edge, in the same unit.
    softness: float = 0.05
    # Train cut-off and softness, per group, from these values on. Long trainings suffer
    # from it (docs/method.md). The ideal gate cannot be trained.
    learnable_gate: bool = False
    # Extend feature maps by their mirror image before the transform, which else joins
    # opposite borders.
    mirror: bool = False
    # Number of FSAM blocks, GSCM blocks, and blocks of the plain variant; each a multiple
    # of `encoder.groups`.
    high_depth: int = 4
    low_depth: int = 4
    plain_depth: int = 8
    # Channels per attention head.
    head_width: int = 64
    # Dropout of the noisy bottlenecks: without it the network learns to copy anomalies.
    dropout: float = 0.2
    # Where it is: after both "layers" of a bottleneck, or on its "input".
    dropout_place: str = "layers"
    # Parts of the FSAM block.
    edge_kernels: bool = True
    channel_gate: bool = True
    spatial_gate: bool = True
    shrinkage: bool = True
    # Parts of the GSCM path: the pooled context, the encoder's class token (through a
    # noisy bottleneck of its own), and half resolution.
    global_context: bool = True
    class_token: bool = True
    decimate: bool = True


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """L = hardcos(fused) + high_weight hardcos(high) + low_weight hardcos(low)."""

    high_weight: float = 1.0
    low_weight: float = 1.0
    # Scale down the gradient of positions that are already rebuilt well.
    hard_mining: bool = True
    # Share of a batch's positions that count as easy, reached after `easy_steps` steps of
    # linear growth, and the factor on their gradient (Dinomaly).
    easy_share: float = 0.9
    easy_steps: int = 1000
    easy_gradient: float = 0.1


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """StableAdamW with warm-up and cosine decay (the recipe of Dinomaly)."""

    learning_rate: float = 2e-3
    final_learning_rate: float = 2e-4
    # Steps of linear warm-up; at most a third of the run, so that short runs learn too.
    warmup_steps: int = 100
    b1: float = 0.9
    b2: float = 0.999
    epsilon: float = 1e-10
    weight_decay: float = 1e-4
    # Divide by the largest second moment so far instead of the current one.
    amsgrad: bool = True
    # Largest root mean square of a tensor's update before its step is scaled down.
    update_clip: float = 1.0
    # Largest global norm of the gradient.
    gradient_clip: float = 0.1


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The length and the rhythm of training."""

    num_steps: int = 10_000
    # Images per step over all devices, whatever their number, which must divide it.
    batch_size: int = 16
    # Work through a batch in so many parts, one after the other, if it does not fit into
    # memory. The loss is that of the whole batch: a part's activations are computed
    # again for its gradient, which costs one more forward pass.
    micro_batches: int = 1
    # Compute the activations of every block again for its gradient instead of keeping
    # them: less memory, one more forward pass.
    remat: bool = False
    # Seed of the weights, the order of the images and the dropout.
    seed: int = 0
    # Steps between two lines of `metrics.jsonl`.
    log_every_steps: int = 20
    checkpoint_every_steps: int = 200
    # The newest checkpoints that are kept, and besides them those whose step is a
    # multiple of `keep_every_steps`; 0: none.
    keep_checkpoints: int = 2
    keep_every_steps: int = 0
    # A step whose loss or gradient is not finite is skipped: it changes nothing. After
    # so many in a row training stops.
    max_skipped_steps: int = 10
    # Find out where numbers break: everything in float32 at full precision, and training
    # stops at the first number that is not finite and says where it arose. Slow.
    check_numerics: bool = False
    # Steps that are dispatched at once where features are in device memory.
    steps_per_call: int = 10


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """From feature distances to anomaly maps, image scores and figures."""

    # Images per step, rounded up to a multiple of the number of devices.
    batch_size: int = 16
    # Side of anomaly maps and masks in pixels.
    map_side: int = 256
    # Standard deviation of the Gaussian that smooths the maps, in their pixels.
    smoothing_sigma: float = 4.0
    # Share of a map's largest pixels whose mean is the image score; 0: the maximum.
    top_share: float = 0.01
    # Weight of a feature group as a share of that of the next shallower one, in anomaly
    # maps and in image scores: 1 gives all the same, 0 takes the shallowest alone. The
    # shallow features say where a defect is, the deep ones whether there is one
    # (docs/method.md).
    map_decay: float = 0.1
    score_decay: float = 0.5
    # Weights of the standardised maps of the fused reconstruction and of the branches. On
    # real images the branches' own maps add nothing to the fused one (docs/results.md).
    fused_weight: float = 1.0
    high_weight: float = 0.0
    low_weight: float = 0.0
    # Standardise each of these maps before they are added; else the distances are added
    # as they are.
    standardise: bool = True
    # Held-out images (training images where none are), evenly taken, that the maps are
    # standardised with.
    calibration_images: int = 256
    # "half": a cell is defective where half of it is. "any": where any of it is, which
    # grows every defect; only to compare with older tables.
    mask_rule: str = "half"
    # Compute figures batch by batch, in memory that hardly grows with the number of
    # images; the pixel figures are then within a bound that is reported, and overlaps by
    # the size of defects within 1/64.
    streaming: bool = False
    # Write `report/index.html`.
    report: bool = True


@dataclasses.dataclass(frozen=True)
class CacheConfig:
    """Features of images on disk: each image is encoded once, for all runs."""

    # Encode all training images before the first step, and train on what was stored.
    enabled: bool = True
    # Store those of held-out and test images too: for runs that are evaluated in several
    # ways, or many runs on the same images.
    evaluation: bool = False
    # Where they are stored; empty: the user's cache folder.
    folder: str = ""
    # The size that the folder is kept below: the features that were not used for longest
    # are removed. A data set that does not fit alone is trained on without the cache.
    max_gigabytes: float = 100.0
    # "float16", or "float32" for twice the size and no rounding.
    dtype: str = "float16"
    # Keep all features in the memory of every device, so that training reads nothing
    # from the host: "auto" on accelerators where they take at most half of what is
    # free, "always" or "never".
    on_device: str = "auto"


@dataclasses.dataclass(frozen=True)
class CalibrationConfig:
    """Thresholds, from good images that training never sees. No test label is used."""

    # Share of each category's training images that is held out.
    holdout: float = 0.1
    # Share of good images that may be called defective.
    false_positive_rate: float = 0.01
    # Share of the pixels of good images that may lie above the pixel threshold.
    pixel_false_positive_rate: float = 0.001


@dataclasses.dataclass(frozen=True)
class ShardingConfig:
    """The mesh of devices. A batch is split over all of them, data x model."""

    # Devices along the two axes; `data` 0: all there are, divided by `model`.
    data: int = 0
    # Parameters and optimizer state are split over so many devices (FSDP), and replicated
    # over the others: needed only where they do not fit into one device's memory.
    model: int = 1
    # Split the frozen encoder's weights over `model` too.
    encoder: bool = False


@dataclasses.dataclass(frozen=True)
class Config:
    data: DataConfig = DataConfig()
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
        text = json.dumps(self.to_dict(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


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


def raise_problems(problems: list[str]) -> None:
    """Raises one `UserError` for all problems found, if any."""
    if problems:
        text = "; ".join(problems)
        raise UserError(text if text.endswith((".", "?")) else text + ".")


def unknown_field(path: str) -> str:
    """What to say of a setting that does not exist."""
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
