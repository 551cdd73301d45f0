"""Tiny random networks of ``transformers``, saved as they are published."""

import importlib
import importlib.util
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch


def randomise(model: torch.nn.Module, scale: float = 0.2) -> torch.nn.Module:
    """Parameters that are neither zero nor alike, norms included, and statistics of batch norms that are positive."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in model.parameters():
            value.add_(scale * torch.randn(value.shape, generator=generator))
        for name, value in model.named_buffers():
            if name.endswith("running_mean"):
                value.copy_(0.2 * torch.randn(value.shape, generator=generator))
            if name.endswith("running_var"):
                value.copy_(0.5 + torch.rand(value.shape, generator=generator))
    return model.eval()


def assert_near(actual, expected, tolerance: float = 1e-4) -> None:
    """Equal relative to the largest entry of what is expected."""
    expected = np.asarray(expected.detach() if isinstance(expected, torch.Tensor) else expected)
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def pixels(*shape: int) -> np.ndarray:
    """Normalised pixels, channels last."""
    return np.random.default_rng(0).normal(size=(*shape, 3)).astype(np.float32)


def channels_first(x: np.ndarray) -> torch.Tensor:
    return torch.tensor(np.moveaxis(x, -1, -3).copy())


def import_torchvision():
    """torchvision, whose networks need none of its compiled operators; skips the test where it is not installed.

    Its wheels are built for CUDA. Beside a torch that is not, its operators are missing and it cannot be imported,
    unless their names are declared.
    """
    spec = importlib.util.find_spec("torchvision")
    if spec is None:
        pytest.skip("torchvision is the oracle here, and is not installed")
    if "torchvision" not in sys.modules and not torch.cuda.is_available():
        text = (Path(spec.origin).parent / "_meta_registrations.py").read_text()
        for name in sorted(set(re.findall(r'register_(?:meta|fake)\("(?:torchvision::)?(\w+)"', text))):
            DECLARED.define(f"{name}() -> Tensor")
    return importlib.import_module("torchvision")


DECLARED = torch.library.Library("torchvision", "FRAGMENT")
