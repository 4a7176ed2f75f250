"""Records and what is done with lists of them: joined, selected, compared."""

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harmoniad_jax.data.records import (
    GOOD,
    Dataset,
    EncodedImage,
    Record,
    check_categories,
    join,
)
from harmoniad_jax.errors import UserError


def dataset(*categories, train=2, test=1, folder="photos"):
    """So many training images, and as many good and cracked test images, of each."""

    def records(category, split, count, defect=GOOD):
        parent = Path(folder, category, split, defect)
        mask = None if defect == GOOD else parent / "mask.png"
        return [
            Record(parent / f"{index:03}.png", category, defect, mask)
            for index in range(count)
        ]

    return Dataset(
        train=[r for name in categories for r in records(name, "train", train)],
        test=[
            record
            for name in categories
            for defect in (GOOD, "crack")
            for record in records(name, "test", test, defect)
        ],
    )


def categories_of(records):
    return [record.category for record in records]


# Records.


def test_a_record_is_anomalous_by_its_defect_not_by_its_mask():
    image = EncodedImage("000.png", b"")
    assert not Record(image, "bottle").is_anomalous
    assert not Record(image, "bottle", GOOD, mask=image).is_anomalous
    assert Record(image, "bottle", "crack").is_anomalous


def test_a_key_stays_the_same_when_the_data_set_is_moved():
    first = dataset("bottle", "grid", folder="here")
    second = dataset("bottle", "grid", folder="there/and/elsewhere")
    assert [r.key for r in first.test] == [r.key for r in second.test]
    assert first.test[1].key == "bottle/crack/000.png"


def test_an_encoded_image_is_called_by_its_name_and_never_printed():
    image = EncodedImage("archive.zip: 000.png", b"many bytes")
    assert str(image) == image.name == "archive.zip: 000.png"
    assert image.read_bytes() == b"many bytes"
    assert "many bytes" not in repr(Record(image, "bottle"))


# Joined data sets.


def test_joined_categories_are_called_by_their_data_set():
    joined = join({"mvtec_ad": dataset("bottle", "grid"), "btad": dataset("01")})
    assert joined.categories == ("btad/01", "mvtec_ad/bottle", "mvtec_ad/grid")
    assert set(categories_of(joined.test)) == set(joined.categories)


def test_joining_changes_the_category_alone_and_keeps_the_order():
    parts = {"mvtec_ad": dataset("grid", "bottle"), "visa": dataset("candle", test=3)}
    joined = join(parts)
    for split in ("train", "test"):
        before = [
            (name, record)
            for name, part in parts.items()
            for record in getattr(part, split)
        ]
        for (name, old), new in zip(before, getattr(joined, split), strict=True):
            assert new.category == f"{name}/{old.category}"
            assert (new.image, new.defect, new.mask, new.sha256) == (
                old.image,
                old.defect,
                old.mask,
                old.sha256,
            )


def test_the_parts_of_a_join_are_left_as_they_were():
    part = dataset("bottle")
    join({"a": part, "b": part})
    assert part.categories == ("bottle",)


def test_what_is_known_of_an_image_survives_joining():
    record = Record(EncodedImage("000.png", b""), "bottle", sha256="0" * 64)
    joined = join({"a": Dataset([record], [])})
    assert joined.train[0].sha256 == "0" * 64


names = st.text(
    st.characters(exclude_characters="/", exclude_categories=["Cs"]), max_size=4
)


@given(st.dictionaries(names, st.sets(names, min_size=1, max_size=4), max_size=4))
def test_joined_names_never_collide(parts):
    """Also where data sets have categories of the same name."""
    joined = join({name: dataset(*part) for name, part in parts.items()})
    assert len(joined.categories) == sum(len(part) for part in parts.values())
    for name, part in parts.items():
        selected = joined.select([f"{name}/{category}" for category in part])
        assert len(selected.train) == 2 * len(part)
    keys = [record.key for record in joined.train]
    assert len(set(keys)) == len(keys)


def test_nothing_joined_is_nothing():
    assert join({}) == Dataset([], [])


# Selections.


@given(st.sets(st.sampled_from("abcde")))
def test_a_selection_is_what_it_names_in_order(chosen):
    everything = dataset(*"cabde")
    selected = everything.select(chosen)
    assert selected.categories == tuple(sorted(chosen))
    for split in ("train", "test"):
        expected = [r for r in getattr(everything, split) if r.category in chosen]
        assert getattr(selected, split) == expected


def test_a_selection_does_not_take_parts_of_names():
    everything = dataset("pcb1", "pcb10", "pcb")
    assert everything.select(["pcb1"]).categories == ("pcb1",)
    assert everything.select(("pcb10",)).categories == ("pcb10",)


def test_categories_are_those_that_can_be_learnt():
    bottle, grid = dataset("bottle"), dataset("grid")
    assert Dataset(bottle.train, [*bottle.test, *grid.test]).categories == ("bottle",)


# Fingerprints.


def test_a_fingerprint_is_of_the_training_images_names_and_order():
    base = dataset("bottle", "grid")
    different = [
        base,
        dataset("bottle"),
        dataset("bottle", "grid", train=3),
        dataset("bottle", "grit"),
        Dataset(base.train[::-1], base.test),
        join({"a": base}),
        join({"b": base}),
    ]
    prints = [data.train_fingerprint for data in different]
    assert len(set(prints)) == len(prints)
    assert all(len(text) == 64 for text in prints)


def test_a_fingerprint_does_not_change_with_place_or_test_images():
    base = dataset("bottle", "grid")
    for same in (
        dataset("bottle", "grid", folder="moved"),
        dataset("bottle", "grid", test=7),
        Dataset([Record(r.image, r.category, sha256="0") for r in base.train], []),
    ):
        assert same.train_fingerprint == base.train_fingerprint


# Names that are not there.


def message_of(*arguments):
    with pytest.raises(UserError) as error:
        check_categories(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_categories_that_are_there_pass():
    there = ("bottle", "grid", "pill")
    for count in range(4):
        for wanted in itertools.permutations(there, count):
            check_categories(wanted, there, "somewhere")
    check_categories([], [], "somewhere")


def test_a_category_that_is_not_there_is_named_with_all_that_are():
    message = message_of(["grid", "nut", "wood"], ["pill", "grid", "bottle"], "photos")
    assert "data.categories names 'nut', 'wood', which photos does not hold" in message
    assert "there are bottle, grid, pill." in message
    assert "'grid'" not in message
    assert "Did you mean" not in message
    assert message.endswith("pill.")


def test_a_misspelt_category_is_recognised():
    message = message_of(["botle"], ["pill", "bottle"], Path("some") / "photos")
    assert f"which {Path('some') / 'photos'} does not hold" in message
    assert message.endswith("there are bottle, pill. Did you mean 'bottle'?")


def test_advice_comes_last():
    assert message_of(["x"], ["pill"], "it", "Do this.").endswith("pill. Do this.")
    assert message_of(["pil"], ["pill"], "it", "Do this.").endswith("'pill'? Do this.")
