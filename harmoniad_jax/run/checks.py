"""Whether settings make sense: every mistake in words, before anything heavy starts.

The range of a single setting stands at its field in `config.py`. Here are the rules between
several settings, devices, data and encoder. Each function returns the mistakes it finds;
`config.raise_problems` reports them at once.
"""

from collections.abc import Callable
from pathlib import Path

import jax

from harmoniad_jax.config import Config
from harmoniad_jax.data.sources import PREPARED
from harmoniad_jax.devices.mesh import mesh_shape
from harmoniad_jax.fields import flatten, range_problems
from harmoniad_jax.model.encoders.encoder import EncoderDescription

_EXPECTED = "; expected one that holds CATEGORY/train/good/ with images"
SOURCES = ("folder", "demo", *PREPARED)


def config_problems(
    config: Config, description: EncoderDescription, num_devices: int | None
) -> list[str]:
    """Everything that is wrong with a config whose automatic settings are filled in."""
    return [
        *setting_problems(config, num_devices),
        *encoder_problems(config, description),
    ]


def data_problems(config: Config, for_training: bool = True) -> list[str]:
    """What is wrong with where the images are said to be, on this machine.

    Args:
      config: all settings.
      for_training: whether a data set may be prepared anew from what was downloaded.
    """
    data = config.data
    problems = []
    if "folder" in data.sources and data.root:
        root = Path(data.root).expanduser()
        wrong = None
        if not root.is_dir():
            wrong = "is not a folder"
        elif not any(root.iterdir()):
            wrong = "is an empty folder"  # perhaps of a disk that is not mounted
        if wrong:
            expected = "" if data.csv or data.normal_dir else _EXPECTED
            problems.append(
                f"data.root={data.root!r} {wrong}{expected}. If they are elsewhere: "
                "--config.data.root=FOLDER"
            )
    if "folder" in data.sources and data.csv:
        if not Path(data.csv).expanduser().is_file():
            problems.append(f"data.csv={data.csv!r} is not a file")
    named = {category.partition("/")[0] for category in data.categories}
    for name in data.sources:
        # Of several sources, those that no chosen category comes from are not opened.
        chosen = len(data.sources) == 1 or not named or name in named
        if name in PREPARED and chosen:
            # Imported late: folders of images need no TFDS, which is slow to load.
            from tfds_builders.prepare import missing_data

            problem = missing_data(name, data.manual_dir, data.data_dir)
            if problem and for_training:
                problems.append(
                    f"{problem} If they are elsewhere: --config.data.manual_dir=DIR"
                )
            elif problem:
                where = f" in {data.data_dir}" if data.data_dir else ""
                problems.append(
                    f"the prepared data set {name} is not there{where}. If it is "
                    "elsewhere: --config.data.data_dir=DIR"
                )
    return problems


def setting_problems(config: Config, num_devices: int | None) -> list[str]:
    """What is wrong with settings that can be judged without the encoder.

    Args:
      config: all settings.
      num_devices: that are to train; None where nothing is trained.
    """
    values = flatten(config.to_dict())
    # One mistake a setting: the first says enough.
    problems = {
        name: _problem(name, values[name], allowed)
        for name, allowed in range_problems(config).items()
    }

    def check(ok: bool, name: str, allowed: str) -> None:
        if not ok:
            problems.setdefault(name, _problem(name, values[name], allowed))

    if num_devices is not None:
        _check_devices(config, num_devices, check)
    check(
        not (config.model.gate == "ideal" and config.model.learnable_gate),
        "model.gate",
        "the ideal gate has no gradient: set model.learnable_gate=False with it",
    )
    untrained = config.encoder.untrained
    check(
        untrained.heads < 1 or untrained.width % untrained.heads == 0,
        "encoder.untrained.heads",
        f"it must divide encoder.untrained.width, {untrained.width}",
    )
    data, sources = config.data, config.data.sources
    check(
        bool(sources) and sorted(set(sources) & set(SOURCES)) == sorted(sources),
        "data.sources",
        f"name each source once; allowed are {', '.join(SOURCES)}",
    )
    check(
        "folder" not in sources or any((data.root, data.csv, data.normal_dir)),
        "data.root",
        "give the folder that holds the categories",
    )
    check(
        not (data.csv and data.normal_dir),
        "data.csv",
        "give a table or folders by name (data.normal_dir), not both",
    )
    for name in ("abnormal_dir", "normal_test_dir", "mask_dir"):
        check(
            bool(data.normal_dir) or not getattr(data, name),
            f"data.{name}",
            "give data.normal_dir with it, the folder of defect-free images",
        )
    check(
        bool(data.csv or data.normal_dir) or not data.normal_split_ratio,
        "data.normal_split_ratio",
        "it is for data.csv and data.normal_dir; elsewhere the folder test says it",
    )
    check(
        not (data.normal_test_dir and data.normal_split_ratio),
        "data.normal_split_ratio",
        "data.normal_test_dir says which images are tested on: give one of the two",
    )
    return list(problems.values())


def _check_devices(
    config: Config, num_devices: int, check: Callable[[bool, str, str], None]
) -> None:
    """Whether mesh and batch fit the devices."""
    sharding, parts = config.sharding, max(config.train.micro_batches, 1)
    used = num_devices
    if sharding.data >= 0 and sharding.model >= 1:
        data, model = mesh_shape(sharding, num_devices)
        used = data * model
        # All of them, unless fewer were asked for. Several processes must use all: one
        # whose devices are in no mesh would wait for nothing.
        fewer = sharding.data > 0 and jax.process_count() == 1
        check(
            used == num_devices or (fewer and used < num_devices),
            "sharding.data" if sharding.data else "sharding.model",
            f"a mesh of {data} x {model} devices does not fit the {num_devices} that are "
            "there",
        )
    check(
        config.train.batch_size % (used * parts) == 0,
        "train.batch_size",
        f"it must be a multiple of the number of devices, {used}"
        + (f", times train.micro_batches, {parts}" if parts > 1 else ""),
    )


def encoder_problems(config: Config, description: EncoderDescription) -> list[str]:
    """What does not fit the encoder, in a config whose automatic settings are filled."""
    values = flatten(config.to_dict())
    problems = []

    def check(ok: bool, name: str, allowed: str) -> None:
        if not ok:
            problems.append(_problem(name, values[name], allowed))

    patch, side = description.patch, config.data.image_side
    check(
        side >= 2 * patch and side % patch == 0,
        "data.image_side",
        f"it must be a multiple of the encoder's patch, {patch}, for example "
        f"{max(round(side / patch), 2) * patch}",
    )
    taps = config.encoder.taps
    check(
        all(1 <= tap <= description.depth for tap in taps),
        "encoder.taps",
        f"the encoder has blocks 1 to {description.depth}",
    )
    check(
        list(taps) == sorted(set(taps)),
        "encoder.taps",
        "list each block once, from shallow to deep",
    )
    groups = config.encoder.groups
    check(
        1 <= groups <= len(taps),
        "encoder.groups",
        f"it must be between 1 and the number of taps, {len(taps)}",
    )
    for name in ("model.high_depth", "model.low_depth", "model.plain_depth"):
        check(
            groups < 1 or (values[name] >= groups and values[name] % groups == 0),
            name,
            f"it must be a multiple of encoder.groups, {groups}",
        )
    cutoff = config.model.cutoff
    # Half resolution is allowed with every gate, as it was before there was a choice.
    most = max(int(1 / cutoff), 2) if cutoff > 0 else 2
    check(
        not config.model.decimate or config.model.decimation <= most,
        "model.decimation",
        f"a low band up to model.cutoff={cutoff} allows at most {most}",
    )
    head_width = config.model.head_width
    check(
        head_width >= 1 and description.width % head_width == 0,
        "model.head_width",
        f"it must divide the encoder's width, {description.width}",
    )
    return problems


def _problem(name: str, value: object, allowed: str) -> str:
    return f"config.{name} is {value!r}; {allowed}"
