"""Reports of drawn content, written once."""

import numpy as np
import pytest
from drawn import HOSTILE, draw_category, results_of, write_report


@pytest.fixture(scope="session")
def drawn():
    """A category with good and defective images, found and missed."""
    return draw_category("bottle", contrast=1.0)


@pytest.fixture(scope="session")
def contents():
    """Joined classes: ordinary, all good, all defective, no samples, hostile names."""
    drawn = [
        draw_category("one/bottle", contrast=1.0, seed=1),
        draw_category("one/capsule", seed=2, good=6, defective=0),
        draw_category("one/cable", seed=3, good=0, defective=5),
        draw_category("two/Café", seed=4, contrast=9.0),
    ]
    hostile = draw_category("", seed=5)
    samples = [
        sample._replace(path=name, defect=name, branch_maps={name: sample.anomaly_map})
        for sample, name in zip(hostile.samples, HOSTILE, strict=False)
    ]
    samples[0] = samples[0]._replace(mask=None)
    hostile = hostile._replace(samples=samples)
    others = [drawn[0]._replace(category=name, samples=[], curves={}) for name in HOSTILE]
    others[2] = others[2]._replace(image_scores=np.empty(0), image_labels=np.empty(0, bool))
    return [*drawn, hostile._replace(category=HOSTILE[0]), *others[1:]]


@pytest.fixture(scope="session")
def results(contents):
    return results_of(contents) | {"lost_masks": 1, "rescued_defects": 2}


@pytest.fixture(scope="session")
def index(contents, results, tmp_path_factory):
    """The index.html of a report of all of them."""
    folder = tmp_path_factory.mktemp("run") / "report # 50% ü"
    return write_report(folder, results, contents)
