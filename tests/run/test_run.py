"""What a run is made of follows from its settings."""

import jax
from jax.sharding import Sharding
from run_helpers import assert_bitwise_equal, shallow

from harmoniad_jax.config import with_settings
from harmoniad_jax.devices.mesh import shardings_of
from harmoniad_jax.run import run as run_module
from harmoniad_jax.run.run import prepare_run


def test_the_encoder_is_as_its_settings_say(tiny_config):
    settings = {"recentre": "class_token", "attention": "fused", "chroma_sigma": 0.5}
    changes = {f"encoder.{name}": value for name, value in settings.items()}
    encoder = prepare_run(with_settings(tiny_config, changes)).encoder
    assert {name: getattr(encoder, name) for name in settings} == settings


def test_a_state_that_is_drawn_on_the_host_is_the_same(tiny_config, monkeypatch):
    """As for an accelerator, whose compiler would take long."""
    run = prepare_run(shallow(tiny_config), for_training=True)
    expected = run.new_state()
    monkeypatch.setattr(run_module.jax, "default_backend", lambda: "gpu")
    found = run.new_state()
    assert_bitwise_equal(found, expected)
    shardings = [jax.tree.leaves(shardings_of(state)) for state in (found, expected)]
    assert all(map(Sharding.is_equivalent_to, *shardings, [0] * len(shardings[0])))
