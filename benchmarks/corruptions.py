"""Corrupted images: what a cheap sensor, a shaking hand, fog or a mean JPEG does to them.

The corruptions and their five severities follow Hendrycks & Dietterich, "Benchmarking Neural Network Robustness to
Common Corruptions and Perturbations" (ICLR 2019): images whose shorter side is below `SMALL` take the parameters of
CIFAR-10-C, larger ones those of ImageNet-C. Eleven of the fifteen are here; glass blur, snow, frost and elastic
transforms aren't. Motion blur, zoom blur and fog are only alike; the others are the same but for rounding. A corruption
is decided by its name, its severity and the image's place in the split alone.
"""

import io
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from tailstack.images import Pixels

SEVERITIES = (1, 2, 3, 4, 5)
SMALL = 96
"""Pixels of the shorter side."""
Floats = npt.NDArray[np.float32]
Parameters = tuple[float, ...]
Apply = Callable[[Floats, Parameters, np.random.Generator], Floats]
"""float32 `[height, width, 3]` from 0 to 1 -> the same, which may lie outside."""


@dataclass(frozen=True)
class Corruption:
    """One kind, with its parameters by severity."""

    category: str
    apply: Apply
    large: Sequence[Parameters]
    """Of ImageNet-C."""
    small: Sequence[Parameters]
    """Of CIFAR-10-C."""


def corrupt(image: Pixels, name: str, severity: int, place: int) -> Pixels:
    """Corrupt one image.

    Args:
        image: uint8 `[height, width, 3]`, RGB.
        name: of `CORRUPTIONS`.
        severity: of `SEVERITIES`.
        place: of the image in its split; each image has chances of its own.

    Returns:
        uint8 of the same shape.
    """
    kind = CORRUPTIONS[name]
    parameters = (kind.small if is_small(image) else kind.large)[severity - 1]
    rng = np.random.default_rng([zlib.crc32(name.encode()), severity, place])
    changed = kind.apply(_to_floats(image), parameters, rng)
    return (changed.clip(0, 1) * 255).round().astype(np.uint8)


def is_small(image: Pixels) -> bool:
    """Return whether an image takes the parameters of CIFAR-10-C."""
    return bool(min(image.shape[:2]) < SMALL)


def _gaussian_noise(x: Floats, parameters: Parameters, rng: np.random.Generator) -> Floats:
    (deviation,) = parameters
    return x + rng.normal(0, deviation, x.shape).astype(np.float32)


def _shot_noise(x: Floats, parameters: Parameters, rng: np.random.Generator) -> Floats:
    """Count photons, of which a white pixel has so many."""
    (photons,) = parameters
    return (rng.poisson(x * photons) / photons).astype(np.float32)


def _impulse_noise(x: Floats, parameters: Parameters, rng: np.random.Generator) -> Floats:
    """Set a share of the samples to 0 or 1."""
    (share,) = parameters
    hit = rng.random(x.shape) < share
    return np.where(hit, rng.integers(0, 2, x.shape), x).astype(np.float32)


def _defocus_blur(x: Floats, parameters: Parameters, _rng: np.random.Generator) -> Floats:
    """Average over a disk with soft edges."""
    radius, softness = parameters
    reach = max(8, int(radius))
    rows, columns = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    disk = (rows**2 + columns**2 <= radius**2).astype(np.float32)
    window = (3, 3) if radius <= 8 else (5, 5)
    kernel = cv2.GaussianBlur(disk / disk.sum(), window, sigmaX=softness)
    return np.asarray(cv2.filter2D(x, -1, kernel), dtype=np.float32)


def _motion_blur(x: Floats, parameters: Parameters, rng: np.random.Generator) -> Floats:
    """Drag the image along a line, with a weight that falls as a Gaussian."""
    radius, deviation = parameters
    angle = rng.uniform(-np.pi / 4, np.pi / 4)
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-(steps**2) / (2 * deviation**2))
    height, width = x.shape[:2]
    total = np.zeros(x.shape)
    for step, weight in zip(steps, weights / weights.sum(), strict=True):
        shift = np.array([[1, 0, step * np.cos(angle)], [0, 1, step * np.sin(angle)]])
        moved = cv2.warpAffine(x, shift, (width, height), borderMode=cv2.BORDER_REFLECT_101)
        total += weight * np.asarray(moved, dtype=np.float64)
    return total.astype(np.float32)


def _zoom_blur(x: Floats, parameters: Parameters, _rng: np.random.Generator) -> Floats:
    """Average over zooms towards the centre."""
    end, step = parameters
    factors = np.arange(1, end, step)
    height, width = x.shape[:2]
    layers = [x]
    for factor in factors:
        scale = np.array([[factor, 0, (1 - factor) * (width - 1) / 2], [0, factor, (1 - factor) * (height - 1) / 2]])
        zoomed = cv2.warpAffine(x, scale, (width, height), borderMode=cv2.BORDER_REFLECT_101)
        layers.append(np.asarray(zoomed, dtype=np.float32))
    return np.asarray(np.mean(layers, axis=0), dtype=np.float32)


def _fog(x: Floats, parameters: Parameters, rng: np.random.Generator) -> Floats:
    """Lay clouds over the image: noise at each scale, whose strength falls with it."""
    strength, decay = parameters
    height, width = x.shape[:2]
    clouds = np.zeros((height, width))
    for level in range(1, int(np.log2(max(height, width))) + 1):
        noise = rng.uniform(-1, 1, (2**level, 2**level))
        layer = cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
        clouds += np.asarray(layer, dtype=np.float64) / decay**level
    clouds = (clouds - clouds.min()) / np.ptp(clouds)
    brightest = x.max()
    return np.asarray((x + strength * clouds[..., None]) * brightest / (brightest + strength), dtype=np.float32)


def _brightness(x: Floats, parameters: Parameters, _rng: np.random.Generator) -> Floats:
    """Raise the value of HSV, with hue and saturation as they are."""
    (more,) = parameters
    value = x.max(axis=2, keepdims=True)
    raised = np.minimum(value + more, 1)
    return np.asarray(np.where(value > 0, x * raised / np.maximum(value, 1e-6), raised), dtype=np.float32)


def _contrast(x: Floats, parameters: Parameters, _rng: np.random.Generator) -> Floats:
    (share,) = parameters
    mean = x.mean(axis=(0, 1), keepdims=True)
    return np.asarray((x - mean) * share + mean, dtype=np.float32)


def _pixelate(x: Floats, parameters: Parameters, _rng: np.random.Generator) -> Floats:
    (share,) = parameters
    image = _to_image(x)
    small = image.resize((int(image.width * share), int(image.height * share)), Image.Resampling.BOX)
    return _to_floats(np.asarray(small.resize(image.size, Image.Resampling.BOX)))


def _jpeg_compression(x: Floats, parameters: Parameters, _rng: np.random.Generator) -> Floats:
    (quality,) = parameters
    stream = io.BytesIO()
    _to_image(x).save(stream, "JPEG", quality=int(quality))
    return _to_floats(np.asarray(Image.open(stream)))


def _to_image(x: Floats) -> Image.Image:
    return Image.fromarray((x * 255).round().astype(np.uint8))


def _to_floats(pixels: Pixels) -> Floats:
    return np.asarray(pixels.astype(np.float32) / 255, dtype=np.float32)


def _single(*values: float) -> list[Parameters]:
    return [(value,) for value in values]


CORRUPTIONS = {
    "gaussian noise": Corruption(
        "noise", _gaussian_noise, _single(0.08, 0.12, 0.18, 0.26, 0.38), _single(0.04, 0.06, 0.08, 0.09, 0.1)
    ),
    "shot noise": Corruption("noise", _shot_noise, _single(60, 25, 12, 5, 3), _single(500, 250, 100, 75, 50)),
    "impulse noise": Corruption(
        "noise", _impulse_noise, _single(0.03, 0.06, 0.09, 0.17, 0.27), _single(0.01, 0.02, 0.03, 0.05, 0.07)
    ),
    "defocus blur": Corruption(
        "blur",
        _defocus_blur,
        [(3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)],
        [(0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)],
    ),
    "motion blur": Corruption(
        "blur",
        _motion_blur,
        [(10, 3), (15, 5), (15, 8), (15, 12), (20, 15)],
        [(6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)],
    ),
    "zoom blur": Corruption(
        "blur",
        _zoom_blur,
        [(1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)],
        [(1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)],
    ),
    "fog": Corruption(
        "weather",
        _fog,
        [(1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)],
        [(0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)],
    ),
    "brightness": Corruption(
        "weather", _brightness, _single(0.1, 0.2, 0.3, 0.4, 0.5), _single(0.05, 0.1, 0.15, 0.2, 0.3)
    ),
    "contrast": Corruption("digital", _contrast, _single(0.4, 0.3, 0.2, 0.1, 0.05), _single(0.75, 0.5, 0.4, 0.3, 0.15)),
    "pixelate": Corruption(
        "digital", _pixelate, _single(0.6, 0.5, 0.4, 0.3, 0.25), _single(0.95, 0.9, 0.85, 0.75, 0.65)
    ),
    "JPEG": Corruption("digital", _jpeg_compression, _single(25, 18, 15, 10, 7), _single(80, 65, 58, 50, 40)),
}
"""By name, in the order of the paper. The parameter of `JPEG` is its quality."""
