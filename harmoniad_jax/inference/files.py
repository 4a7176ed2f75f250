"""From files on disk to predictions on disk."""

import collections
import contextlib
import glob
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

from harmoniad_jax.data.suffixes import looks_like_photo
from harmoniad_jax.errors import UserError, system_problem
from harmoniad_jax.inference.image_model import ImageModel, Query, Question
from harmoniad_jax.inference.result import ImageResult
from harmoniad_jax.inference.writer import (
    CSV_FILE,
    OVERLAY_SIDE,
    PARTIAL_FILE,
    PredictionWriter,
)
from harmoniad_jax.words import in_words

# A path of more bytes is none, on any system.
LONGEST_PATH = 4096
# The exit status of a command that met files it could not read.
UNREADABLE_STATUS = 1
UNREADABLE = "unreadable"  # counted like the verdicts True, False and None


def judge_files(
    open_model: Callable[[], ImageModel],
    source: str,
    output: Path,
    *,
    category: str | None = None,
    false_positive_rate: float | None = None,
    threshold: float | None = None,
    maps: str = "png",
    map_size: str = "image",
    overlays: bool = True,
    overwrite: bool = False,
    progress: Callable[[Sequence[PurePosixPath]], Iterable[PurePosixPath]] = iter,
) -> int:
    """Judges image files and writes what `PredictionWriter` writes.

    Args:
      open_model: gives the model. It is called when there is something to judge and a
        place to write to, since it may take long.
      source: an image file, a folder (with all images below it), or a glob.
      output: folder to write to.
      category: product class of all images. If None, see `guess_category`.
      false_positive_rate, threshold: see `ImageModel.predict`.
      maps, map_size, overlays, overwrite: see `PredictionWriter`.
      progress: shows how far it is while it iterates over the images' names.

    Returns:
      The number of files that could not be read.

    Raises:
      UserError: no images, no model, or nowhere to write.
    """
    files, names, base = _inputs(source, output)
    writer = PredictionWriter(
        output, maps=maps, map_size=map_size, overlays=overlays, overwrite=overwrite
    )
    model = open_model()
    queries = [
        Query(file, category or guess_category(name, model.categories, base))
        for file, name in zip(files, names, strict=True)
    ]
    if not category:
        _say_whose_folder(model, base, names)
    _say_whose_thresholds(model, queries, threshold)
    thumbnail_side = OVERLAY_SIDE if overlays else 0
    question = Question(false_positive_rate, threshold, thumbnail_side)
    results = model.stream(queries, question)
    with _saying_what_is_left(output), writer:
        counts = _write_all(writer, progress(names), results)
    _say_what_was_found(counts, output)
    return counts[UNREADABLE]


def _inputs(source: str, output: Path) -> tuple[list[Path], list[PurePosixPath], Path]:
    """The image files to judge, what each is called in the output, and from which folder.

    Raises:
      UserError: there are none.
    """
    files, base = find_files(source)
    # What an earlier call wrote into a folder below is not an input.
    files = [file for file in files if not file.resolve().is_relative_to(output.resolve())]
    if not files:
        raise UserError(f"--input={source} holds no images but those below --output.")
    names = [PurePosixPath(file.relative_to(base).as_posix()) for file in files]
    return files, names, base


def _say_whose_folder(
    model: ImageModel, base: Path, names: Sequence[PurePosixPath]
) -> None:
    """Prints the product that is taken from the folder of --input, and of how many."""
    found = guess_category(PurePosixPath("image"), model.categories, base)
    count = sum(guess_category(name, model.categories) is None for name in names)
    if found and count and len(model.categories) > 1:
        print(f"{in_words(count, 'image', 'images')} in {base}: taken as {found}.")


def _say_whose_thresholds(
    model: ImageModel, queries: Sequence[Query], threshold: float | None
) -> None:
    """Prints which images are judged by the threshold of all products, and why."""
    borrowing = {query.category for query in queries} & set(
        model.categories_without_threshold
    )
    if borrowing:
        print(
            f"Of {', '.join(sorted(borrowing))} there was a single training image, so that "
            "none could be held out: the threshold of all products is taken. More photos "
            "in training give it one of its own."
        )
    unknown = sum(query.category is None for query in queries)
    # Where no image was held out there are neither categories nor thresholds.
    if unknown and model.categories and threshold is None:
        print(
            f"Of {in_words(unknown, 'image', 'images')} the product is not known, so that "
            "the threshold of all products is taken, which may find less: put them into "
            "folders with the products' names, or give --category. There are "
            f"{', '.join(model.categories)}."
        )


def _write_all(
    writer: PredictionWriter,
    names: Iterable[PurePosixPath],
    results: Iterator[ImageResult | UserError],
) -> collections.Counter:
    """Writes every result; counts verdicts and what could not be read."""
    counts: collections.Counter = collections.Counter()
    for name, result in zip(names, results, strict=True):
        if isinstance(result, UserError):
            writer.write_error(name, str(result))
            counts[UNREADABLE] += 1
        else:
            writer.write(name, result)
            counts[result.is_defective] += 1
    return counts


def _say_what_was_found(counts: collections.Counter, output: Path) -> None:
    if counts[None]:
        print(
            "The run held no images out (config.calibration.holdout=0, or a single photo "
            "of each product), so there is no verdict without --threshold=SCORE, and no "
            "map but with --maps=npy."
        )
    parts = [f"{counts[True]} defective", f"{counts[False]} good"]
    parts += [f"{counts[None]} without threshold"] if counts[None] else []
    parts += [f"{counts[UNREADABLE]} unreadable"] if counts[UNREADABLE] else []
    judged = in_words(counts.total(), "image", "images")
    print(f"{judged}: {', '.join(parts)}; see {output / CSV_FILE}")


@contextlib.contextmanager
def _saying_what_is_left(output: Path) -> Iterator[None]:
    """Tells where the rows are, and how to go on, after Ctrl-C or when the disk is full.

    Raises:
      UserError: the system refuses to write.
    """
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{system_problem(error, output)} What was judged so far is in "
            f"{output / PARTIAL_FILE}; add --overwrite to judge all images anew."
        ) from None
    except KeyboardInterrupt:
        print(
            f"not finished: what was judged so far is in {output / PARTIAL_FILE}; add "
            "--overwrite to judge all images anew",
            file=sys.stderr,
        )
        raise


def find_files(source: str) -> tuple[list[Path], Path]:
    """The files that an --input means, sorted, and the folder that they are named from.

    Raises:
      UserError: there are none.
    """
    if not source:
        raise UserError("--input is empty; give an image, a folder of images or a glob.")
    path = Path(source).expanduser()
    if len(os.fsencode(source)) > LONGEST_PATH or "\0" in source:
        files, base = [], path
    elif path.is_dir():
        files, base = photos_below(path), path
    elif path.is_file():
        files, base = [path], path.parent
    else:
        found = [Path(match) for match in glob.glob(str(path), recursive=True)]
        files = [file for file in found if _is_file(file)]
        if not files:
            below = [photos_below(folder) for folder in found]
            files = list(dict.fromkeys(sum(below, [])))
        base = Path(os.path.commonpath([file.parent for file in files])) if files else path
    if not files:
        raise UserError(
            f"--input={source} is no image file, no folder with images, and no pattern "
            'that matches any; for example --input=photos or --input="photos/*.png".'
        )
    return sorted(files), base


def photos_below(folder: Path) -> list[Path]:
    """All that looks like a photo in a folder or below it, and folders that are closed.

    They are all returned, so that each of them gets a row: one with an error, if it cannot
    be read. Links to folders are followed, but for those that lead back.
    """
    found: list[Path] = []

    def note(error: OSError) -> None:
        found.append(Path(error.filename))

    for place, folders, names in os.walk(folder, onerror=note, followlinks=True):
        here = Path(place).resolve()
        above = {here, *here.parents}
        folders[:] = [name for name in folders if Path(place, name).resolve() not in above]
        files = (Path(place, name) for name in names)
        found += [file for file in files if looks_like_photo(file) and _is_file(file)]
    return found


def _is_file(path: Path) -> bool:
    """Whether it is a file, or a link that leads nowhere, which gets a row too."""
    return path.is_file() or (path.is_symlink() and not path.exists())


def guess_category(
    name: PurePosixPath, categories: Sequence[str], base: Path | None = None
) -> str | None:
    """The product class of an image: the only one, or one that a folder is called.

    Args:
      name: path of the image below `base`. If just one class is a folder of it, that one.
      categories: of the run.
      base: that --input named. If no class is a folder of `name`, the last folder of `base`
        that is called as a class.
    """
    if len(categories) == 1:
        return categories[0]
    folders = "/".join(["", *name.parts[:-1], ""])
    found = [category for category in categories if f"/{category}/" in folders]
    if found or base is None:
        return found[0] if len(found) == 1 else None
    # The name of "." is that of the folder which it stands for.
    parts = [*base.parts[:-1], base.resolve().name]
    while parts:
        path = "/".join(["", *parts])
        found = [category for category in categories if path.endswith(f"/{category}")]
        if found:
            return max(found, key=len)
        parts.pop()
    return None
