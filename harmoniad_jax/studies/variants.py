"""The variants that can be compared: each a name and the settings in which it differs.

A new one is a line here. A variant that differs from another one in the evaluation alone is
evaluated from that one's trained run.
"""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from harmoniad_jax.errors import UserError
from harmoniad_jax.model.encoders.encoder import EncoderDescription

Settings = Mapping[str, Any]

REFERENCE = "harmoniad"
EVALUATION = "evaluation."

BARE_FSAM: Settings = {
    "model.high_attention": False,
    "model.edge_kernels": False,
    "model.channel_gate": False,
    "model.spatial_gate": False,
    "model.shrinkage": False,
}
BARE_GSCM: Settings = {"model.global_context": False, "model.class_token": False}

VARIANTS: dict[str, Settings] = {
    REFERENCE: {},
    "plain": {"model.variant": "plain"},
    "high-only": {"model.variant": "high"},
    "low-only": {"model.variant": "low"},
    "high-reads-high": {"model.high_reads_low": False},
    # Parts of FSAM, one by one and all of them.
    "no-high-attention": {"model.high_attention": False},
    "no-edge-kernels": {"model.edge_kernels": False},
    "no-channel-gate": {"model.channel_gate": False},
    "no-spatial-gate": {"model.spatial_gate": False},
    "no-shrinkage": {"model.shrinkage": False},
    "bare-fsam": BARE_FSAM,
    # Parts of GSCM, likewise, and its resolution.
    "no-global-context": {"model.global_context": False},
    "no-class-token": {"model.class_token": False},
    "bare-gscm": BARE_GSCM,
    # Nothing but two bands and two branches.
    "bare-modules": {**BARE_FSAM, **BARE_GSCM},
    "no-decimation": {"model.decimate": False},
    "decimation-3": {"model.decimation": 3},
    # The split.
    "gaussian-gate": {"model.gate": "gaussian"},
    "butterworth-gate": {"model.gate": "butterworth"},
    "ideal-gate": {"model.gate": "ideal", "model.learnable_gate": False},
    "learnt-gate": {"model.learnable_gate": True},
    "cutoff-0.5": {"model.cutoff": 0.5},
    "with-mirror": {"model.mirror": True},
    # More of the spectrum for attention, which then works at full resolution.
    "wide-low-band": {"model.decimate": False, "model.cutoff": 0.5},
    # Targets.
    "groups-1": {"encoder.groups": 1},
    "groups-3": {
        "encoder.groups": 3,
        "model.high_depth": 3,
        "model.low_depth": 3,
        "model.plain_depth": 9,
    },
    "recentre-class-token": {"encoder.recentre": "class_token"},
    "no-chroma-smoothing": {"encoder.chroma_sigma": 0.0},
    "plain-recentre-class-token": {
        "model.variant": "plain",
        "encoder.recentre": "class_token",
    },
    # Noise.
    "dropout-0": {"model.dropout": 0.0},
    "dropout-0.4": {"model.dropout": 0.4},
    # The loss.
    "no-hard-mining": {"loss.hard_mining": False},
    "late-mining": {"loss.easy_within": 0.0},
    "plain-late-mining": {"model.variant": "plain", "loss.easy_within": 0.0},
    "mining-0.9": {"loss.easy_share": 0.9},
    "no-easy-gradient": {"loss.easy_gradient": 0.0},
    "band-losses-1": {"loss.high_weight": 1.0, "loss.low_weight": 1.0},
    "band-losses-0.1": {"loss.high_weight": 0.1, "loss.low_weight": 0.1},
    "fused-loss-only": {"loss.high_weight": 0.0, "loss.low_weight": 0.0},
    # The score: a trained run evaluated in another way.
    "background-kept": {"evaluation.background_share": 0.0},
    "plain-background-kept": {
        "model.variant": "plain",
        "evaluation.background_share": 0.0,
    },
    "earlier-scoring": {
        "evaluation.background_share": 0.0,
        "evaluation.map_decay": 0.1,
        "evaluation.smoothing_sigma": 4.0,
    },
    "smoothing-4": {"evaluation.smoothing_sigma": 4.0},
    "map-decay-0.1": {"evaluation.map_decay": 0.1},
    "map-decay-0.5": {"evaluation.map_decay": 0.5},
    "score-of-fewer-cells": {"evaluation.top_share": 0.003},
    "groups-equal": {"evaluation.map_decay": 1.0, "evaluation.score_decay": 1.0},
    "shallow-group-only": {"evaluation.map_decay": 0.0, "evaluation.score_decay": 0.0},
    # The published recipe of `plain` gives both groups the same weight.
    "plain-groups-equal": {
        "model.variant": "plain",
        "evaluation.background_share": 0.0,
        "evaluation.map_decay": 1.0,
        "evaluation.score_decay": 1.0,
    },
    "with-branch-maps": {"evaluation.high_weight": 1.0, "evaluation.low_weight": 1.0},
    "score-is-maximum": {"evaluation.top_share": 0.0},
}


def tap_variants(description: EncoderDescription) -> dict[str, Settings]:
    """Which blocks are read, for an encoder of this depth: thirds of it, and every one."""
    depth = description.depth
    third = max(depth // 3, 2)
    return {
        "taps-first-third": {"encoder.taps": tuple(range(1, third + 1))},
        "taps-last-third": {"encoder.taps": tuple(range(depth - third + 1, depth + 1))},
        "taps-all": {"encoder.taps": tuple(range(1, depth + 1))},
    }


def choose(names: Sequence[str], variants: Mapping[str, Settings]) -> dict[str, Settings]:
    """The variants of these names, all if there are none, and those that they evaluate.

    The reference comes first, wanted or not.

    Raises:
      UserError: there is no such variant.
    """
    for name in names:
        if name not in variants:
            close = difflib.get_close_matches(name, variants, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise UserError(
                f"variant {name!r} is unknown; there are {', '.join(variants)}.{hint}"
            )
    wanted = {REFERENCE, *names} if names else set(variants)
    wanted |= {source for name in wanted if (source := trained_as(name, variants))}
    return {name: settings for name, settings in variants.items() if name in wanted}


def trained_as(name: str, variants: Mapping[str, Settings]) -> str | None:
    """The variant whose trained run this one evaluates; None if it trains its own."""
    settings = variants[name]
    trained = {key: settings[key] for key in settings if not key.startswith(EVALUATION)}
    if trained == settings:
        return None
    return next((other for other in variants if variants[other] == trained), None)
