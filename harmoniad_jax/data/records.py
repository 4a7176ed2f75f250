"""What one image of a data set is, before any pixel is read."""

import dataclasses
import difflib
import hashlib
from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

import numpy as np

from harmoniad_jax.errors import UserError

GOOD = "good"
# The defect of an image whose label its publisher keeps.
UNLABELLED = "unlabelled"


class ImageFile(Protocol):
    """An encoded image somewhere: a `Path`, or an entry of a prepared data set.

    `str` of it is what a message calls it.
    """

    @property
    def name(self) -> str:
        """File name without folders."""

    def read_bytes(self) -> bytes:
        """The encoded image, as it was shipped."""


@dataclasses.dataclass(frozen=True)
class EncodedImage:
    """An encoded image in memory."""

    name: str
    data: bytes = dataclasses.field(repr=False)

    def read_bytes(self) -> bytes:
        return self.data

    def __str__(self) -> str:
        return self.name


@dataclasses.dataclass(frozen=True)
class Record:
    """One image and what is known of it.

    Attributes:
      image: the encoded image.
      category: product class; "DATA_SET/CLASS" where several data sets are joined.
      defect: name of the defect, `GOOD` where there is none.
      mask: encoded ground-truth mask; None for good images, and for defective ones whose
        mask is lost.
      sha256: of the encoded image, where it is known without reading the image; such an
        image was found readable when its data set was prepared.
      folder: of the image below that of its defect, such as "day1"; empty where it lies
        directly in it.
      view: which view of the image it is, see `variation.py`; 0: the image itself.
      source: of a view, the SHA-256 of the image; `sha256` is then that of the view.
      sample: name of the product within its category that the image is a view of; empty
        where there is one image of each product.
      masks: where the masks of the image are kept apart, all K of them as one image, one
        below the other; None where there is none.
      saturations: [K] shares of the image in (0, 1]: a defect counts as found as a whole
        when so much of it is.
    """

    image: ImageFile
    category: str
    defect: str = GOOD
    mask: ImageFile | None = None
    sha256: str | None = None
    folder: str = ""
    view: int = 0
    source: str | None = None
    sample: str = ""
    masks: ImageFile | None = None
    saturations: tuple[float, ...] = ()

    @property
    def is_labelled(self) -> bool:
        """Whether it is known if the image is defective."""
        return self.defect != UNLABELLED

    @property
    def is_anomalous(self) -> bool:
        """The image label. It comes from the folder, never from the mask."""
        return self.defect != GOOD

    @property
    def key(self) -> str:
        """A name of the image that stays the same when the data set is moved."""
        parts = (self.category, self.defect, self.folder, self.image.name)
        return "/".join(part for part in parts if part)


@dataclasses.dataclass(frozen=True)
class Dataset:
    """The records of a data set.

    Attributes:
      train: good images to learn from.
      test: good and defective images to measure on.
      held_out: good images that are neither: thresholds are set on them. They are the
        validation images of a data set that has its own.
    """

    train: Sequence[Record]
    test: Sequence[Record]
    held_out: Sequence[Record] = ()

    @property
    def categories(self) -> tuple[str, ...]:
        return tuple(sorted({record.category for record in self.train}))

    @property
    def train_fingerprint(self) -> str:
        """SHA-256 of the training images' names, in order: what a resumed run needs."""
        names = "\n".join(record.key for record in self.train)
        # A file name may hold bytes that are not text.
        return hashlib.sha256(names.encode("utf-8", "surrogateescape")).hexdigest()

    def hold_out(
        self,
        share: float,
        first: Mapping[Record, Record] | None = None,
        *,
        at_random: bool = True,
    ) -> "Dataset":
        """Moves a share of each category's training images to `held_out`.

        They are one of each of so many equal parts, in the order of their names: at least
        one of two or more. Which one of a part is drawn, always the same for so many
        images. Names often follow a cycle, such as stations of a line: with the middle of
        every tenth image all that is held out may be of one of ten stations.

        Copies of an image and views of a product count once and stay together: all are held
        out, or all are trained on. But a category keeps an image to train on, even if it is
        a copy. A category with validation images of its own keeps all of its training
        images.

        Args:
          share: of the images.
          first: each copy to the first record of the same image; none if None.
          at_random: False: the middle of each part, as in earlier versions.
        """
        own = {record.category for record in self.held_out}
        train = [record for record in self.train if record.category not in own]
        first = _groups(train, first or {})
        by_category: dict[str, list[Record]] = {}
        all_images: dict[str, set[Record]] = {}
        for record in train:
            records = by_category.setdefault(record.category, [])
            if first.get(record, record) == record:
                records.append(record)
            images = all_images.setdefault(record.category, set())
            images.add(first.get(record, record))
        chosen: set[Record] = set()
        for records in by_category.values():
            # A category of nothing but copies of another one's images has no records.
            least, most = int(share > 0), max(len(records) - 1, 0)
            count = min(max(round(share * len(records)), least), most)
            chosen |= {records[row] for row in _of_parts(len(records), count, at_random)}
        for images in all_images.values():
            if images <= chosen:
                chosen.remove(min(images, key=lambda record: record.key))
        held = {record for record in train if first.get(record, record) in chosen}
        return dataclasses.replace(
            self,
            train=[record for record in self.train if record not in held],
            held_out=[*self.held_out, *(record for record in train if record in held)],
        )

    def select(self, categories: Collection[str]) -> "Dataset":
        """The same data set with these categories only."""

        def of_these(records: Sequence[Record]) -> list[Record]:
            return [record for record in records if record.category in categories]

        held_out = tuple(of_these(self.held_out))
        return Dataset(of_these(self.train), of_these(self.test), held_out)


def _of_parts(total: int, count: int, at_random: bool) -> list[int]:
    """A row of each of `count` equal parts of `total` rows, `count` of them or fewer."""
    if not at_random:
        return [(2 * part + 1) * total // (2 * count) for part in range(count)]
    edges = np.arange(count + 1) * total // max(count, 1)
    # Not the seed of training: runs of several seeds are compared. NumPy promises that this
    # generator's numbers stay, which a resumed run needs.
    places = np.random.RandomState(total).random_sample(count)
    return (edges[:-1] + places * np.diff(edges)).astype(int).tolist()


def _groups(
    records: Sequence[Record], first: Mapping[Record, Record]
) -> dict[Record, Record]:
    """Each record to the first of those that it must stay with: copies and other views.

    Args:
      records: in order.
      first: each copy to the first record of the same image.
    """
    above: dict[Record, Record] = {}

    def top(record: Record) -> Record:
        while record in above:
            record = above[record]
        return record

    order = {record: index for index, record in enumerate(records)}
    views: dict[tuple[str, str], Record] = {}
    for record in records:
        mates = [first.get(record, record)]
        if record.sample:
            mates.append(views.setdefault((record.category, record.sample), record))
        for mate in mates:
            pair = {top(record), top(mate)}
            if len(pair) == 2:
                earlier, later = sorted(pair, key=lambda one: order.get(one, -1))
                above[later] = earlier
    return {record: top(record) for record in records}


def join(datasets: Mapping[str, Dataset]) -> Dataset:
    """One data set of several, whose categories are called DATA_SET/CLASS."""

    def renamed(name: str, records: Sequence[Record]) -> list[Record]:
        return [
            dataclasses.replace(record, category=f"{name}/{record.category}")
            for record in records
        ]

    parts = datasets.items()
    return Dataset(
        train=[r for name, part in parts for r in renamed(name, part.train)],
        test=[r for name, part in parts for r in renamed(name, part.test)],
        held_out=tuple(r for name, part in parts for r in renamed(name, part.held_out)),
    )


def check_categories(
    wanted: Collection[str],
    there: Collection[str],
    where: object,
    advice: str = "",
    setting: str = "data.categories",
) -> None:
    """Refuses categories that are not there.

    Args:
      wanted: names that the user gave.
      there: names that exist.
      where: what holds them, for the message.
      advice: what to do next, for the message.
      setting: that the names were given by, for the message.

    Raises:
      UserError: listing what is there.
    """
    unknown = [name for name in wanted if name not in there]
    if not unknown:
        return
    close = difflib.get_close_matches(unknown[0], there, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise UserError(
        f"{setting} names {', '.join(map(repr, unknown))}, which {where} does not "
        f"hold; there are {', '.join(sorted(there))}.{hint}{advice and ' ' + advice}"
    )
