"""A setting is described once: what follows from its field, on a small set of settings."""

import dataclasses
import math

import pytest

from harmoniad_jax.config import Config
from harmoniad_jax.fields import (
    FEATURES,
    LEARNING,
    NOTHING,
    SCORES,
    Removed,
    older_values,
    range_problems,
    replaced,
    setting,
    settings_of,
    touching,
    with_older_values,
    without_removed,
)
from harmoniad_jax.model.encoders.attention import ATTENTIONS
from harmoniad_jax.model.encoders.encoder import RECENTRINGS
from harmoniad_jax.model.split import GATES


@dataclasses.dataclass(frozen=True)
class Light:
    power: float = setting(0.5, above=0, at_most=2, touches=LEARNING)
    colour: str = setting("white", choices=("white", "red"), touches=FEATURES)
    # The one edit that adds a setting. Runs from before it had the lamp at the left, and
    # later ones below.
    place: str = setting(
        "above",
        choices=("above", "below", "left"),
        touches=LEARNING,
        older="left",
        earlier=("below",),
    )


@dataclasses.dataclass(frozen=True)
class Line:
    light: Light = Light()
    speed: float = setting(1.0, at_least=0, touches=NOTHING)
    limit: float = setting(0.1, at_least=0, below=1, touches=SCORES)


def test_what_a_new_setting_touches_follows_from_its_field():
    assert touching(Line, LEARNING) == ("light.power", "light.place")
    assert touching(Line, LEARNING, FEATURES) == (
        "light.power",
        "light.colour",
        "light.place",
    )
    assert touching(Line, SCORES) == ("limit",)


@pytest.mark.parametrize(
    ("line", "problems"),
    [
        (Line(), {}),
        (Line(Light(power=2.0)), {}),
        (
            Line(Light(power=2.5)),
            {"light.power": "it must be greater than 0 and at most 2"},
        ),
        (Line(Light(place="behind")), {"light.place": "allowed are above, below, left"}),
        (Line(speed=-1.0), {"speed": "it must not be negative"}),
        (Line(limit=1.0), {"limit": "it must be a share between 0 and 1"}),
        (Line(speed=math.inf), {"speed": "it must be a finite number"}),
        (
            Line(Light(power=math.nan), limit=-1.0),
            {
                "light.power": "it must be a finite number",
                "limit": "it must be a share between 0 and 1",
            },
        ),
    ],
)
def test_the_range_of_a_new_setting_is_checked(line, problems):
    assert range_problems(line) == problems


def test_a_run_from_before_a_setting_has_what_such_runs_had():
    stored = {"light": {"power": 0.7, "colour": "red"}, "speed": 2.0, "limit": 0.1}
    completed = with_older_values(Line, stored)
    assert completed["light"] == {"power": 0.7, "colour": "red", "place": "left"}
    assert "place" not in stored["light"]
    assert with_older_values(Line, {})["light"]["colour"] == "white"


def test_a_removed_setting_is_refused_only_if_its_value_mattered():
    removed = {"light.lens": Removed("glass", "the material of the lens")}
    kept = {"light": {"power": 0.7}}
    stored = {"light": {"power": 0.7, "lens": "glass"}}
    assert without_removed(stored, removed) == (kept, [])
    assert without_removed(kept, removed) == (kept, [])
    _, (problem,) = without_removed({"light": {"lens": "quartz"}}, removed)
    for part in ("config.light.lens", "'quartz'", "the material of the lens", "'glass'"):
        assert part in problem
    # Something else where the group should be is left to the parser.
    assert without_removed({"light": 3}, removed) == ({"light": 3}, [])


def test_every_setting_of_a_run_is_described_and_its_default_allowed():
    assert range_problems(Config()) == {}
    for path, known in settings_of(Config):
        value = Config()
        for part in path.split("."):
            value = getattr(value, part)
        assert known.problem(value) is None, path
        for value in (known.older, *known.earlier):
            assert known.problem(value) is None, path


def test_choices_are_those_that_the_model_knows():
    known = dict(settings_of(Config))
    assert known["model.gate"].choices == GATES
    assert known["encoder.attention"].choices == ATTENTIONS
    assert known["encoder.recentre"].choices == RECENTRINGS


def test_an_older_run_is_continued_as_it_began():
    known = {"light": {"power": 0.5, "colour": "white"}, "speed": 1.0, "limit": 0.1}
    older = older_values(Line, known)
    assert older == {"light.place": "left"}
    assert replaced(Line(speed=3.0), older) == Line(Light(place="left"), speed=3.0)
    # Continued once, it has the older value itself.
    assert older_values(Line, dataclasses.asdict(replaced(Line(), older))) == older
    assert older_values(Line, dataclasses.asdict(Line())) == {}
    assert replaced(Line(), {}) == Line()


def test_a_run_keeps_what_was_the_default_between():
    between = dataclasses.asdict(Line(Light(place="below")))
    assert older_values(Line, between) == {"light.place": "below"}
