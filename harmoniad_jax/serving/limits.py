"""What a server accepts."""

import dataclasses

from harmoniad_jax.data.images import read_size
from harmoniad_jax.data.records import EncodedImage
from harmoniad_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a server accepts.

    Attributes:
      megabytes: of a request's body, in 10^6 bytes.
      megapixels: of an image, in 10^6 pixels.
      images: in a request.
      seconds: for a request, from its first byte to its answer.
      queue: images that may be accepted and not answered yet.
      requests: that may be read or judged at once.
    """

    megabytes: float = 64.0
    megapixels: float = 100.0
    images: int = 32
    seconds: float = 60.0
    queue: int = 64
    requests: int = 32

    def __post_init__(self) -> None:
        """Raises UserError where a limit is not above 0 or the queue is too short."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not value > 0:
                raise UserError(f"--max_{field.name}={value} must be above 0.")
        if self.queue < self.images:
            raise UserError(
                f"--max_queue={self.queue} is below --max_images={self.images}: a full "
                "request would never be accepted. Raise the first or lower the second."
            )

    @property
    def bytes(self) -> int:
        return int(self.megabytes * 1e6)


def too_large(image: EncodedImage, limits: Limits) -> str:
    """Why an image is refused before it is decoded, in words; empty: it is not.

    A file whose header cannot be read is left to the decoder, which has limits as well.
    """
    try:
        width, height = read_size(image)
    except UserError:
        return ""
    if width * height <= limits.megapixels * 1e6:
        return ""
    return (
        f"{image.name} is {width} x {height} px, {width * height / 1e6:,.0f} megapixels; "
        f"this server takes up to {limits.megapixels:,g}. Scale it down, or start the "
        "server with a larger --max_megapixels."
    )
