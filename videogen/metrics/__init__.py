"""Metric definitions: the one place where a reported number gets its meaning."""

from videogen.metrics.fidelity import (
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
    "codebook_usage",
    "expected_usage",
    "gradient_sharpness",
    "perplexity",
    "psnr",
    "region_psnr",
    "ssim",
    "to_unit",
]
