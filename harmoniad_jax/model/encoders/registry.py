"""The families of encoders that there are: a new one is a file and a line here."""

from harmoniad_jax.model.encoders.clip import Clip
from harmoniad_jax.model.encoders.dinov2 import Dinov2
from harmoniad_jax.model.encoders.family import Family

# By the `model_type` of config.json.
FAMILIES: dict[str, Family] = {}


def register(family: Family) -> None:
    """Lets checkpoints of a family be read."""
    FAMILIES.update(dict.fromkeys(family.model_types, family))


register(Clip())
register(Dinov2())
