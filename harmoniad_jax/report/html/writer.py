"""The report of an evaluation: a folder that opens in a browser, without a network.

FOLDER/index.html      the page: table, plots and images of every category
FOLDER/plots/*.png   its plots for use elsewhere, *.svg as the page shows them
FOLDER/images/*        its images

Files are numbered in the order of categories and samples; no name of the data set is
part of a path.
"""

import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from PIL import Image

from harmoniad_jax.errors import UserError
from harmoniad_jax.report import pictures, plots
from harmoniad_jax.report.content import CategoryContent, Sample
from harmoniad_jax.report.html.page import GENERATOR, document
from harmoniad_jax.report.html.section import Bar, Plot, Section, View, category_section
from harmoniad_jax.report.pictures import ColourScale

INDEX = "index.html"
# No visible loss on photos and smooth maps, at a third of the bytes of a PNG.
JPEG = {"quality": 88, "subsampling": "4:4:4", "optimize": True}
# Of the whole report, which is opened from disks and sent by mail.
MOST_BYTES = 48_000_000
# Of the page around the sections, and of a category's rows in it.
PAGE_BYTES, ROW_BYTES = 100_000, 6_000
SAMPLE_BYTES = 3_000  # of a sample in the page, without its pictures


class ReportWriter:
    """Writes a report category by category; only text of the earlier ones is kept.

    It grows in a hidden folder beside its own, which takes the name in `finish`: there
    is a whole report or none. Without `finish`, an older one stays as it was.

    A thread draws a category while the next one is predicted.

    It stays below `MOST_BYTES`: each category has an equal share of what is left, and says
    so where not all of its samples or plots fit in.

        with ReportWriter(workdir / "report") as report:
            report.add(content)
            report.finish(results)

    Raises:
      UserError: `folder` is there and is not a report.
    """

    def __init__(self, folder: Path, categories: int = 1):
        """Writes nothing yet; `categories`: about how many will be added."""
        self._expected, self._left = categories, MOST_BYTES - PAGE_BYTES
        # A link to a folder keeps its place; the folder it points to is replaced.
        self._folder = folder.resolve()
        self._partial = self._folder.with_name(f".{self._folder.name}.partial")
        self._sections: list[Section] = []
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._drawn: Future[None] | None = None
        _check_replaceable(self._folder)

    def __enter__(self) -> Self:
        # What a killed run has left is in the way.
        shutil.rmtree(self._partial, ignore_errors=True)
        for name in ("plots", "images"):
            (self._partial / name).mkdir(parents=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._thread.shutdown()
        shutil.rmtree(self._partial, ignore_errors=True)

    def add(self, content: CategoryContent) -> None:
        """Writes the plots and images of a category, as many as its share allows.

        It waits for the category before, and so raises what went wrong with that.
        """
        self._wait()
        self._drawn = self._thread.submit(self._add, content)

    def _wait(self) -> None:
        if self._drawn is not None:
            self._drawn.result()

    def _add(self, content: CategoryContent) -> None:
        number = f"{len(self._sections) + 1:03d}"
        waiting = max(self._expected - len(self._sections), 1)
        room = self._left // waiting - ROW_BYTES
        plots = self._write_plots(content, number)
        size = self._size_of("plots", number)
        if size > room:
            self._remove("plots", number)
            plots, size = [], 0
        bars, views = self._write_samples(content, number, room - size)
        kept = [place for place, made in enumerate(views) if made]
        left_out = len(views) - len(kept)
        content = content._replace(samples=[content.samples[place] for place in kept])
        section = category_section(
            content,
            f"class-{number}",
            plots,
            bars,
            [views[place] for place in kept],
            left_out=left_out,
        )
        self._sections.append(section)
        files = self._size_of("plots", number) + self._size_of("images", number)
        self._left -= files + len(section.html.encode(errors="replace")) + ROW_BYTES

    def _files(self, folder: str, number: str) -> list[Path]:
        return list((self._partial / folder).glob(f"{number}-*"))

    def _size_of(self, folder: str, number: str) -> int:
        """Bytes of the files of a category, or of one of its samples."""
        return sum(path.stat().st_size for path in self._files(folder, number))

    def _remove(self, folder: str, number: str) -> None:
        for path in self._files(folder, number):
            path.unlink()

    def finish(self, results: Mapping[str, Any]) -> Path:
        """Writes the page, and puts the report in its place.

        Args:
          results: as in `results.json`.

        Returns:
          The path of its `index.html`.
        """
        self._wait()
        page = document(results, self._sections)
        # Bytes of a file name that are not text are spelt out.
        index = self._partial / INDEX
        index.write_text(page, encoding="utf-8", errors="backslashreplace")
        _check_replaceable(self._folder)
        if self._folder.exists():
            old = self._folder.with_name(f".{self._folder.name}.old")
            shutil.rmtree(old, ignore_errors=True)
            self._folder.rename(old)
            self._partial.rename(self._folder)
            shutil.rmtree(old)
        else:
            self._partial.rename(self._folder)
        return self._folder / INDEX

    def _write_plots(self, content: CategoryContent, number: str) -> list[Plot]:
        labels = np.asarray(content.image_labels, dtype=bool)
        scores = np.asarray(content.image_scores)
        written = []

        def add(name: str, title: str, metric: str | None, plot: plots.Figure) -> None:
            stem = f"plots/{number}-{name}"
            plots.save_plot(plot, self._partial / stem)
            written.append(Plot(title, metric, stem))

        if len(scores):
            plot = plots.score_histogram(scores, labels, content.threshold)
            add("scores", "Image scores", None, plot)
        curves = {name: xy for name, xy in content.curves.items() if len(xy[0])}
        if "roc" in curves:
            add("roc", "ROC", "image_auroc", plots.roc_curve(*curves["roc"]))
        if "precision_recall" in curves:
            plot = plots.precision_recall_curve(
                *curves["precision_recall"], float(labels.mean())
            )
            add("precision-recall", "Precision–recall", "image_ap", plot)
        if "pro" in curves:
            plot = plots.pro_curve(*curves["pro"])
            add("pro", "Region overlap", "pixel_aupro", plot)
        return written

    def _write_samples(
        self, content: CategoryContent, number: str, room: int
    ) -> tuple[list[Bar], list[list[View]]]:
        """The colour bars and, for each sample, the views of a category.

        Samples that do not fit into so many bytes have none; the most telling of each kind
        come first.
        """
        samples = content.samples
        views: list[list[View]] = [[] for _ in samples]
        if not samples:
            return [], []
        scale = pictures.colour_scale(
            (sample.anomaly_map for sample in samples), content.map_threshold
        )
        # In the order in which the samples name them, each once.
        branches = list(dict.fromkeys(n for sample in samples for n in sample.branch_maps))
        branch_scales = {
            name: pictures.colour_scale(
                sample.branch_maps[name] for sample in samples if name in sample.branch_maps
            )
            for name in branches
        }
        bars = []
        heat = "Anomaly maps"
        if content.map_threshold is not None:
            heat += "; outlined above the line"
        for title, bar_scale, threshold in (
            (heat, scale, content.map_threshold),
            *((_branch(name), branch_scales[name], None) for name in branches),
        ):
            stem = f"plots/{number}-colours-{len(bars)}"
            bar = plots.colour_bar(bar_scale, threshold)
            plots.save_plot(bar, self._partial / stem)
            bars.append(Bar(title, stem))
        room -= self._size_of("plots", f"{number}-colours")
        for place in _most_telling_first(samples):
            of_sample = f"{number}-{place + 1:02d}"
            views[place] = self._write_views(
                samples[place], content.map_threshold, scale, branch_scales, of_sample
            )
            room -= self._size_of("images", of_sample) + SAMPLE_BYTES
            if room < 0:
                self._remove("images", of_sample)
                views[place] = []
                break
        if not any(views):
            self._remove("plots", f"{number}-colours")
            bars = []
        return bars, views

    def _write_views(
        self,
        sample: Sample,
        threshold: float | None,
        scale: ColourScale,
        branch_scales: Mapping[str, ColourScale],
        number: str,
    ) -> list[View]:
        def view(title: str, name: str, picture: np.ndarray) -> View:
            file = f"images/{number}-{name}.jpg"
            Image.fromarray(picture).save(self._partial / file, **JPEG)
            return View(title, file)

        image, heat = sample.image, sample.anomaly_map
        if sample.mask is None:
            truth = View("Ground truth", None, "no mask")
        elif not sample.mask.any():
            truth = View("Ground truth", None, "no defect")
        else:
            picture = pictures.truth_overlay(image, sample.mask)
            truth = view("Ground truth", "truth", picture)
        views = [
            view("Image", "image", image),
            truth,
            view("Anomaly map", "map", pictures.heat_map(heat, scale)),
            view("Overlay", "overlay", pictures.overlay(image, heat, scale, threshold)),
        ]
        for place, (name, branch_scale) in enumerate(branch_scales.items()):
            if name in sample.branch_maps:
                values = pictures.resize(sample.branch_maps[name], image.shape[:2])
                picture = pictures.heat_map(values, branch_scale)
                views.append(view(_branch(name), f"branch-{place}", picture))
        return views


def _most_telling_first(samples: Sequence[Sample]) -> list[int]:
    """Places of samples: the first one of each kind, then the second ones, and so on."""
    seen: Counter = Counter()
    turns = []
    for place, sample in enumerate(samples):
        turns.append((seen[sample.kind], place))
        seen[sample.kind] += 1
    return [place for _, place in sorted(turns)]


def _branch(name: str) -> str:
    return f"{name[:1].upper()}{name[1:]} branch"


def _check_replaceable(folder: Path) -> None:
    """Refuses a folder that somebody keeps other things in."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    try:
        with (folder / INDEX).open(encoding="utf-8", errors="replace") as index:
            if GENERATOR in index.read(2000):
                return
    except OSError:
        pass
    raise UserError(
        f"report folder: received {folder}, which is there and is not a report; allowed "
        "a new or empty folder, or an older report: move it away or choose another one"
    )
