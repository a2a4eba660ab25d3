"""Corruptions: the same at every call, worse with severity, and those of the paper; and accuracy under them."""

from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from benchmarks.corruptions import CORRUPTIONS, SEVERITIES, SMALL, corrupt, is_small
from benchmarks.evaluation import run_evaluation
from benchmarks.evaluation_contract import EvalSettings
from benchmarks.evaluation_figures import draw_figures
from benchmarks.evaluation_report import markdown
from tailstack.images import Pixels
from tests.benchmarks.test_eval import command


@pytest.fixture(scope="module", params=[(32, 32), (120, 160)], ids=["small", "large"])
def photo(request: pytest.FixtureRequest) -> Pixels:
    """Blots of colour with edges and fine detail: uint8 of the parameter's height and width."""
    height, width = request.param
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    blots = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.NEAREST))
    return (0.8 * blots + rng.uniform(0, 40, blots.shape)).astype(np.uint8)


def distance(a: Pixels, b: Pixels) -> float:
    return float(np.abs(a.astype(float) - b).mean())


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corruption_is_the_same_at_every_call_and_worse_with_severity(name: str, photo: Pixels) -> None:
    before = photo.copy()
    changed = [corrupt(photo, name, severity, 3) for severity in SEVERITIES]
    assert all(image.shape == photo.shape and image.dtype == np.uint8 for image in changed)
    assert np.array_equal(photo, before)
    assert np.array_equal(changed[2], corrupt(photo, name, 3, 3))
    far = [distance(photo, image) for image in changed]
    assert far[0] > 0
    assert far[4] > far[0]
    if name != "pixelate":  # its grid may fall together with edges of the image, as at three quarters of 32 pixels
        assert all(later > 0.9 * earlier for earlier, later in pairwise(far))


@pytest.mark.parametrize("name", ["gaussian noise", "shot noise", "impulse noise", "motion blur", "fog"])
def test_each_image_has_chances_of_its_own(name: str, photo: Pixels) -> None:
    assert not np.array_equal(corrupt(photo, name, 3, 0), corrupt(photo, name, 3, 1))


def test_noise_has_the_strength_of_the_paper() -> None:
    grey = np.full((128, 128, 3), 128, np.uint8)
    noise = (corrupt(grey, "gaussian noise", 1, 0) - 128.0) / 255
    assert noise.std() == pytest.approx(0.08, rel=0.02)
    shots = corrupt(grey, "shot noise", 1, 0) / 255.0
    assert shots.std() == pytest.approx(np.sqrt(128 / 255 / 60), rel=0.03)
    impulses = corrupt(grey, "impulse noise", 5, 0)
    assert (impulses == 0).mean() == pytest.approx(0.27 / 2, rel=0.05)
    assert (impulses == 255).mean() == pytest.approx(0.27 / 2, rel=0.05)


def test_brightness_raises_the_value_and_keeps_the_hue() -> None:
    image = np.array([[[100, 50, 25], [0, 0, 0], [250, 250, 0]]] * 8, np.uint8)
    hsv, changed = (
        cv2.cvtColor(pixels.astype(np.float32) / 255, cv2.COLOR_RGB2HSV)
        for pixels in (image, corrupt(image, "brightness", 4, 0))
    )
    np.testing.assert_allclose(changed[..., 2], np.minimum(hsv[..., 2] + 0.2, 1), atol=0.003)
    np.testing.assert_allclose(changed[:, [0, 2], :2], hsv[:, [0, 2], :2], atol=1)


def test_contrast_keeps_the_mean_and_scales_the_rest(photo: Pixels) -> None:
    changed, share = corrupt(photo, "contrast", 2, 0), 0.5 if is_small(photo) else 0.3
    assert changed.mean() == pytest.approx(photo.mean(), abs=0.5)
    assert changed.std() == pytest.approx(share * photo.std(), rel=0.05)


@pytest.mark.parametrize("name", ["defocus blur", "motion blur", "zoom blur", "contrast"])
def test_a_blur_leaves_an_even_image_as_it_is(name: str) -> None:
    even = np.full((120, 160, 3), (10, 120, 200), np.uint8)
    # The soft edge of the largest disk doesn't fit into its kernel, here as in the paper's code: a percent is added.
    assert distance(corrupt(even, name, 5, 0), even) <= 2


def test_small_images_are_told_by_their_shorter_side() -> None:
    assert is_small(np.zeros((SMALL - 1, 500, 3), np.uint8))
    assert not is_small(np.zeros((SMALL, SMALL, 3), np.uint8))


def test_accuracy_under_corruptions_is_measured(tiny_model: Path, tiny_datastore: Path, tmp_path: Path) -> None:
    settings = EvalSettings(tiny_datastore, tiny_model, threads=1, rounds=1, seconds=0, corruptions=12)
    found = run_evaluation(settings)
    part = found.report["corruptions"]
    assert (part["images"], part["parameters_of"]) == (12, "CIFAR-10-C")
    assert list(part["by_corruption"]) == list(CORRUPTIONS)
    rates = np.array([entry["top1"] for entry in part["by_corruption"].values()])
    assert rates.shape == (len(CORRUPTIONS), len(SEVERITIES))
    assert np.array_equal(rates * 12, (rates * 12).round())
    assert part["mean"] == pytest.approx(rates.mean())
    assert "on average over corruptions and severities" in markdown(found.report)
    assert "eval-corruptions.png" in {shown.file for shown in draw_figures(found, tmp_path)}


@pytest.mark.parametrize(
    ("flags", "code", "says"),
    [
        (["--corruptions", "-3"], 1, "--corruptions is -3"),
        (["--corruptions", "--url", "http://localhost"], 1, "name it with --model"),
        (["--corruptions", "many"], 2, "many"),
    ],
)
def test_a_number_of_images_is_wanted(flags: list[str], code: int, says: str, tiny_datastore: Path) -> None:
    done = command("--datastore", tiny_datastore, *flags)
    assert done.returncode == code
    assert says in done.stderr
