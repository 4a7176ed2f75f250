"""A trained state and test images in, the metrics of every category out."""

import contextlib
import json
import logging
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from harmoniad_jax.data.records import Record
from harmoniad_jax.data.sources import TEST
from harmoniad_jax.devices.processes import is_main, together, wait_for_all
from harmoniad_jax.errors import UserError, system_problem
from harmoniad_jax.evaluation.gallery import category_content
from harmoniad_jax.evaluation.measure import Measured, measure
from harmoniad_jax.evaluation.protocols import (
    SAMPLE_METRICS,
    kinds_with_means,
    samples_of,
    with_means,
)
from harmoniad_jax.folders import check_writable, write_whole
from harmoniad_jax.inference.predictor import Predictor
from harmoniad_jax.inference.restore import open_trained
from harmoniad_jax.inference.trained import Trained, calibrated
from harmoniad_jax.metrics import (
    decision_metrics,
    defect_size_metrics,
    mean_metrics,
    mean_metrics_per_dataset,
)
from harmoniad_jax.report.html.writer import ReportWriter
from harmoniad_jax.report.notes import notes_on
from harmoniad_jax.report.tables import (
    decisions_table,
    defect_sizes_table,
    f1_table,
    kinds_table,
    results_table,
    samples_table,
)
from harmoniad_jax.run.calibration import Calibration
from harmoniad_jax.run.normality import Normality
from harmoniad_jax.run.run import Run

logger = logging.getLogger(__name__)

RESULTS = "results"
REPORT_FOLDER = "report"
# Masks that mark a larger share are likely to mark the background.
MOST_OF_AN_IMAGE = 0.5


def evaluate_run(
    workdir: Path,
    *,
    root: str | None = None,
    csv: str | None = None,
    data_dir: str | None = None,
    test_split: str | None = None,
    encoder: str | None = None,
    false_positive_rate: float | None = None,
) -> dict[str, Any]:
    """Evaluates the latest checkpoint of `workdir`, as at the end of its training.

    Args:
      workdir: folder of the run.
      root: where the folder of images is, if not where it was.
      csv: where the table of images is, if not where it was.
      data_dir: where prepared data sets are, if not where they were.
      test_split: of a prepared data set, if not that of the run's settings.
      encoder: where the encoder is, if not where it was.
      false_positive_rate: that thresholds aim at, if not that of the run's settings.

    Returns:
      What it writes to `workdir/results.json`, see `evaluate`.

    Raises:
      UserError: no checkpoint, or images or encoder that are not the run's.
    """
    given = {
        "data.root": root,
        "data.csv": csv,
        "data.data_dir": data_dir,
        "data.test_split": test_split,
        "encoder.name": encoder,
        "calibration.false_positive_rate": false_positive_rate,
    }
    changes = {name: value for name, value in given.items() if value is not None}
    return evaluate(open_trained(workdir, changes), workdir)


def evaluate(trained: Trained, workdir: Path) -> dict[str, Any]:
    """Predicts all test images, category by category; writes `results.json` and `report/`.

    With another `config.data.test_split`, such as "test1", `results-test1.json` and
    `report-test1/`.

    Only the maps of one category are in memory at a time, or those of one batch with
    `config.evaluation.streaming`.

    Args:
      trained: an opened run.
      workdir: folder to write to.

    Returns:
      "step", "test_split", "encoder", "config_hash";
      "per_category": name -> the seven metrics as fractions in [0, 1] (None where
      undefined) and "num_images", "per_dataset": the means over the categories of each data
      set where several are joined, "mean": over all categories;
      "error_bounds": of each category's metrics, empty where they are exact;
      "fpr_limit": of AUPRO;
      "decisions": what the thresholds achieve, see `decide`, "pixel_decisions": the same
      for pixels;
      "kinds", "samples": see `protocols`, with "per_category" and "mean", mostly empty;
      "defect_sizes": how well defects of four sizes are found, see
      `metrics.defect_size_metrics`, at thresholds that "pixel_false_positive_rate" of the
      good pixels exceed;
      "lost_masks", "rescued_defects": counts, "covering_masks": category to the median
      share that its masks mark, where that is more than half, "missing": the categories of
      training that have no test image here.
    """
    with _saying_how_to_go_on(workdir):
        return _evaluate(trained, workdir)


@contextlib.contextmanager
def _saying_how_to_go_on(workdir: Path) -> Iterator[None]:
    """Turns what the system refuses into a `UserError`: training itself lost nothing."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{system_problem(error, workdir)} The checkpoint is kept. To evaluate it: "
            f"python -m harmoniad_jax.evaluate --workdir={workdir}"
        ) from None


def _evaluate(trained: Trained, workdir: Path) -> dict[str, Any]:
    together(lambda: _check_writable(workdir))
    run = trained.run
    if trained.calibration and not trained.calibration.fits(run.config.evaluation):
        logger.info("the evaluation was changed since training: calibrating again")
        trained = calibrated(trained)
    # Results of another split lie beside those of the first.
    split = run.config.data.test_split
    suffix = "" if split == TEST else f"-{split}"
    measured: dict[str, Measured] = {}
    with contextlib.ExitStack() as stack:
        report = None
        if is_main() and _reports(run):
            folder = workdir / f"{REPORT_FOLDER}{suffix}"
            categories = len({record.category for record in run.dataset.test})
            report = stack.enter_context(ReportWriter(folder, categories))
        _measure_all(trained, measured, report)
        results = _undefined_to_none(_results(trained, measured))
        page = None
        if is_main():
            try:
                path = workdir / f"{RESULTS}{suffix}.json"
                write_whole(path, json.dumps(results, indent=2) + "\n")
                page = report and report.finish(results)
            finally:
                # It took long to measure: shown even where it cannot be written.
                report_results(results)
        if page is not None:
            print(f"The report is {page}")
    wait_for_all("evaluation")
    return results


def _check_writable(workdir: Path) -> None:
    with _saying_how_to_go_on(workdir):
        if is_main():
            check_writable(workdir)


def _reports(run: Run) -> bool:
    return run.config.evaluation.report and bool(run.dataset.test)


def _measure_all(
    trained: Trained, measured: dict[str, Measured], report: ReportWriter | None
) -> None:
    """Fills in what is measured of each category, and adds each to the report."""
    predictor = Predictor(trained)
    dataset = trained.run.dataset
    tested: dict[str, list[Record]] = {}
    for record in dataset.test:
        tested.setdefault(record.category, []).append(record)
    for category in dataset.categories:
        records = tested.get(category)
        if not records:
            if dataset.test:  # otherwise it is said once, of all
                logger.info("%s has no test images: not evaluated", category)
            continue
        calibration = trained.calibration
        rate = trained.run.config.calibration.pixel_false_positive_rate
        level = calibration and calibration.of(category).pixel_threshold(rate)
        one, maps = measure(predictor, category, records, level)
        measured[category] = one
        if _reports(trained.run):
            normality = calibration and calibration.of(category)
            # All processes may have to predict its images, and one writes.
            content = category_content(predictor, category, one, maps, normality)
            if report is not None:
                report.add(content)


def _results(trained: Trained, measured: Mapping[str, Measured]) -> dict[str, Any]:
    """What is written to `results.json`, see `evaluate`."""
    run, calibration = trained.run, trained.calibration
    per_category = {name: one.metrics for name, one in measured.items()}
    scored = {name: (one.scores, one.labels) for name, one in measured.items()}
    return {
        "step": int(trained.state.step),
        "test_split": run.config.data.test_split,
        "encoder": run.encoder.description.name,
        "config_hash": run.config.hash,
        "per_category": per_category,
        "per_dataset": mean_metrics_per_dataset(per_category),
        "mean": mean_metrics(per_category) if per_category else {},
        "error_bounds": {n: one.error_bounds for n, one in measured.items()},
        "decisions": decide(run, calibration, scored) if calibration and scored else {},
        "pixel_decisions": with_means(
            {n: one.pixel_decisions for n, one in measured.items() if one.pixel_decisions},
            ("precision", "recall", "f1"),
        ),
        "defect_sizes": _by_defect_size(run, calibration, measured),
        "fpr_limit": run.config.evaluation.fpr_limit,
        "kinds": kinds_with_means({name: one.kinds for name, one in measured.items()}),
        "samples": _samples(measured),
        "lost_masks": sum(one.lost_masks for one in measured.values()),
        "rescued_defects": sum(one.rescued_defects for one in measured.values()),
        "covering_masks": {
            name: one.mask_share
            for name, one in measured.items()
            if one.mask_share and one.mask_share > MOST_OF_AN_IMAGE
        },
        "missing": sorted({*run.dataset.categories, *trained.missing} - set(measured)),
    }


def _samples(measured: Mapping[str, Measured]) -> dict[str, Any]:
    """See `protocols.samples_of`."""
    found = {n: samples_of(one.records, one.scores) for n, one in measured.items()}
    return with_means({n: one for n, one in found.items() if one}, SAMPLE_METRICS)


def _by_defect_size(
    run: Run, calibration: Calibration | None, measured: Mapping[str, Measured]
) -> dict[str, Any]:
    """See `metrics.defect_size_metrics`; what is found has a box in `predict`."""
    rate = run.config.calibration.pixel_false_positive_rate
    thresholds = (
        {name: calibration.of(name).pixel_threshold(rate) for name in measured}
        if calibration
        else {}
    )
    defects = {name: one.defects for name, one in measured.items()}
    metrics = defect_size_metrics(defects, thresholds)
    return metrics and {"pixel_false_positive_rate": rate, **metrics}


def decide(
    run: Run,
    calibration: Calibration,
    scored: Mapping[str, tuple[np.ndarray, np.ndarray]],
) -> dict[str, Any]:
    """What thresholds that were set on held-out good images achieve on the test images.

    Args:
      run: whose `config.calibration.false_positive_rate` is aimed at.
      calibration: what good images score.
      scored: category to image scores [N] float32 and labels [N] bool.

    Returns:
      "false_positive_rate" aimed at; "per_category" and "shared", for a threshold of each
      category's own and one for all: name -> "threshold", "held_out" (images it was set
      on), "keeps_rate" (whether they are enough), "precision", "recall" and
      "false_positive_rate" (None where undefined). A category of which no image could be
      held out, "held_out" 0, has the threshold for all as its own.
    """
    rate = run.config.calibration.false_positive_rate

    def metrics(category: str, normality: Normality, held_out: int) -> dict[str, float]:
        threshold = normality.threshold(rate)
        return {
            "threshold": threshold,
            "held_out": held_out,
            "keeps_rate": normality.supports(rate),
            **decision_metrics(*scored[category], threshold),
        }

    own = {
        name: metrics(name, calibration.of(name), calibration.held_out(name))
        for name in scored
    }
    overall = calibration.overall
    shared = {name: metrics(name, overall, len(overall.scores)) for name in scored}
    return {"false_positive_rate": rate, "per_category": own, "shared": shared}


def report_results(results: dict[str, Any]) -> None:
    """Prints the table of metrics, and what a reader of it must know."""
    if not results["per_category"]:
        print(
            "There are no test images: nothing was evaluated. The model is ready for new "
            "images: python -m harmoniad_jax.predict."
        )
        return
    print(results_table(results))
    for name, table in (("samples", samples_table), ("kinds", kinds_table)):
        if results[name]:
            print()
            print(table(results[name]))
    if results["decisions"]:
        print()
        print(decisions_table(results["decisions"]))
        print()
        print(f1_table(results["decisions"], results["pixel_decisions"]))
    if results["defect_sizes"]:
        print()
        print(defect_sizes_table(results["defect_sizes"]))
    print()
    for note in notes_on(results):
        print(note)


def _undefined_to_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _undefined_to_none(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_undefined_to_none(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
