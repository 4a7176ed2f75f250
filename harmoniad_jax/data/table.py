"""From a table of paths and labels to a `Dataset`.

    image_path,label,mask_path,split,category
    ok/001.png,normal,,train,bottle
    ng/001.png,abnormal,masks/001.png,test,bottle

`image_path` and `label` are needed. `mask_path`, `split` (train, val, test), `category`,
`defect` (the name of it) and `sample` (the product that several images show) may be there,
in any order; other columns are not read. Without a split the normal images are trained on
and the others are tested on, with the normal views of the same products.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harmoniad_jax.data.named_folders import split_off
from harmoniad_jax.data.pairs import aspect_problem
from harmoniad_jax.data.records import GOOD, Dataset, Record, check_categories
from harmoniad_jax.errors import LISTED_PROBLEMS, UserError, raise_problems

NEEDED = ("image_path", "label")
DELIMITERS = ",;\t"
ANOMALOUS = "anomalous"
LABELS = {
    **dict.fromkeys(("normal", "good", "ok", "0"), True),
    **dict.fromkeys(
        ("abnormal", "anomalous", "anomaly", "bad", "defective", "ng", "1"), False
    ),
}
SPLITS = {
    "train": "train",
    "test": "test",
    **dict.fromkeys(("val", "valid", "validation"), "validation"),
}


def table_dataset(
    path: Path,
    root: Path | None = None,
    categories: Sequence[str] = (),
    test_share: float = 0.0,
) -> Dataset:
    """Lists the images of a table; good ones for validation are the held-out ones.

    Args:
      path: a CSV file, with commas, semicolons or tabs.
      root: that its paths are relative to; None: the file's own folder.
      categories: the ones to take; all that are there if empty. Without a column
        `category` there is one, called as the file is.
      test_share: of the normal images that are tested on instead of trained on, where the
        table does not say what is.

    Raises:
      UserError: it is not such a table, a file is not there, a label or a split that is not
        known, an image that is there twice, a product in two splits. Every problem is
        listed, with its line.
    """
    rows, has_split = _rows(path)
    base = path.parent if root is None else root
    problems: list[str] = []
    parts: dict[str, list[Record]] = {"train": [], "validation": [], "test": []}
    seen: dict[str, int] = {}
    for line, row in rows:
        split, record, problem = _record(row, base, path.stem)
        first = seen.setdefault(row["image_path"], line)
        if first != line:
            problem = f"{row['image_path']!r} is in line {first} too"
        if problem:
            problems.append(f"{path}:{line}: {problem}")
        else:
            parts[split].append(record)
    names = sorted({record.category for records in parts.values() for record in records})
    if not problems:
        check_categories(categories, names, path)
    chosen = set(categories) or set(names)
    train, held_out, test = (
        [record for record in records if record.category in chosen]
        for records in parts.values()
    )
    if not has_split:
        train, good = _without_defective_products(train, test)
        train, more = _split_each(train, test_share)
        test += good + more
    problems += _products_in_two(path, {"train": train, "val": held_out, "test": test})
    for name in sorted(chosen - {record.category for record in train}):
        problems.append(f"{path} lists no normal image of {name} to learn from")
    raise_problems(problems, LISTED_PROBLEMS)
    return Dataset(train=train, test=test, held_out=tuple(held_out))


def _rows(path: Path) -> tuple[list[tuple[int, dict[str, str]]], bool]:
    """Line number and cells of each row, and whether the table says what is trained on."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
        header = text.partition("\n")[0]
        delimiter = max(DELIMITERS, key=header.count)
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
        names = [(name or "").strip() for name in reader.fieldnames or ()]
        reader.fieldnames = names
        rows = [(reader.line_num, _cells(row)) for row in reader]
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}).") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is not a table of text ({error}).") from None
    missing = [name for name in NEEDED if name not in names]
    if missing:
        raise UserError(
            f"{path} has no column {' and no column '.join(missing)}; its columns are "
            f"{', '.join(names) or 'none'}."
        )
    rows = [(line, row) for line, row in rows if any(row.values())]
    return rows, any(row.get("split") for _, row in rows)


def _cells(row: Mapping[str | None, Any]) -> dict[str, str]:
    """Cells without spaces around them; those of a short line are empty."""
    cells = {name: cell for name, cell in row.items() if isinstance(name, str)}
    return {name: (cell or "").strip() for name, cell in cells.items()}


def _record(
    row: Mapping[str, str], base: Path, default_category: str
) -> tuple[str, Record | None, str]:
    """The split and the record of a row, or what is wrong with it, in words."""
    good = LABELS.get(row["label"].casefold())
    if good is None:
        known = ", ".join(LABELS)
        return "", None, f"the label is {row['label']!r}; allowed are {known}"
    named = row.get("split", "").casefold() or ("train" if good else "test")
    split = SPLITS.get(named)
    if split is None:
        return "", None, f"the split is {row['split']!r}; allowed are {', '.join(SPLITS)}"
    if split != "test" and not good:
        return "", None, f"a defective image is for {named}; it can be tested on alone"
    given = Path(row["image_path"])
    image, mask = base / given, row.get("mask_path", "") if not good else ""
    for file in (image, *([base / mask] if mask else [])):
        if not file.is_file():
            return "", None, f"{file} is not there"
    if mask and (found := aspect_problem(image, base / mask)):
        return "", None, found[0]
    record = Record(
        image,
        row.get("category", "") or default_category,
        GOOD if good else _defect(row.get("defect", "")),
        base / mask if mask else None,
        folder="" if given.is_absolute() else given.parent.as_posix().strip("."),
        sample=row.get("sample", ""),
    )
    return split, record, ""


def _defect(name: str) -> str:
    return ANOMALOUS if name in ("", GOOD) else name


def _without_defective_products(
    train: Sequence[Record], test: Sequence[Record]
) -> tuple[list[Record], list[Record]]:
    """Training images of other products than are tested on, and of the same."""
    tested = {(record.category, record.sample) for record in test if record.sample}
    parts: tuple[list[Record], list[Record]] = ([], [])
    for record in train:
        parts[(record.category, record.sample) in tested].append(record)
    return parts


def _products_in_two(path: Path, parts: Mapping[str, Sequence[Record]]) -> list[str]:
    """What is wrong with products of which some views are in one split, some in another."""
    places: dict[tuple[str, str], set[str]] = {}
    for name, records in parts.items():
        for record in records:
            if record.sample:
                places.setdefault((record.category, record.sample), set()).add(name)
    return [
        f"{path}: images of the sample {sample!r} of {category} are in "
        f"{' and '.join(sorted(names))}; put all of them into one"
        for (category, sample), names in places.items()
        if len(names) > 1
    ]


def _split_each(
    records: Sequence[Record], share: float
) -> tuple[list[Record], list[Record]]:
    """`split_off` of each category."""
    kept: list[Record] = []
    taken: list[Record] = []
    for name in dict.fromkeys(record.category for record in records):
        own = [record for record in records if record.category == name]
        for whole, part in zip((kept, taken), split_off(own, share), strict=True):
            whole += part
    return kept, taken
