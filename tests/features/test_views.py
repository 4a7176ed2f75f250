"""Views of training images: encoded once, stored, and drawn alike with and without."""

from feature_helpers import IMAGES, assert_fresh, encoded, opened, records_of, with_settings

from harmoniad_jax.config import VariationConfig
from harmoniad_jax.data import preprocess
from harmoniad_jax.features.encode import image_reader
from harmoniad_jax.training import data as module

VIEWS = 2


def with_views(run, views=VIEWS):
    # Long enough for an epoch of all views.
    run = with_settings(run, "train", num_steps=100)
    return with_settings(run, "variation", views=views)


def test_every_view_is_stored_as_the_encoder_sees_it(run, log):
    data = opened(with_views(run))
    assert encoded(log) == IMAGES * (1 + VIEWS)
    assert_fresh(with_views(run), data, count=2 * IMAGES)
    # More views: those that are stored stay.
    opened(with_views(run, VIEWS + 1))
    assert encoded(log) == IMAGES


def test_a_short_run_encodes_the_views_that_it_reads(run, log):
    short = with_settings(with_views(run), "train", num_steps=2)
    data = opened(short)
    records = records_of(data, 2 * short.config.train.batch_size)
    assert encoded(log) == len({record.sha256 for record in records})


def test_the_views_are_the_same_with_and_without_the_cache(run):
    stored = opened(with_views(run))
    images = opened(with_settings(with_views(run), "cache", enabled=False))
    assert records_of(images, 50) == records_of(stored, 50)
    assert len({record.view for record in records_of(images, 50)}) == 1 + VIEWS


def test_an_image_is_decoded_once_for_all_its_views(run, monkeypatch):
    decoded = []
    decode = preprocess.decode

    def counted(file, *options):
        decoded.append(file)
        return decode(file, *options)

    monkeypatch.setattr(preprocess, "decode", counted)
    varied = with_views(run)
    varied = with_settings(varied, "data", threads=1)
    reader = image_reader(varied)
    module.training_data(varied, varied.encoder.params, reader)
    assert len(decoded) == IMAGES


def test_other_limits_are_other_views(run, log):
    opened(with_views(run))
    assert encoded(log) == IMAGES * (1 + VIEWS)
    other = with_settings(with_views(run), "variation", noise=VariationConfig().noise / 2)
    opened(other)
    assert encoded(log) == IMAGES * VIEWS
