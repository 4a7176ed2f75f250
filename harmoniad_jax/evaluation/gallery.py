"""What the report shows of a category, from what evaluation has in hand."""

from harmoniad_jax.data.pipeline import read_masks
from harmoniad_jax.data.preprocess import load_image
from harmoniad_jax.evaluation.measure import Measured
from harmoniad_jax.inference.predictor import Predictor
from harmoniad_jax.metrics import precision_recall_curve, roc_curve
from harmoniad_jax.report.content import CategoryContent, Sample, choose_samples
from harmoniad_jax.run.calibration import Normality
from harmoniad_jax.run.run import Run

# What the high and the low band saw; the fused map is shown as the anomaly map.
BRANCHES = ("high", "low")


def category_content(
    run: Run,
    predictor: Predictor,
    category: str,
    measured: Measured,
    normality: Normality | None,
) -> CategoryContent:
    """Chooses the images of a category that say most, and gathers its curves.

    Args:
      run: whose settings say where thresholds lie.
      predictor: sees the chosen images once more, so that no maps need be kept.
      category: its name.
      measured: its test images and their figures.
      normality: of good images; None where none were held out.
    """
    settings = run.config.calibration
    scores, labels = measured.scores, measured.labels
    threshold = normality and normality.threshold(settings.false_positive_rate)
    curves = {
        "roc": roc_curve(scores, labels),
        "precision_recall": precision_recall_curve(scores, labels),
    }
    if measured.pro_curve is not None:
        curves["pro"] = measured.pro_curve
    return CategoryContent(
        category=category,
        figures=measured.figures,
        threshold=threshold,
        image_scores=scores,
        image_labels=labels,
        curves=curves,
        samples=_samples(run, predictor, measured, threshold),
        map_threshold=normality
        and normality.pixel_threshold(settings.pixel_false_positive_rate),
    )


def _samples(
    run: Run,
    predictor: Predictor,
    measured: Measured,
    threshold: float | None,
) -> list[Sample]:
    chosen = choose_samples(measured.scores, measured.labels, threshold)
    shown = [measured.records[index] for index, _ in chosen]
    prediction = predictor(shown, "images for the report")
    side, rule = run.config.evaluation.map_side, run.config.evaluation.mask_rule
    masks, known, _ = read_masks(shown, side, rule)
    return [
        Sample(
            path=record.key,
            defect=record.defect,
            kind=kind,
            score=float(measured.scores[index]),
            image=load_image(record.image, side),
            mask=masks[row] if known[row] else None,
            anomaly_map=prediction.anomaly_maps[row],
            branch_maps={
                name: prediction.distance_maps[name][row]
                for name in BRANCHES
                if name in prediction.distance_maps
            },
        )
        for row, (record, (index, kind)) in enumerate(zip(shown, chosen, strict=True))
    ]
