"""Frame fidelity (PSNR, SSIM), sharpness, and code statistics (usage, perplexity, bits per pixel).

Every function works inside ``jax.jit``. Called with concrete arrays it also refuses values that have no
meaning (NaN, infinities, pixels outside [0, 1], negative counts); a traced array has no values to look at.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Num

from videogen.errors import UserError
from videogen.shapes import Video

UnitVideo = Float[Array, "batch time height width channel"]
"""Pixels in [0, 1]: what every fidelity metric takes (``to_unit`` makes them)."""

PSNR_CAP = 100.0
"""dB of identical frames, as in the common public implementations (mean squared error below 1e-10)."""

SSIM_WINDOW = 11
SSIM_SIGMA = 1.5

LUMA = (0.299, 0.587, 0.114)
"""Brightness of red, green and blue (Rec. 601)."""


def to_unit(video: Video) -> UnitVideo:
    """[-1, 1] -> [0, 1] through clamping and rounding to uint8, as a stored clip would be."""
    levels = jnp.round(jnp.clip((video.astype(jnp.float32) + 1) * 127.5, 0, 255))
    return levels / 255


def psnr(video: UnitVideo, reference: UnitVideo) -> Float[Array, "batch"]:
    """Peak signal-to-noise ratio in dB of each clip: per frame, capped at 100, then the mean over frames.

    Pooling the error over the clip before the logarithm gives other (lower) values.

    Args:
      video: the clips to judge, in [0, 1].
      reference: the originals, same shape.

    Raises:
      UserError: shapes differ, or a value is NaN, infinite or outside [0, 1].
    """
    video, reference = check_pair(video, reference)
    error = jnp.mean(jnp.square(video - reference), axis=(2, 3, 4))
    return jnp.mean(-10 * jnp.log10(jnp.maximum(error, 10 ** (-PSNR_CAP / 10))), axis=-1)


def region_psnr(
    video: UnitVideo, reference: UnitVideo, region: Bool[Array, "batch time height width"]
) -> Float[Array, "batch"]:
    """PSNR in dB over the pixels of a region of each clip, their errors pooled before the logarithm; capped at 100.

    Args:
      video: the clips to judge, in [0, 1].
      reference: the originals, same shape.
      region: the pixels that count; at least one of each clip.

    Raises:
      UserError: shapes differ, or a value is NaN, infinite or outside [0, 1].
    """
    video, reference = check_pair(video, reference)
    error = jnp.where(region, jnp.square(video - reference).mean(-1), 0.0).sum((1, 2, 3)) / region.sum((1, 2, 3))
    return -10 * jnp.log10(jnp.maximum(error, 10 ** (-PSNR_CAP / 10)))


def ssim(video: UnitVideo, reference: UnitVideo) -> Float[Array, "batch"]:
    """Structural similarity of each clip (Wang et al., 2004), at most 1.

    Gaussian window of 11 pixels with sigma 1.5, K1 = 0.01, K2 = 0.03, only windows that lie inside the
    frame, every RGB channel on its own; mean over windows, channels and frames.

    Args:
      video: the clips to judge, in [0, 1].
      reference: the originals, same shape.

    Raises:
      UserError: shapes differ, a value is NaN, infinite or outside [0, 1], or a side is below 11 pixels.
    """
    video, reference = check_pair(video, reference)
    height, width = video.shape[2:4]
    if min(height, width) < SSIM_WINDOW:
        raise UserError(f"SSIM needs frames of at least {SSIM_WINDOW}×{SSIM_WINDOW} pixels, got {height}×{width}")
    return _ssim(video, reference)


def _ssim(video: UnitVideo, reference: UnitVideo) -> Float[Array, "batch"]:
    return jnp.mean(ssim_map(video, reference), axis=(1, 2, 3, 4))


@jax.jit
def ssim_map(video: UnitVideo, reference: UnitVideo) -> Float[Array, "batch time rows columns channel"]:
    """The structural similarity of every window that lies inside the frame, as of ``ssim``: ``SSIM_WINDOW - 1`` fewer
    rows and columns, the first window centred on pixel ``SSIM_WINDOW // 2``."""
    # Second moments are taken about each frame's mean: E[x²] - E[x]² would cancel in float32 on flat frames.
    mean_video = jnp.mean(video, axis=(2, 3), keepdims=True)
    mean_reference = jnp.mean(reference, axis=(2, 3), keepdims=True)
    x, y = video - mean_video, reference - mean_reference
    x_local, y_local, xx, yy, xy = (_gaussian_filter(m) for m in (x, y, x * x, y * y, x * y))
    variances = (xx - x_local * x_local) + (yy - y_local * y_local)
    covariance = xy - x_local * y_local
    x_local, y_local = x_local + mean_video, y_local + mean_reference
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * x_local * y_local + c1) / (x_local * x_local + y_local * y_local + c1)
    return luminance * (2 * covariance + c2) / (variances + c2)


def _gaussian_filter(frames: UnitVideo) -> UnitVideo:
    """Separable filter, valid region, as shifts and adds: exact float32 on every backend."""
    offsets = np.arange(SSIM_WINDOW) - SSIM_WINDOW // 2
    taps = np.exp(-(offsets**2) / (2 * SSIM_SIGMA**2))
    taps = (taps / taps.sum()).astype(np.float32)
    for axis in (2, 3):
        size = frames.shape[axis] - SSIM_WINDOW + 1
        parts = (tap * jax.lax.slice_in_dim(frames, i, i + size, axis=axis) for i, tap in enumerate(taps))
        frames = functools.reduce(jnp.add, parts)
    return frames


def gradient_sharpness(video: UnitVideo, reference: UnitVideo) -> Float[Array, "batch"]:
    """How far each clip is from being as sharp as its original, in grey levels (0 to 255); 0 for the same sharpness.

    The strength of the edges of a frame is the length of its brightness gradient (Rec. 601 luma, differences to the
    right and lower neighbour) at each pixel. The distance is the 1-Wasserstein distance of these strengths over the
    frame: sorted, the mean absolute difference; mean over frames. It does not ask where edges are (PSNR and SSIM do),
    but whether there are as many of each strength: blur and noise both raise it.

    Args:
      video: the clips to judge, in [0, 1].
      reference: the originals, same shape, RGB.

    Raises:
      UserError: shapes differ, or a value is NaN, infinite or outside [0, 1].
    """
    video, reference = check_pair(video, reference)
    return 255 * jnp.mean(jnp.abs(_edge_strengths(video) - _edge_strengths(reference)), axis=(1, 2))


def _edge_strengths(video: UnitVideo) -> Float[Array, "batch time pixels"]:
    """Lengths of the brightness gradient of each frame, in rising order."""
    brightness = jnp.matmul(video, jnp.asarray(LUMA), precision=jax.lax.Precision.HIGHEST)
    right = jnp.diff(brightness, axis=3)[:, :, :-1]
    below = jnp.diff(brightness, axis=2)[:, :, :, :-1]
    return jnp.sort(jnp.hypot(right, below).reshape(*video.shape[:2], -1), axis=-1)


def codebook_usage(counts: Num[Array, "... codes"]) -> Float[Array, "..."]:
    """Fraction of the codes with a positive count; grows with the number of draws (see ``expected_usage``).

    Raises:
      UserError: a count is negative, NaN or infinite.
    """
    counts = _check_counts(counts)
    return jnp.mean(counts > 0, axis=-1, dtype=jnp.float32)


def perplexity(counts: Num[Array, "... codes"]) -> Float[Array, "..."]:
    """exp(entropy) of the empirical distribution: K for even use of K codes, 1 for one code (or no counts).

    Raises:
      UserError: a count is negative, NaN or infinite.
    """
    counts = _check_counts(counts)
    total = jnp.sum(counts, axis=-1, keepdims=True)
    p = counts / jnp.maximum(total, jnp.finfo(jnp.float32).tiny)
    return jnp.exp(-jnp.sum(p * jnp.log(jnp.where(p > 0, p, 1)), axis=-1))


def entropy_bits(counts: Num[np.ndarray, "codes"]) -> float:
    """Bits that an ideal entropy coder spends on a code, from how often each occurs: at most log2 of the vocabulary.

    Codes are taken as independent; a learned prior of their order spends fewer.

    Raises:
      UserError: a count is negative, or there are none.
    """
    counts = np.asarray(counts, np.float64)
    if (counts < 0).any() or not counts.sum() > 0:
        raise UserError("an entropy needs counts that are not negative, of at least one code")
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log2(p)).sum())


def expected_usage(draws: int, size: int) -> float:
    """Codebook usage expected of ``draws`` even, independent draws from ``size`` codes: 1 - (1 - 1/K)^n."""
    if draws < 0 or size < 1:
        raise UserError(f"expected usage needs draws >= 0 and size >= 1, got {draws} and {size}")
    return 1.0 - (1.0 - 1.0 / size) ** draws


def _is_concrete(x: Array) -> bool:
    return not isinstance(x, jax.core.Tracer)


def check_pair(video: UnitVideo, reference: UnitVideo) -> tuple[UnitVideo, UnitVideo]:
    """Both as float32; raises ``UserError`` where they cannot be compared or hold values outside [0, 1]."""
    video, reference = jnp.asarray(video, jnp.float32), jnp.asarray(reference, jnp.float32)
    if video.shape != reference.shape or video.ndim != 5:
        raise UserError(
            "metrics compare two arrays [batch, time, height, width, channel] of one shape, "
            f"got {video.shape} and {reference.shape}"
        )
    for name, x in (("video", video), ("reference", reference)):
        # Written so that NaN, which compares false to everything, is refused too.
        if _is_concrete(x) and not bool(jnp.all((x >= 0) & (x <= 1))):
            raise UserError(f"the {name} has pixels that are NaN or outside [0, 1]; convert it with to_unit")
    return video, reference


def _check_counts(counts: Num[Array, "... codes"]) -> Float[Array, "... codes"]:
    counts = jnp.asarray(counts, jnp.float32)
    if _is_concrete(counts) and not bool(jnp.all((counts >= 0) & jnp.isfinite(counts))):
        raise UserError("code counts must be finite and not negative")
    return counts
