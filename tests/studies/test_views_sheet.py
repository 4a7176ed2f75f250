"""`python -m harmoniad_jax.views`: a picture of the views that training would draw."""

import numpy as np
import pytest
from PIL import Image
from run_helpers import changed

from harmoniad_jax.errors import UserError
from harmoniad_jax.run.run import prepare_run
from harmoniad_jax.studies.views import CAPTION, MARGIN, write_views


def test_a_row_for_each_product_with_the_views_of_training(tiny_config, tmp_path):
    path = tmp_path / "made" / "views.png"
    assert write_views(tiny_config, path, 2) == "3 products"
    side = tiny_config.data.image_side
    page = np.asarray(Image.open(path))
    step, height = side + MARGIN, side + CAPTION + MARGIN
    assert page.shape == (3 * height + MARGIN, 3 * step + MARGIN, 3)
    run = prepare_run(changed(tiny_config, "calibration", holdout=0.0))
    first = {record.category: record for record in reversed(run.dataset.train)}
    for row, category in enumerate(sorted(first)):
        top = MARGIN + row * height + CAPTION
        cells = [
            page[top : top + side, left : left + side]
            for left in range(MARGIN, 3 * step, step)
        ]
        original = run.load_image(first[category])
        np.testing.assert_array_equal(cells[0], original)
        assert not any((cell == original).all() for cell in cells[1:])
        assert not (cells[1] == cells[2]).all()


def test_another_file_than_png_is_refused(tiny_config, tmp_path):
    with pytest.raises(UserError, match=r"views\.pdf is no PNG"):
        write_views(tiny_config, tmp_path / "views.pdf", 2)
    with pytest.raises(UserError, match="File exists"):
        (tmp_path / "file").write_text("")
        write_views(tiny_config, tmp_path / "file" / "views.png", 2)
