"""From settings to images: one source or several joined, prepared where need be."""

import hashlib
import json
import shutil

import numpy as np
import pytest
from run_helpers import changed

from harmoniad_jax.data.folder import folder_dataset
from harmoniad_jax.data.mask_files import read_mask
from harmoniad_jax.errors import UserError
from harmoniad_jax.evaluation.evaluate import evaluate_run
from harmoniad_jax.folders import cache_folder
from harmoniad_jax.metrics import METRIC_NAMES
from harmoniad_jax.run.datasets import drawing_version, open_dataset
from harmoniad_jax.run.run import prepare_run
from harmoniad_jax.training.loop import train_and_evaluate

# Drawn products under the names of three MVTec categories.
DRAWN = {"carpet": "fabric", "pill": "tablet", "metal_nut": "washer"}


@pytest.fixture(scope="module")
def manual(tmp_path_factory, products):
    """What was downloaded by hand: a folder that was extracted from the archive."""
    folder = tmp_path_factory.mktemp("manual") / "mvtec_anomaly_detection"
    for name, drawn in DRAWN.items():
        shutil.copytree(products / drawn, folder / name)
    return folder.parent


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, manual):
    """A folder of prepared data sets that holds MVTec's three."""
    from tfds_builders.prepare import prepare

    folder = tmp_path_factory.mktemp("prepared")
    prepare("mvtec_ad", str(manual), str(folder))
    return folder


def opened(config, *sources, **values):
    return open_dataset(changed(config, "data", sources=sources, **values))


def message_of(config, *sources, **values):
    with pytest.raises(UserError) as error:
        opened(config, *sources, **values)
    assert "\n" not in str(error.value)
    return str(error.value)


# One source.


def test_one_source_keeps_the_plain_names(tiny_config, prepared):
    for source, names in {
        "folder": ("fabric", "tablet", "washer"),
        "demo": ("fabric", "tablet", "washer"),
        "mvtec_ad": ("carpet", "metal_nut", "pill"),
    }.items():
        dataset = opened(tiny_config, source, data_dir=str(prepared))
        assert dataset.categories == names
        chosen = opened(tiny_config, source, data_dir=str(prepared), categories=(names[1],))
        assert chosen == dataset.select([names[1]])


def test_a_folder_may_be_described_by_a_table_or_by_names(tiny_config, products, tmp_path):
    """The same images of a product, each way; and evaluated where the table is moved to."""
    root = products / "washer"
    expected = opened(tiny_config, "folder", root=str(root))
    defects = sorted({record.defect for record in expected.test} - {"good"})
    named = opened(
        *(tiny_config, "folder"),
        root=str(root),
        normal_dir=("train/good",),
        normal_test_dir=("test/good",),
        abnormal_dir=tuple(f"test/{name}" for name in defects),
        mask_dir=tuple(f"ground_truth/{name}" for name in defects),
    )
    assert named.train_fingerprint == expected.train_fingerprint
    rows = ["image_path,label,split,category"]
    for split in ("train", "test"):
        for record in getattr(expected, split):
            label = "bad" if record.is_anomalous else "good"
            rows.append(f"{record.image.relative_to(root)},{label},{split},washer")
    table = tmp_path / "washer.csv"
    table.write_text("\n".join(rows))
    listed = opened(tiny_config, "folder", root=str(root), csv=str(table))
    assert [r.image for r in listed.train] == [r.image for r in expected.train]
    assert [r.is_anomalous for r in listed.test] == [r.is_anomalous for r in expected.test]


def test_validation_images_may_be_left_out(tiny_config, products, tmp_path):
    root = tmp_path / "products"
    shutil.copytree(products / "washer", root / "washer")
    shutil.copytree(root / "washer/test/good", root / "washer/validation/good")
    with_own = opened(tiny_config, "folder", root=str(root))
    without = opened(tiny_config, "folder", root=str(root), validation=False)
    assert (len(with_own.held_out), len(without.held_out)) == (2, 0)
    assert with_own.train == without.train
    assert len(without.hold_out(0.3).train) == 6


def test_a_folder_has_one_test_split(tiny_config):
    message = message_of(tiny_config, "folder", test_split="test1")
    assert "data.test_split is 'test1'" in message


def test_the_demo_is_drawn_into_the_users_cache(
    tiny_config, products, tmp_path, monkeypatch
):
    """Which is found by the drawing program's version: a drawn one is taken as it is."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    root = tmp_path / "harmoniad_jax" / f"demo-{drawing_version()}"
    assert cache_folder() == root.parent
    shutil.copytree(products, root)
    dataset = opened(tiny_config, "demo", root="")
    assert dataset == folder_dataset(root)


def test_a_demo_that_cannot_be_drawn_is_said(tiny_config, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    message = message_of(tiny_config, "demo", root=str(tmp_path / "file" / "demo"))
    assert "--config.data.root=FOLDER" in message


# Public data sets.


def test_a_public_data_set_is_prepared_from_what_was_downloaded(
    tiny_config, manual, tmp_path
):
    """On the first call; after it the download may go."""
    downloaded = tmp_path / "data" / "downloads" / "manual"
    shutil.copytree(manual, downloaded)
    dataset = opened(tiny_config, "mvtec_ad", data_dir=str(tmp_path / "data"))
    assert list((tmp_path / "data" / "mvtec_ad").glob("*/*.array_record*"))
    shutil.rmtree(downloaded)
    again = opened(tiny_config, "mvtec_ad", data_dir=str(tmp_path / "data"))
    for split in ("train", "test"):
        assert getattr(again, split) == getattr(dataset, split)


def test_a_prepared_data_set_is_what_the_folder_holds(tiny_config, manual, prepared):
    """Bytes, names, order and hashes: training cannot tell them apart."""
    folder = opened(tiny_config, "folder", root=str(manual / "mvtec_anomaly_detection"))
    stored = opened(tiny_config, "mvtec_ad", data_dir=str(prepared))
    assert stored.train_fingerprint == folder.train_fingerprint
    assert stored.categories == folder.categories
    for split in ("train", "test"):
        ours, theirs = getattr(stored, split), getattr(folder, split)
        assert len(ours) == len(theirs)
        by_key = {record.key: record for record in theirs}
        for record in ours:
            original = by_key[record.key]
            content = original.image.read_bytes()
            assert record.image.read_bytes() == content
            assert record.sha256 == hashlib.sha256(content).hexdigest()
            assert record.is_anomalous == original.is_anomalous
            if record.is_anomalous:
                np.testing.assert_array_equal(
                    read_mask(record.mask), read_mask(original.mask)
                )


def test_a_data_set_that_is_not_there_says_what_to_download(tiny_config, tmp_path):
    manual, data = tmp_path / "manual", tmp_path / "data"
    where = {"manual_dir": str(manual), "data_dir": str(data)}
    message = message_of(tiny_config, "mvtec_ad", **where)
    assert str(manual) in message
    assert "Download mvtec_anomaly_detection.tar.xz" in message
    # And before the encoder is asked for, all that are missing at once.
    config = changed(tiny_config, "data", sources=("mvtec_ad", "btad"), **where)
    with pytest.raises(UserError) as error:
        prepare_run(config, for_training=True)
    for part in (
        *(str(manual), "holds no part of mvtec_ad", "holds no part of btad"),
        *("Download mvtec_anomaly_detection.tar.xz", "--config.data.manual_dir=DIR"),
    ):
        assert part in str(error.value)
    assert not data.exists()


def test_a_category_that_was_not_prepared_says_how_to_add_it(tiny_config, manual, prepared):
    where = {"manual_dir": str(manual), "data_dir": str(prepared)}
    message = message_of(tiny_config, "mvtec_ad", categories=("bottle", "pill"), **where)
    for part in (
        *("'bottle'", "the prepared mvtec_ad", "there are carpet, metal_nut, pill"),
        *(str(manual), "python -m tfds_builders.prepare mvtec_ad --overwrite"),
    ):
        assert part in message
    assert "'pill'" not in message


def test_what_was_added_is_there_after_preparing_again(
    tiny_config, manual, products, tmp_path
):
    """As the message says."""
    from tfds_builders.prepare import prepare

    where = {"manual_dir": str(tmp_path / "manual"), "data_dir": str(tmp_path / "data")}
    downloaded = tmp_path / "manual" / "mvtec"
    shutil.copytree(products / "tablet", downloaded / "pill")
    assert opened(tiny_config, "mvtec_ad", **where).categories == ("pill",)
    shutil.copytree(products / "washer", downloaded / "bottle")
    assert opened(tiny_config, "mvtec_ad", **where).categories == ("pill",)
    prepare("mvtec_ad", **where, overwrite=True)
    found = opened(tiny_config, "mvtec_ad", categories=("bottle",), **where)
    assert found.categories == ("bottle",)


# Several sources.


def test_several_sources_are_joined_under_their_names(tiny_config, prepared):
    joined = opened(tiny_config, "folder", "mvtec_ad", data_dir=str(prepared))
    assert joined.categories == (
        *("folder/fabric", "folder/tablet", "folder/washer"),
        *("mvtec_ad/carpet", "mvtec_ad/metal_nut", "mvtec_ad/pill"),
    )
    for source in ("folder", "mvtec_ad"):
        alone = opened(tiny_config, source, data_dir=str(prepared))
        for split in ("train", "test"):
            part = [
                record
                for record in getattr(joined, split)
                if record.category.startswith(f"{source}/")
            ]
            assert [record.image for record in part] == [
                record.image for record in getattr(alone, split)
            ]


def test_the_same_images_may_be_in_two_sources(tiny_config):
    """`root` is the folder of both; they do not collide."""
    joined = opened(tiny_config, "folder", "demo")
    alone = opened(tiny_config, "folder")
    assert len(joined.train) == 2 * len(alone.train)
    assert len(joined.categories) == 6
    assert (
        len({record.key for record in joined.train})
        == len({record.key for record in alone.train}) * 2
    )


def test_the_order_of_sources_is_that_of_the_settings(tiny_config):
    first = opened(tiny_config, "folder", "demo").train[0].category
    second = opened(tiny_config, "demo", "folder").train[0].category
    assert (first, second) == ("folder/fabric", "demo/fabric")


def test_categories_are_chosen_by_source_and_name(tiny_config, prepared):
    joined = opened(
        *(tiny_config, "folder", "mvtec_ad"),
        data_dir=str(prepared),
        categories=("mvtec_ad/pill", "folder/washer", "folder/fabric"),
    )
    expected = ("folder/fabric", "folder/washer", "mvtec_ad/pill")
    assert joined.categories == expected
    assert {record.category for record in joined.test} == set(expected)


def test_a_source_of_which_nothing_is_chosen_is_left_out(tiny_config, tmp_path):
    """It need not even be there."""
    joined = opened(
        *(tiny_config, "folder", "mvtec_ad"),
        manual_dir=str(tmp_path),
        data_dir=str(tmp_path),
        categories=("folder/washer",),
    )
    assert joined.categories == ("folder/washer",)


@pytest.mark.parametrize(
    "name", ["washer", "demo", "mvtec_ad/pill", "demos/washer", "/washer"]
)
def test_a_category_of_no_source_is_refused(tiny_config, name):
    message = message_of(tiny_config, "folder", "demo", categories=("demo/fabric", name))
    assert repr(name) in message
    assert "SOURCE/CATEGORY" in message
    assert "folder, demo" in message


@pytest.mark.parametrize("name", ["folder/washers", "folder/", "folder/demo/washer"])
def test_a_category_that_its_source_has_not_is_refused(tiny_config, name):
    message = message_of(tiny_config, "folder", "demo", categories=("demo/fabric", name))
    assert repr(name.removeprefix("folder/")) in message
    assert "fabric, tablet, washer" in message


def test_a_category_that_a_joined_data_set_lacks_is_refused(tiny_config, prepared):
    message = message_of(
        *(tiny_config, "folder", "mvtec_ad"),
        data_dir=str(prepared),
        categories=("mvtec_ad/bottle",),
    )
    assert "there are carpet, metal_nut, pill" in message
    assert "python -m tfds_builders.prepare mvtec_ad --overwrite" in message


def test_a_joined_run_reports_each_data_set(tiny_config, manual, tmp_path, capsys):
    """From what was downloaded to the printed table, in one call."""
    config = changed(
        tiny_config,
        "data",
        sources=("folder", "mvtec_ad"),
        manual_dir=str(manual),
        data_dir=str(tmp_path / "data"),
        categories=("folder/fabric", "folder/washer", "mvtec_ad/pill"),
        class_balanced=True,
    )
    config = changed(config, "model", variant="plain", plain_depth=2)
    config = changed(config, "train", num_steps=2)
    results = train_and_evaluate(config, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "results.json").read_text()) == results
    assert list(results["per_category"]) == [
        *("folder/fabric", "folder/washer", "mvtec_ad/pill"),
    ]
    parts, categories = results["per_dataset"], results["per_category"]
    assert list(parts) == ["folder", "mvtec_ad"]
    assert parts["mvtec_ad"] == categories["mvtec_ad/pill"]
    for name in METRIC_NAMES:
        both = [categories[f"folder/{part}"][name] for part in ("fabric", "washer")]
        assert parts["folder"][name] == pytest.approx(sum(both) / 2)
        three = sum(figures[name] for figures in categories.values()) / 3
        assert results["mean"][name] == pytest.approx(three)
    assert parts["folder"]["num_images"] == 12
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split("|")[1].strip() for line in lines if "|" in line]
    assert [row for row in rows if row.startswith(("folder", "mvtec_ad", "mean"))] == [
        *("folder/fabric", "folder/washer", "mvtec_ad/pill"),
        *("mean of folder", "mean of mvtec_ad", "mean"),
    ]

    # What was prepared may be moved, and evaluated where it is now.
    (tmp_path / "data").rename(tmp_path / "moved")
    again = evaluate_run(tmp_path / "run", data_dir=str(tmp_path / "moved"))
    assert again["per_dataset"] == results["per_dataset"]
