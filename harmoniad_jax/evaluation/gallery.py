"""What the report shows of a category, from what evaluation has in hand."""

from harmoniad_jax.data.masks import read_masks
from harmoniad_jax.data.preprocess import scale_to
from harmoniad_jax.evaluation.measure import Maps, Measured
from harmoniad_jax.inference.predictor import Predictor
from harmoniad_jax.metrics import precision_recall_curve, roc_curve
from harmoniad_jax.report.content import CategoryContent, Sample, choose_samples
from harmoniad_jax.run.normality import Normality

# What the high and the low band saw; the fused map is shown as the anomaly map.
BRANCHES = ("high", "low")


def category_content(
    predictor: Predictor,
    category: str,
    measured: Measured,
    maps: Maps | None,
    normality: Normality | None,
) -> CategoryContent:
    """Chooses the images of a category that say most, and gathers its curves.

    Args:
      predictor: sees the chosen images once more where no maps were kept.
      category: its name.
      measured: its test images and their metrics.
      maps: of all its test images; None where they were not kept.
      normality: of good images; None where none were held out.
    """
    settings = predictor.trained.run.config.calibration
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
        metrics=measured.metrics,
        threshold=threshold,
        image_scores=scores,
        image_labels=labels,
        curves=curves,
        samples=_samples(predictor, measured, maps, threshold),
        map_threshold=normality
        and normality.pixel_threshold(settings.pixel_false_positive_rate),
    )


def _samples(
    predictor: Predictor, measured: Measured, maps: Maps | None, threshold: float | None
) -> list[Sample]:
    chosen = choose_samples(measured.scores, measured.labels, threshold)
    rows = [row for row, _ in chosen]
    run = predictor.trained.run
    rule = run.config.evaluation.mask_rule
    if maps is None:
        shown = [measured.records[row] for row in rows]
        prediction = predictor(shown, "images for the report")
        shape = prediction.anomaly_maps.shape[1:]
        masks, known, _ = read_masks(shown, shape, rule)
        maps, rows = Maps(prediction, masks, known), range(len(shown))
    samples = []
    for row, (index, kind) in zip(rows, chosen, strict=True):
        record = measured.records[index]
        branches = maps.prediction.distance_maps
        anomaly_map = maps.prediction.anomaly_maps[row]
        # As the encoder sees it, but as large as the maps: of few images only.
        image = run.preprocessor.decode(record.image).image
        samples.append(
            Sample(
                path=record.key,
                defect=record.defect,
                kind=kind,
                score=float(measured.scores[index]),
                image=scale_to(image, anomaly_map.shape),
                # Copies: they outlive the maps of all other images.
                mask=maps.masks[row].copy() if maps.known[row] else None,
                anomaly_map=anomaly_map.copy(),
                branch_maps={n: branches[n][row].copy() for n in BRANCHES if n in branches},
            )
        )
    return samples
