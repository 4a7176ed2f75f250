"""The images of a run: each is read once, hashed, decoded and scaled in one go.

What was scaled waits in memory for the encoder, as long as there is room. An image whose
features are stored already is not decoded: it was when they were made.
"""

import dataclasses
import hashlib
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from tqdm import tqdm

from harmoniad_jax.data.folder import LISTED_PROBLEMS, unreadable
from harmoniad_jax.data.preprocess import Preprocessor
from harmoniad_jax.data.records import EncodedImage, ImageFile, Record
from harmoniad_jax.data.shapes import Shape
from harmoniad_jax.devices.processes import map_shared, my_share, together
from harmoniad_jax.errors import UserError, raise_problems
from harmoniad_jax.features.caches import FeatureCaches
from harmoniad_jax.words import in_words

logger = logging.getLogger(__name__)

# Scaled images that may wait for the encoder: 13,000 of 224 px. Others are read again.
WAITING_BYTES = 2_000_000_000
# Notes on images that are shown; the others are counted.
NAMED = 3
# A set of images whose brightest pixel is below this uses little of its range.
DARK = 32
DIGEST_BYTES = hashlib.sha256().digest_size


class ImageReader:
    """Reads the images of a run. Processes divide them among each other."""

    def __init__(
        self, preprocessor: Preprocessor, threads: int, cache: FeatureCaches | None = None
    ):
        """Reads nothing yet.

        Args:
          preprocessor: of the run.
          threads: that read at the same time.
          cache: of features; None: nothing is stored.
        """
        self._preprocessor, self._threads = preprocessor, threads
        self.cache = cache
        self._hashed: dict[Record, Record] = {}
        self._waiting: dict[tuple[Shape, str], np.ndarray] = {}
        self._room = WAITING_BYTES
        self._notes: list[str] = []
        self._brightest = 0

    def read(
        self,
        records: Sequence[Record],
        images: Sequence[ImageFile] = (),
        masks: Sequence[ImageFile] = (),
    ) -> None:
        """Reads images, and tries whether other files can be read. Every process calls it.

        Args:
          records: to be hashed and encoded.
          images, masks: files that are decoded only.

        Raises:
          UserError: naming the files that cannot be read.
        """
        wanted = [record for record in dict.fromkeys(records) if record not in self._hashed]
        problems: list[str] = []
        digests = map_shared(
            lambda share: self._digests(share, problems), wanted, DIGEST_BYTES
        )

        def check() -> None:
            decode = self._preprocessor.decode
            problems.extend(unreadable(my_share(images), my_share(masks), decode))
            raise_problems(problems, LISTED_PROBLEMS)

        together(check)
        self._warn()
        for record, digest in zip(wanted, digests, strict=True):
            self._hashed[record] = dataclasses.replace(record, sha256=digest.hex())

    def _warn(self) -> None:
        """Says once what must be known of the images that were decoded."""
        if self._notes:
            logger.warning(
                "%s to look at: %s",
                in_words(len(self._notes), "image", "images"),
                "; ".join(self._notes[:NAMED]),
            )
            self._notes.clear()
        if 0 < self._brightest < DARK:
            logger.warning(
                "the brightest pixel of all images that were read is %d of 255: if they "
                "are deeper than 8 bits, give their white: --config.data.white_level=VALUE",
                self._brightest,
            )
        self._brightest = 0

    def hashed(self, records: Sequence[Record]) -> list[Record]:
        """The records with the SHA-256 of their images, which are read if they were not.

        Every process calls it.

        Raises:
          UserError: naming the files that cannot be read.
        """
        self.read(records)
        return [self._hashed[record] for record in records]

    def take(self, record: Record) -> np.ndarray:
        """The encoder's input for a hashed record, [H, W, 3] uint8; it waits no more.

        Raises:
          UserError: the image had to be read again, and is another one by now.
        """
        pixels = self._waiting.pop(self._key(record), None)
        if pixels is None:
            image = UnchangedImage(record.image, record.sha256)
            return self._preprocessor.load(image, record.category)
        self._room += pixels.nbytes
        return pixels

    def _key(self, record: Record) -> tuple[Shape, str]:
        """What the input of a hashed record waits by."""
        return self._preprocessor.shape_of(record.category), record.sha256

    def _digests(self, records: Sequence[Record], problems: list[str]) -> list[bytes]:
        """The SHA-256 of each image; zeros, and a problem, where it cannot be read."""

        def digest(record: Record) -> bytes:
            try:
                return self._read(record)
            except UserError as error:
                problems.append(str(error))
            except OSError as error:
                problems.append(f"{record.image} cannot be read ({error})")
            return bytes(DIGEST_BYTES)

        with ThreadPoolExecutor(self._threads) as pool:
            digests = pool.map(digest, records)
            return list(
                tqdm(digests, "reading images", len(records), leave=False, disable=None)
            )

    def _read(self, record: Record) -> bytes:
        if record.sha256 is not None:  # it was read when its data set was prepared
            return bytes.fromhex(record.sha256)
        data = record.image.read_bytes()
        digest = hashlib.sha256(data).digest()
        hashed = dataclasses.replace(record, sha256=digest.hex())
        if self.cache is None or hashed not in self.cache:
            decoded = self._preprocessor.decode(EncodedImage(str(record.image), data))
            pixels = self._preprocessor.scale(decoded.image, record.category)
            self._notes += [f"{record.image}: {decoded.note}"] if decoded.note else []
            self._brightest = max(self._brightest, int(pixels.max()))
            if pixels.nbytes <= self._room:
                self._room -= pixels.nbytes
                self._waiting[self._key(hashed)] = pixels
        return digest


@dataclasses.dataclass(frozen=True)
class UnchangedImage:
    """An image file that must still hold what it held when it was hashed."""

    file: ImageFile
    sha256: str

    @property
    def name(self) -> str:
        return self.file.name

    def read_bytes(self) -> bytes:
        """The encoded image.

        Raises:
          UserError: it is another one by now.
        """
        data = self.file.read_bytes()
        if hashlib.sha256(data).hexdigest() != self.sha256:
            raise UserError(f"{self.file} changed while the program ran; start again.")
        return data

    def __str__(self) -> str:
        return str(self.file)
