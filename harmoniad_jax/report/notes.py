"""What a reader of the metrics must know, in sentences: for the terminal and the page."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from harmoniad_jax.metrics.regions import FPR_LIMIT
from harmoniad_jax.report.tables import area_range, percent
from harmoniad_jax.words import in_words


def notes_on(results: Mapping[str, Any]) -> Iterator[str]:
    """Yields sentences on results as in `results.json`."""
    bounds = [
        bound
        for category in results.get("error_bounds", {}).values()
        for bound in category.values()
        if bound is not None and not math.isnan(bound)
    ]
    if bounds:
        yield f"Computed in a stream: pixel metrics are off by {max(bounds):.1e} at most."
    limit = results.get("fpr_limit", FPR_LIMIT)
    if limit != FPR_LIMIT:
        yield f"AUPRO is over false-positive rates of the pixels up to {100 * limit:g} %."
    for category, share in results.get("covering_masks", {}).items():
        yield (
            f"WARNING: the masks of {category} mark {share:.0%} of an image as defective "
            "(median). They may be inverted, or have a white background: its pixel metrics "
            "are wrong then. Save them with white defects on black and evaluate again."
        )
    if missing := results.get("missing"):
        yield (
            f"Trained on, but without test images here: {', '.join(missing)}. The means "
            "leave them out."
        )
    if lost := results.get("lost_masks"):
        yield (
            f"{in_words(lost, 'defective image has', 'defective images have')} no mask: "
            f"{'it counts' if lost == 1 else 'they count'} in the image metrics only."
        )
    if rescued := results.get("rescued_defects"):
        yield (
            f"{in_words(rescued, 'defect was', 'defects were')} smaller than half a cell "
            f"of the evaluation grid; {'it' if rescued == 1 else 'each'} kept its largest "
            "cell."
        )
    if decisions := results.get("decisions"):
        yield from _notes_on_thresholds(decisions)


def notes_on_defect_sizes(sizes: Mapping[str, Any]) -> Iterator[str]:
    """Yields a sentence on the smallest and the largest quarter of the defects.

    None if one of them is empty, as with a single defect or many of one size.

    Args:
      sizes: as in `results.json`.
    """
    parts = []
    for name, first in (("smallest", 0), ("largest", len(sizes["all"]) - 1)):
        metrics = sizes["all"][first]
        if not metrics["num_defects"]:
            return
        found = percent(metrics["recall"])
        parts.append(
            f"of the {metrics['num_defects']} {name}, "
            f"{area_range(*sizes['edges'][first : first + 2])} of the image, AUPRO is "
            f"{percent(metrics['overlap'])}"
            + (f" and {found} % are found" if found != "-" else "")
        )
    yield f"By the size of the defect: {'; '.join(parts)}."


def notes_on_protocols(results: Mapping[str, Any]) -> Iterator[str]:
    """Yields sentences on what single data sets are measured by, means over categories.

    Args:
      results: as in `results.json`.
    """
    if samples := results.get("samples"):
        count = sum(m["num_samples"] for m in samples["per_category"].values())
        values = [percent(samples["mean"][f"sample_{k}"]) for k in ("auroc", "ap", "f1max")]
        yield (
            f"{in_words(count, 'product', 'products')}, each judged by its highest view: "
            f"AUROC {values[0]}, AP {values[1]}, F1max {values[2]}."
        )
    if kinds := results.get("kinds"):
        parts = [
            f"{kind.replace('_', ' ')}: I-AUROC {percent(metrics['image_auroc'])}, "
            f"sPRO {percent(metrics['au_spro'])}"
            for kind, metrics in kinds["mean"].items()
        ]
        yield f"By kind of defect, against the good images. {'; '.join(parts)}."
    if pixels := results.get("pixel_decisions"):
        yield (
            "At thresholds of good images, F1 of the pixels is "
            f"{percent(pixels['mean']['f1'])}."
        )


def _notes_on_thresholds(decisions: Mapping[str, Any]) -> Iterator[str]:
    rate = decisions["false_positive_rate"]
    yield (
        "Thresholds were set on good training images that were held out, where "
        f"{rate:.1%} of them would be called defective. No test label was used."
    )
    own = decisions["per_category"]
    alone = [name for name, metrics in own.items() if not metrics["held_out"]]
    if alone:
        yield (
            f"Of {', '.join(alone)} there was a single training image, so that none could "
            "be held out: the shared threshold is taken."
        )
    few = [
        name
        for name, metrics in own.items()
        if metrics["held_out"] and not metrics["keeps_rate"]
    ]
    if few:
        needed = math.ceil(1.0 / rate) - 1
        shared = decisions["shared"][few[0]]["held_out"]
        yield (
            f"To keep {rate:.1%}, a threshold needs {needed} held-out images; that of "
            f"{', '.join(few)} is the highest score of fewer. The shared threshold was set "
            f"on {shared}."
        )
