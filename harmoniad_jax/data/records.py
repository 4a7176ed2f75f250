"""What one image of a data set is, before any pixel is read."""

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path

GOOD = "good"


@dataclasses.dataclass(frozen=True)
class Record:
    """One image on disk and what is known of it.

    Attributes:
      image: the image file.
      category: product class.
      defect: name of the defect, `GOOD` where there is none.
      mask: ground-truth mask file; None for good images, and for defective ones whose
        mask is lost.
    """

    image: Path
    category: str
    defect: str = GOOD
    mask: Path | None = None

    @property
    def is_anomalous(self) -> bool:
        """The image label. It comes from the folder, never from the mask."""
        return self.defect != GOOD

    @property
    def key(self) -> str:
        """A name of the image that stays the same when the data set is moved."""
        return f"{self.category}/{self.defect}/{self.image.name}"


@dataclasses.dataclass(frozen=True)
class Dataset:
    """The records of a data set: `train` holds good images only."""

    train: Sequence[Record]
    test: Sequence[Record]

    @property
    def categories(self) -> tuple[str, ...]:
        return tuple(sorted({record.category for record in self.train}))

    @property
    def train_fingerprint(self) -> str:
        """SHA-256 of the training images' names, in order: what a resumed run needs."""
        names = "\n".join(record.key for record in self.train)
        return hashlib.sha256(names.encode()).hexdigest()
