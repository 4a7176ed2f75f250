"""The network that the settings describe, put together of the modules of `model/`."""

from jax.sharding import Mesh

from harmoniad_jax.config import ModelConfig
from harmoniad_jax.model.fsam import Fsam
from harmoniad_jax.model.gscm import Gscm
from harmoniad_jax.model.harmoniad import HarmoniAD, Network, Plain
from harmoniad_jax.model.split import FrequencySplit

# The variants, each with its branches. Two branches are compared by their sum too.
VARIANTS = {
    "harmoniad": ("high", "low"),
    "high": ("high",),
    "low": ("low",),
    "plain": ("plain",),
}


def build_model(
    config: ModelConfig,
    *,
    groups: int,
    width: int,
    remat: bool = False,
    dtype: str = "float32",
    mesh: Mesh | None = None,
) -> Network:
    """Composes the network.

    The names of its parts are those of the parameters in every checkpoint.

    Args:
      config: checked; its variant is one of `VARIANTS`.
      groups: number G of feature groups of the encoder.
      width: D of the encoder's features, a multiple of `config.head_width`.
      remat: compute the activations of every block again for its gradient. It changes no
        result.
      dtype: of the activations in training, see `layers.Dense`.
      mesh: of the devices that the batch is split over, see `Network`.
    """
    shared = {
        "groups": groups,
        "dropout": config.dropout,
        "remat": remat,
        "dtype": dtype,
    }
    heads = width // config.head_width
    if config.variant == "plain":
        return Plain(
            Gscm(
                depth=config.plain_depth,
                heads=heads,
                global_context=False,
                reads_class_token=False,
                decimation=1,
                name="plain",
                **shared,
            ),
            mesh=mesh,
        )
    high = Fsam(
        depth=config.high_depth,
        heads=heads if config.high_attention else 0,
        edge_kernels=config.edge_kernels,
        channel_gate=config.channel_gate,
        spatial_gate=config.spatial_gate,
        shrinkage=config.shrinkage,
        name="fsam",
        **shared,
    )
    low = Gscm(
        depth=config.low_depth,
        heads=heads,
        global_context=config.global_context,
        reads_class_token=config.class_token,
        decimation=config.decimation if config.decimate else 1,
        name="gscm",
        **shared,
    )
    branches = VARIANTS[config.variant]
    return HarmoniAD(
        split=build_split(config),
        high=high if "high" in branches else None,
        low=low if "low" in branches else None,
        high_reads_low=config.high_reads_low,
        mesh=mesh,
    )


def build_split(config: ModelConfig) -> FrequencySplit:
    """The split of features into two bands; its parameters are those of "split"."""
    return FrequencySplit(
        gate=config.gate,
        cutoff=config.cutoff,
        softness=config.softness,
        learnable=config.learnable_gate,
        mirror=config.mirror,
    )
