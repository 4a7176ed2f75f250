"""The images of a run: each is read once, hashed, decoded and scaled in one go.

What was scaled waits in memory for the encoder, as long as there is room. An image whose
features are stored already is not decoded: it was when they were made.
"""

import dataclasses
import hashlib
import logging
import threading
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
from tqdm import tqdm

from harmoniad_jax.config import VariationConfig
from harmoniad_jax.data.ahead import prefetched
from harmoniad_jax.data.copies import THUMBNAIL_SIDE, nearly_alike, thumbnail
from harmoniad_jax.data.folder import unreadable
from harmoniad_jax.data.preprocess import Preprocessor
from harmoniad_jax.data.records import EncodedImage, ImageFile, Record
from harmoniad_jax.data.shapes import Shape
from harmoniad_jax.data.variation import vary
from harmoniad_jax.devices.processes import is_main, map_shared, my_share, together
from harmoniad_jax.errors import LISTED_PROBLEMS, UserError, raise_problems
from harmoniad_jax.features.caches import FeatureCaches
from harmoniad_jax.words import in_words

logger = logging.getLogger(__name__)

# Scaled images that may wait for the encoder: 13,000 of 224 px. Others are read again.
WAITING_BYTES = 2_000_000_000
LOCKS = 64
# Notes on images that are shown; the others are counted.
NAMED = 3
# A set of images whose brightest pixel is below this uses little of its range.
DARK = 32
DIGEST_BYTES = hashlib.sha256().digest_size
THUMBNAIL_BYTES = THUMBNAIL_SIDE**2
NO_VARIATION = VariationConfig()
# The thumbnail of an image that was not decoded; a black one is none that can be judged.
NOT_DECODED = bytes(THUMBNAIL_BYTES)


class ImageReader:
    """Reads the images of a run. Processes divide them among each other."""

    def __init__(
        self,
        preprocessor: Preprocessor,
        threads: int,
        cache: FeatureCaches | None = None,
        variation: VariationConfig = NO_VARIATION,
    ):
        """Reads nothing yet.

        Args:
          preprocessor: of the run.
          threads: that read at the same time.
          cache: of features; None: nothing is stored.
          variation: how views of an image differ from it.
        """
        self._preprocessor, self._threads = preprocessor, threads
        self._variation = variation
        self.cache = cache
        self._hashed: dict[Record, Record] = {}
        self._waiting: dict[tuple[Shape, str], np.ndarray] = {}
        self._room = WAITING_BYTES
        self._outstanding: Counter = Counter()
        # One for the books, and some for images: views of one image wait for each other.
        self._lock = threading.Lock()
        self._locks = [threading.Lock() for _ in range(LOCKS)]
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
        width = DIGEST_BYTES + THUMBNAIL_BYTES
        found = map_shared(lambda share: self._digests(share, problems), wanted, width)

        def check() -> None:
            decode = self._preprocessor.decode
            problems.extend(unreadable(my_share(images), my_share(masks), decode))
            raise_problems(problems, LISTED_PROBLEMS)

        together(check)
        self._warn()
        self._warn_of_series(wanted, found)
        for record, digest in zip(wanted, found, strict=True):
            sha256 = digest[:DIGEST_BYTES].hex()
            self._hashed[record] = dataclasses.replace(record, sha256=sha256)

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

    def _warn_of_series(self, records: Sequence[Record], found: Sequence[bytes]) -> None:
        """Says how many of the good images that were decoded are nearly like others."""
        products: dict[str, dict[bytes, tuple[Record, bytes]]] = defaultdict(dict)
        for record, values in zip(records, found, strict=True):
            digest, small = values[:DIGEST_BYTES], values[DIGEST_BYTES:]
            if small != NOT_DECODED and not record.is_anomalous:
                products[record.category].setdefault(digest, (record, small))
        alike = []
        for product in products.values():
            names, thumbnails = zip(*product.values(), strict=True)
            alike += [(names[a], names[b]) for a, b in nearly_alike(thumbnails)]
        if alike and is_main():
            first, other = alike[0]
            logger.warning(
                "%s nearly like another one of its product, such as %s and %s: several "
                "photos of one part make thresholds too low; keep one of them",
                in_words(len(alike), "good image is", "good images are"),
                *(first.key, other.key),
            )

    def hashed(self, records: Sequence[Record]) -> list[Record]:
        """The records with the SHA-256 of their images, which are read if they were not.

        Every process calls it.

        Raises:
          UserError: naming the files that cannot be read.
        """
        self.read(records)
        return [self._hashed[record] for record in records]

    def take(self, record: Record) -> np.ndarray:
        """The encoder's input for a hashed record or a view of it, [H, W, 3] uint8.

        The image waits for the last of its views that were expected, and no longer.

        Raises:
          UserError: the image had to be read again, and is another one by now.
        """
        key = self._key(record)
        with self._locks[hash(key) % LOCKS]:
            pixels = self._waiting.get(key)
            if pixels is None:
                image = UnchangedImage(record.image, record.source or record.sha256)
                pixels = self._preprocessor.load(image, record.category)
            self._outstanding[key] -= 1
            if self._outstanding[key] > 0:
                self._keep(key, pixels)
            else:
                self._let_go(key)
        return vary(pixels, record.sha256, self._variation) if record.view else pixels

    def expect(self, records: Sequence[Record]) -> None:
        """Lets each image wait for these records of it, which are to be taken."""
        self._outstanding = Counter(map(self._key, records))

    def _keep(self, key: tuple[Shape, str], pixels: np.ndarray) -> None:
        with self._lock:
            if key not in self._waiting and pixels.nbytes <= self._room:
                self._room -= pixels.nbytes
                self._waiting[key] = pixels

    def _let_go(self, key: tuple[Shape, str]) -> None:
        with self._lock:
            pixels = self._waiting.pop(key, None)
            self._room += 0 if pixels is None else pixels.nbytes

    def _key(self, record: Record) -> tuple[Shape, str]:
        """What the input of a hashed record waits by; its views wait by the same."""
        shape = self._preprocessor.shape_of(record.category)
        return shape, record.source or record.sha256

    def _digests(self, records: Sequence[Record], problems: list[str]) -> list[bytes]:
        """The SHA-256 of each image, then its thumbnail.

        Zeros where it cannot be read, and a problem. `NOT_DECODED` where that was not done.
        """

        def digest(record: Record) -> bytes:
            try:
                return self._read(record)
            except UserError as error:
                problems.append(str(error))
            except OSError as error:
                problems.append(f"{record.image} cannot be read ({error})")
            return bytes(DIGEST_BYTES) + NOT_DECODED

        digests = prefetched(records, digest, self._threads)
        return list(
            tqdm(digests, "reading images", len(records), leave=False, disable=None)
        )

    def _read(self, record: Record) -> bytes:
        if record.sha256 is not None:  # it was read when its data set was prepared
            return bytes.fromhex(record.sha256) + NOT_DECODED
        data = record.image.read_bytes()
        digest, small = hashlib.sha256(data).digest(), NOT_DECODED
        hashed = dataclasses.replace(record, sha256=digest.hex())
        if self.cache is None or hashed not in self.cache:
            decoded = self._preprocessor.decode(EncodedImage(str(record.image), data))
            pixels = self._preprocessor.scale(decoded.image, record.category)
            self._notes += [f"{record.image}: {decoded.note}"] if decoded.note else []
            small = thumbnail(pixels)
            self._brightest = max(self._brightest, int(pixels.max()))
            self._keep(self._key(hashed), pixels)
        return digest + small


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
