"""Drawn content of a report: products with scratches and maps that nearly see them."""

import numpy as np
from scipy import ndimage

from harmoniad_jax.metrics import (
    category_metrics,
    mean_metrics,
    mean_metrics_per_dataset,
    precision_recall_curve,
    pro_curve,
    roc_curve,
)
from harmoniad_jax.report.content import CategoryContent, Sample, choose_samples
from harmoniad_jax.report.html.writer import ReportWriter

SIDE = 96
# All that a name can do to a page, a path or an attribute.
HOSTILE = (
    "a, \"b\" 'c' & <b>d</b>",
    "</script><script>document.title='owned'</script>",
    "<img src=x onerror=\"document.title='owned'\">",
    "new\nline\ttab\x00null\x85",
    "Größe 大小 حجم ñandú",
    "../../etc/passwd",
    "\u202efdp.exe",
    "\udcff not UTF-8",
    "{braces} %s ${x} $math$ \\",
)


def draw_category(
    name, *, good=8, defective=6, seed=0, side=SIDE, contrast=3.0, threshold="best"
):
    """The content of a category of drawn images.

    Args:
      good, defective: how many images of each.
      contrast: how far the maps of defects rise above those of good products.
      threshold: "best" for the score with the best F1, None where it is undefined.
    """
    random = np.random.default_rng(seed)
    labels = np.arange(good + defective) >= good
    images, masks, maps = zip(
        *(_draw(random, side, label, contrast) for label in labels), strict=True
    )
    images, masks, maps = np.array(images), np.array(masks), np.array(maps)
    scores = np.sort(maps.reshape(len(maps), -1))[:, -side:].mean(axis=1)
    if threshold == "best":
        threshold = _best_threshold(scores, labels)
    samples = [
        Sample(
            path=f"test/{'scratch' if labels[i] else 'good'}/{i:03d}.png",
            defect="scratch" if labels[i] else "good",
            kind=kind,
            score=float(scores[i]),
            image=images[i],
            mask=masks[i],
            anomaly_map=maps[i],
            branch_maps={
                "high": np.abs(_branch_map(maps[i], side / 40) - _branch_map(maps[i])),
                "low": _branch_map(maps[i], side / 16) ** 2,
            },
        )
        for i, kind in choose_samples(scores, labels, threshold)
    ]
    return CategoryContent(
        category=name,
        metrics=category_metrics(maps, masks, scores, labels),
        threshold=threshold,
        image_scores=scores,
        image_labels=labels,
        curves=_curves(scores, labels, maps, masks),
        samples=samples,
        map_threshold=threshold,
    )


def _branch_map(anomaly_map, sigma=0.5):
    """[S, S] -> [14, 14] float32, smoothed before."""
    smooth = ndimage.gaussian_filter(anomaly_map, sigma)
    return ndimage.zoom(smooth, 14 / len(smooth))


def results_of(contents):
    per_category = {content.category: content.metrics for content in contents}
    return {
        "step": 5000,
        "encoder": "drawn",
        "config_hash": "0123456789ab",
        "per_category": per_category,
        "per_dataset": mean_metrics_per_dataset(per_category),
        "mean": mean_metrics(per_category) if per_category else {},
        "lost_masks": 0,
        "rescued_defects": 0,
    }


def _draw(random, side, is_defective, contrast):
    """Image [S, S, 3] uint8, mask [S, S] bool and anomaly map [S, S] float32."""
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    radius = np.hypot(x, y)
    grain = ndimage.gaussian_filter(random.normal(size=(side, side)), side / 120)
    grain /= grain.std()
    product = np.clip((0.82 - radius) * 12, 0, 1)
    shade = 0.55 + 0.2 * np.cos(9 * radius) + 0.12 * (x - y) + 0.03 * grain
    image = np.stack([0.9 * shade, 0.95 * shade, shade], axis=-1)
    image = image * product[..., None] + (1 - product[..., None]) * 0.13
    mask = np.zeros((side, side), bool)
    if is_defective:
        angle, offset = random.uniform(0, np.pi), random.uniform(-0.4, 0.4)
        along = x * np.cos(angle) + y * np.sin(angle)
        across = y * np.cos(angle) - x * np.sin(angle) - offset
        across += 0.08 * np.sin(5 * along)
        mask = (np.abs(across) < 0.035) & (np.abs(along) < random.uniform(0.2, 0.5))
        image[mask] = 0.25 * image[mask] + 0.12
    noise = ndimage.gaussian_filter(random.normal(size=(side, side)), side / 20)
    seen = ndimage.gaussian_filter(mask.astype(float), side / 40)
    if is_defective:
        seen *= contrast * random.uniform(0.05, 1.5) / seen.max()
    anomaly_map = 0.2 * noise / noise.std() + 0.2 * product + seen
    return (
        (255 * image.clip(0, 1)).astype(np.uint8),
        mask,
        anomaly_map.astype(np.float32),
    )


def _best_threshold(scores, labels):
    if labels.all() or not labels.any():
        return None

    def f1(threshold):
        found = scores > threshold
        return 2 * (found & labels).sum() / (found.sum() + labels.sum())

    return float(max(scores, key=f1))


def _curves(scores, labels, maps, masks):
    return {
        "roc": roc_curve(scores, labels),
        "precision_recall": precision_recall_curve(scores, labels),
        "pro": pro_curve(maps, masks),
    }


def write_report(folder, results, contents):
    """A report in one call; its index.html."""
    with ReportWriter(folder) as report:
        for content in contents:
            report.add(content)
            del content  # before the next one is made: one at a time in memory
        return report.finish(results)
