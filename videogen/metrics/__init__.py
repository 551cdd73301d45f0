"""Metric definitions: the one place where a reported number gets its meaning."""

from videogen.metrics.fidelity import (
    bits_per_pixel,
    codebook_usage,
    expected_usage,
    gradient_sharpness,
    perplexity,
    psnr,
    region_psnr,
    ssim,
    to_unit,
)

__all__ = [
    "bits_per_pixel",
    "codebook_usage",
    "expected_usage",
    "gradient_sharpness",
    "perplexity",
    "psnr",
    "region_psnr",
    "ssim",
    "to_unit",
]
