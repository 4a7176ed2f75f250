"""What an exported file says of itself: all that decides about a verdict, as one JSON.

It is stored in the file, under the key "harmoniad", and beside it as `.json`.
docs/guide-deploy.md documents every field.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from harmoniad_jax.data.preprocess import Preprocessor
from harmoniad_jax.errors import UserError
from harmoniad_jax.inference.image_model import Rates
from harmoniad_jax.run.normality import GoodImages

METADATA_KEY = "harmoniad"
# Counts up where an older reader would misunderstand the file.
FORMAT_VERSION = 1
INPUT, MAPS, SCORES = "images", "anomaly_maps", "image_scores"


@dataclasses.dataclass(frozen=True)
class Description:
    """What an exported file says of itself.

    Attributes:
      preprocessor: makes the network's input of an image.
      calibration: what good images score; None where no image was held out.
      rates: what is accepted by default.
      score_tolerance: by how much the file's scores may differ from those of the
        calibration, which the training program computed; see `ImageModel`.
      precision: "float32", "float16" (of the stored weights) or "int8".
      encoder: "name", and "weight_hash", SHA-256 of its weights.
      program: "name" and "version" of what wrote the file.
      proof: what was compared when the file was written, and the differences found.
      licence: a note on the licences of what is in the file.
    """

    preprocessor: Preprocessor
    calibration: GoodImages | None
    rates: Rates
    score_tolerance: float
    precision: str
    encoder: Mapping[str, str]
    program: Mapping[str, str]
    proof: Mapping[str, Any]
    licence: str

    def to_json(self) -> dict[str, Any]:
        height, width = self.preprocessor.all_shapes[0]
        calibration = self.calibration
        categories = [*calibration.per_category, *calibration.others] if calibration else []
        return {
            "format_version": FORMAT_VERSION,
            "program": dict(self.program),
            "input": {
                "name": INPUT,
                "dtype": "uint8",
                "layout": "batch, height, width, RGB",
                "height": height,
                "width": width,
            },
            "outputs": {"anomaly_maps": MAPS, "image_scores": SCORES},
            "preprocessor": self.preprocessor.to_json(),
            "categories": sorted(categories),
            "rates": self.rates._asdict(),
            "calibration": calibration.to_json() if calibration else None,
            "score_tolerance": self.score_tolerance,
            "precision": self.precision,
            "encoder": dict(self.encoder),
            "proof": dict(self.proof),
            "licence": self.licence,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Description":
        """Raises KeyError, TypeError or ValueError where something is missing or wrong."""
        calibration = values["calibration"]
        return cls(
            preprocessor=Preprocessor.from_json(values["preprocessor"]),
            calibration=GoodImages.from_json(calibration) if calibration else None,
            rates=Rates(**values["rates"]),
            score_tolerance=float(values["score_tolerance"]),
            precision=values["precision"],
            encoder=values["encoder"],
            program=values["program"],
            proof=values["proof"],
            licence=values["licence"],
        )


def read_description(path: object, text: str | None) -> Description:
    """The description that a file holds.

    Args:
      path: of the file, for messages.
      text: JSON; None if it holds none.

    Raises:
      UserError: it was not written by this program, by a later version, or is damaged.
    """
    if text is None:
        raise UserError(
            f"{path} is a model of something else: it does not hold what python -m "
            "harmoniad_jax.export writes. Export a run with that command."
        )
    try:
        values = json.loads(text)
        version = int(values["format_version"])
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(_damaged(path, error)) from None
    if version > FORMAT_VERSION:
        raise UserError(
            f"{path} has format version {version}, of a later program; this one reads up "
            f"to {FORMAT_VERSION}. Update harmoniad-jax, or export the run with this one."
        )
    try:
        return Description.from_json(values)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(_damaged(path, error)) from None


def _damaged(path: object, error: Exception) -> str:
    return (
        f"{path} holds a damaged description ({type(error).__name__}: {error}); export the "
        "run again."
    )
