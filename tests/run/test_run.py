"""What a run is made of follows from its settings."""

from harmoniad_jax.config import with_settings
from harmoniad_jax.run.run import prepare_run


def test_the_encoder_is_as_its_settings_say(tiny_config):
    settings = {"recentre": "class_token", "attention": "fused", "chroma_sigma": 0.5}
    changes = {f"encoder.{name}": value for name, value in settings.items()}
    encoder = prepare_run(with_settings(tiny_config, changes)).encoder
    assert {name: getattr(encoder, name) for name in settings} == settings
