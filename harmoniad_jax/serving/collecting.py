"""Photos that were good after all, kept for `python -m harmoniad_jax.calibrate`."""

import hashlib
import uuid
from pathlib import Path

from harmoniad_jax.data.records import EncodedImage
from harmoniad_jax.errors import UserError, system_problem
from harmoniad_jax.inference.image_model import ImageModel, Query

UNKNOWN = "unknown"
# Whatever a client calls its file, the content decides.
SUFFIXES = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg", b"II*\0": ".tif", b"MM\0*": ".tif"}
# Pillow looks at the content, so that it reads others under this name too.
OTHER_SUFFIX = ".png"


def keep(folder: Path, model: ImageModel, data: bytes, category: str | None) -> Path:
    """Stores an image under the hash of its content, in the folder of its product.

    Args:
      folder: of all collected images.
      model: decodes the image, so that nothing else is stored, and knows the products.
      data: the encoded image.
      category: product, if known.

    Returns:
      Its path. The same image is stored once.

    Raises:
      UserError: no image, an unknown product, or the system refuses to write.
    """
    image = EncodedImage("the image", data)
    query = Query(image, category)
    model.check([query])
    loaded = model.load_image(query)
    if loaded.error:
        raise UserError(loaded.error)
    suffix = next((s for start, s in SUFFIXES.items() if data.startswith(start)), None)
    # One that the model knows may be called DATA_SET/CLASS, and is found again by that.
    safe = (category or UNKNOWN).replace("/", "_").strip(".")
    place = folder / (category if category in model.categories else safe)
    path = place / (hashlib.sha256(data).hexdigest()[:32] + (suffix or OTHER_SUFFIX))
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        place.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError as error:
        raise UserError(
            f"the image cannot be kept. {system_problem(error, place)}"
        ) from None
    except ValueError:  # of a model that knows no products: it may hold any character
        raise UserError(f"the product {category!r} cannot be a folder's name.") from None
    return path
