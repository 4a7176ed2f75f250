"""The last part of prediction: from distances to maps and scores."""

import dataclasses
import types

import numpy as np

from harmoniad_jax.config import EvaluationConfig
from harmoniad_jax.model.scoring import Statistics
from harmoniad_jax.steps.step import Steps


def scored(distances, **settings):
    evaluation = dataclasses.replace(EvaluationConfig(), map_side=32, **settings)
    network = types.SimpleNamespace(comparison_names=("fused",))
    steps = Steps(None, network, None, None, evaluation)
    groups = np.float32([1, 1])
    statistics = Statistics({"fused": groups}, {"fused": groups / 4})
    return steps.score_step(statistics, {"fused": np.float32(distances)})


def test_a_changed_image_keeps_its_score_and_not_the_level_of_its_map():
    distances = 0.9 + 0.05 * np.random.default_rng(0).normal(size=(1, 2, 8, 8))
    distances[..., 2:4, 2:4] += 0.5
    usual, changed = scored(distances), scored(distances + 0.4)
    kept = scored(distances + 0.4, background_share=0.0)
    np.testing.assert_array_equal(changed.image_scores, kept.image_scores)
    assert changed.image_scores > usual.image_scores + 1
    np.testing.assert_array_equal(
        usual.anomaly_maps, scored(distances, background_share=0.0).anomaly_maps
    )
    raised = np.median(kept.anomaly_maps)
    assert raised > 1 and abs(np.median(changed.anomaly_maps)) < 0.3
    # The whole map was lowered by one number.
    np.testing.assert_allclose(
        np.ptp(kept.anomaly_maps - changed.anomaly_maps), 0, atol=1e-4
    )
