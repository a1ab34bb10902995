"""Dense CRF against the published parameter sets' results."""

import subprocess
import sys

import numpy as np
import pytest

from ktse_dist.errors import UserError
from ktse_dist.inference.crf import CAM_CRF, DEEPLAB_CRF, CRFConfig, PictureCRF, background_power, crf, crf_labels


@pytest.fixture(scope="module")
def case(golden):
    pytest.importorskip("pydensecrf")
    return golden("crf")


def assert_same_labels(ours: np.ndarray, published: np.ndarray) -> None:
    """Equal arg-max wherever the published margin between best and second is at least 1e-4."""
    best = np.sort(published, axis=0)
    decided = best[-1] - best[-2] >= 1e-4
    assert decided.mean() > 0.95
    np.testing.assert_array_equal(ours.argmax(0)[decided], published.argmax(0)[decided])


def test_cam_crf_matches_the_published_numbers(case):
    ours = crf(case["img_rgb_u8"], case["probs"], CAM_CRF)
    np.testing.assert_allclose(ours, case["crf_inference"], rtol=1e-4, atol=1e-4)
    assert_same_labels(ours, case["crf_inference"])


def test_a_picture_that_may_only_be_read_gives_the_same(case):
    picture = case["img_rgb_u8"].copy()
    picture.flags.writeable = False
    np.testing.assert_array_equal(crf(picture, case["probs"]), crf(picture.copy(), case["probs"]))


def test_deeplab_crf_matches_the_published_numbers_on_bgr(case):
    ours = crf(case["img_bgr_cv2"], case["probs"], DEEPLAB_CRF)
    np.testing.assert_allclose(ours, case["crf_dl"], rtol=1e-4, atol=1e-4)
    assert_same_labels(ours, case["crf_dl"])


def test_deeplab_crf_gives_the_published_test_labels(golden):
    pytest.importorskip("pydensecrf")
    case = golden("beco_test_crf")
    ours = crf(case["crf_image_u8"], case["prob"], DEEPLAB_CRF)
    assert_same_labels(ours, case["crf_prob"])


@pytest.mark.parametrize("alpha", [6, 10, 24])
def test_background_power_then_crf_matches_the_published_numbers(case, alpha):
    ours = crf(case["img_rgb_u8"], background_power(case["cams"], alpha))
    np.testing.assert_allclose(ours, case[f"alpha{alpha}"], rtol=1e-4, atol=1e-4)
    assert_same_labels(ours, case[f"alpha{alpha}"])


def test_one_picture_crf_serves_several_backgrounds_as_fresh_ones_would(case):
    shared = PictureCRF(case["img_rgb_u8"], 3)
    for alpha in (24, 6, 10):
        planes = background_power(case["cams"], alpha)
        np.testing.assert_array_equal(shared.refine(planes), crf(case["img_rgb_u8"], planes))


def test_hard_labels_start_from_the_published_certainty(case):
    pairless = CRFConfig(iterations=1, gaussian_weight=0, bilateral_weight=0)
    labels = np.arange(60 * 72).reshape(60, 72) % 3
    np.testing.assert_array_equal(crf_labels(case["img_rgb_u8"], labels, 3, config=pairless), labels)
    np.testing.assert_array_equal(crf_labels(case["img_rgb_u8"], labels, 3, 0.3, pairless) == labels, False)


def test_hard_labels_lose_specks_inside_a_flat_region():
    labels = np.zeros((40, 50), int)
    labels[:, 25:] = 1
    rgb = np.repeat((labels * 200).astype(np.uint8)[:, :, None], 3, 2)
    speckled = labels.copy()
    speckled[::7, ::9] ^= 1
    np.testing.assert_array_equal(crf_labels(rgb, speckled, 2), labels)


def test_a_picture_without_any_cam_is_all_background():
    np.testing.assert_array_equal(background_power(np.zeros((0, 3, 4), np.float32), 10), np.ones((1, 3, 4)))


def test_a_missing_crf_package_names_the_mend(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydensecrf", None)
    with pytest.raises(UserError, match=r"pip install 'ktse_dist\[crf\]'"):
        crf(np.zeros((2, 2, 3), np.uint8), np.ones((2, 2, 2), np.float32))


def test_crf_and_pool_workers_import_without_torch():
    code = "import sys, ktse_dist.inference.crf, ktse_dist.data.pool; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
