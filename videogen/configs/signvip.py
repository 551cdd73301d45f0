"""SignViP (NeurIPS 2025): from texts to sign videos by discrete tokens of a learned embedding of several conditions.

    --config=signvip:stage=vae|diffusion|codec|translator,size=debug|small|paper

``vae`` codes single frames. ``diffusion`` (stage I) trains an encoder of the maps of pose and hands together with a
diffusion transformer, which is told their embedding, added to the tokens of its frame, and a reference picture of the
signer, which it attends to. ``codec`` (stage II) makes few codes of the frozen embedding, frame by frame, and
``translator`` (stage III) draws these codes from a text, frame after frame, all codes of a frame at once.
``launch/local.py`` runs all four. ``videogen.sample --prompt=… --image=PICTURE`` goes the whole way, with the signer of
the picture.

``debug`` trains on two CPU cores, on the ``signer`` source: a drawn figure that signs twelve words, whose signs and
looks a program reads back (``--protocol=signs``). ``small`` is for one accelerator. ``paper`` has the published encoder
of maps, codec and translator at 272 × 224, 12 tokens a frame; --config.data.source.path names videos with the points of
body and hands.

What differs from the paper: the video diffusion transformer takes the place of the published U-Net with its reference
network and motion modules, so its parameter count is ours, it starts from nothing, and no number of the paper can be
compared with it. The reference picture is told as tokens of its latents, by cross-attention of 768 channels; it is
another frame of the clip in training. 10 % of the examples lack the reference, and 10 % the maps, so that guidance may
drop either (model.denoising.guidance, an ordered list); the published one drops the reference alone, with a scale of
3.5, and so does ``paper``. The VAE has the published compression and channels, is trained with the losses of
``magvit2``, and its latents are normalised by statistics of the first 500 steps. The embedding is resized to 32 × 24
places for the codec and back. FSQ has the sigmoid of the paper at twice the latent (tanh). Rates are those of the
paper; each place of a frame has vectors of its own for the codes; dropout is 0. The frozen text encoder is CLIP's
ViT-B/32, whose published folder the user names (--config.parts.text_encoder.checkpoint=FOLDER); the paper has a
multilingual one of that class. At ``debug`` and ``small`` an encoder is trained along, whose vectors are averaged.
"""

from ml_collections import ConfigDict

from videogen.configs import divot, flextok
from videogen.configs.common import bpe_text, frozen, loss_terms
from videogen.configs.divot import network
from videogen.configs.generators import begun
from videogen.configuration import parse_argument
from videogen.defaults import base, optimizer

STAGES = ("vae", "diffusion", "codec", "translator")

PARTS = {"translator": {"tokenizer": "codec"}}
"""Stage -> frozen part -> the stage that it comes from, for launch/local.py."""

SWEEPS = {
    "augmentation": [{"augmentation": share} for share in (0.0, 1e-3, 1e-2)],
    "noise": [{"model.token_drop": share} for share in (0.0, 0.2, 0.4)],
}
"""Name -> variants, for launch/sweep.py."""

CLIP_TEXT = {"name": "clip_text", "vocabulary_size": 49408, "length": 77, "embed": 512, "end": 49407}
CLIP_TEXT |= {"sizes": {"width": 512, "layers": 12, "heads": 8, "hidden": 2048, "kind": "quick_gelu", "epsilon": 1e-5}}
"""The text encoder of CLIP ViT-B/32."""

CLIPS = {"debug": (12, 24, 24), "small": (24, 64, 64), "paper": (24, 272, 224)}


def get_config(argument: str = "") -> ConfigDict:
    """The config of a stage at a size; ``argument`` is what follows the colon of ``--config``."""
    chosen = parse_argument(
        argument, stage=("diffusion", "vae", "codec", "translator"), size=("debug", "small", "paper")
    )
    made = {"vae": vae, "diffusion": diffusion, "codec": codec, "translator": translator}
    return made[chosen["stage"]](chosen["size"])


def vae(size: str) -> ConfigDict:
    """The tokenizer of single frames with continuous latents (paper: 4 channels of 8 × 8 pixels)."""
    config = flextok.vae(size)
    config.model = autoencoder(size)
    signers(config, size, maps=False)
    config.losses.l2.weight = 1.0
    if size == "paper":
        config.data.clip.frames = 1
    if size == "debug":
        config.losses = loss_terms(l2=1.0)
        config.steps = 1500
        config.eval_every = config.checkpoint_every = 500
        config.data.batch_size = 4
        config.data.image_batch_size = 0
        config.ema.decay = 0.99
        muon = {"learning_rate": 3e-3, "adam_share": 0.7, "warmup": 30, "final": 0.02, "weight_decay": 0.0}
        config.optimizer = {"tokenizer": optimizer("muon", **muon)}
    return config


def autoencoder(size: str) -> ConfigDict:
    """The network of the stage ``vae``; no frame sees another."""
    if size == "paper":
        return divot.autoencoder(size)
    levels = {"width": 16, "multipliers": (1, 2, 4), "spatial_strides": (2, 2), "temporal_strides": (1, 1)}
    levels |= {"norm_groups": 4}
    if size == "small":
        levels = {"width": 64, "multipliers": (1, 2, 4), "spatial_strides": (2, 2), "temporal_strides": (1, 1)}
    quantizer = {"name": "gaussian", "width": 8, "kl_weight": 1e-4}
    return ConfigDict({"name": "convolutional", **levels, "blocks": 1, "time_kernel": 1, "quantizer": quantizer})


def signers(config: ConfigDict, size: str, maps: bool = True) -> None:
    """Where clips come from, and their size."""
    frames, height, width = CLIPS[size]
    config.data.clip = {"frames": frames, "height": height, "width": width, "fps": 25.0 if size == "paper" else 8.0}
    config.data.source.name = "video_folder" if size == "paper" else "signer"
    config.data.image_batch_size = 0
    if maps:
        config.data.source.maps = True


def diffusion(size: str) -> ConfigDict:
    """Stage I: the encoder of maps and the diffusion transformer."""
    config = base(dtype="float32" if size == "debug" else "bfloat16")
    config.task = "sign_diffusion"
    # Model and hash are filled in from the checkpoint when the run starts.
    config.parts.vae = frozen(autoencoder(size))
    config.model = sign_diffusion(size)
    config.losses = loss_terms(diffusion={"name": "l2", "reads": "noise", "weight": 1.0})
    # The share of frames in training whose maps are those of another one (section 3.2).
    config.augmentation = 1e-3
    signers(config, size)
    trained(config, size, 1e-5, 2)
    if size == "debug":
        config.steps = 2400
        config.ema.decay = 0.998
        config.optimizer = {"tokenizer": muon()}
    return config


def sign_diffusion(size: str) -> ConfigDict:
    """What stage I trains."""
    if size == "debug":
        shape = {"context_width": 64, "encoder": {"channels": (8, 16, 32), "strides": (1, 2, 2)}}
        transformer = network(128, 4, 4)
    elif size == "small":
        shape = {"context_width": 256, "encoder": {"channels": (16, 32, 96), "strides": (1, 2, 2)}}
        transformer = network(384, 8, 6)
    else:
        shape = {"context_width": 768, "encoder": {"channels": (16, 32, 96, 256), "strides": (1, 2, 2, 2)}}
        transformer = {"width": 1152, "layers": 28, "heads": 16, "mlp_width": 4608, "qk_norm": True}
    shape["denoiser"] = {"transformer": transformer, "patch": (1, 2, 2), "modulation": "zero"}
    return ConfigDict({"name": "sign_diffusion", "clip": CLIPS[size], **shape, "denoising": denoising(size)})


def denoising(size: str) -> dict:
    """How the diffusion transformer learns and draws."""
    process = {"name": "variance_preserving", "schedule": "scaled_linear", "steps": 1000}
    short = size == "debug"
    return {
        # A short run learns most near pure noise, where the maps alone tell what is there.
        "process": process | ({"zero_terminal_snr": True} if short else {}),
        "prediction": "v" if short else "epsilon",
        "time_distribution": {"name": "uniform"},
        "shift": 4.0 if short else 1.0,
        "null_shares": {"reference": 0.1, "pose": 0.1},
        "steps": 10 if short else 50,
        "solver": {"name": "ddim", "eta": 0.0},
        "guidance": () if short else ((("reference",), 3.5),),
        "window": CLIPS[size][0],
        "overlap": 2 if short else 4,
    }


def codec(size: str) -> ConfigDict:
    """Stage II: few codes of the embedding of every frame."""
    config = base(dtype="float32" if size == "debug" else "bfloat16")
    config.task = "sign_codec"
    config.parts.diffusion = frozen(sign_video(size))
    config.model = feature_codec(size)
    config.losses = loss_terms(embedding={"name": "l2", "reads": "embedding", "weight": 1.0})
    signers(config, size)
    trained(config, size, 5e-5, 16)
    if size == "debug":
        config.steps = 1500
        config.ema.decay = 0.99
        config.optimizer = {"tokenizer": muon(3e-3)}
    return config


def sign_video(size: str) -> dict:
    """The whole model of stage I."""
    return {"name": "sign_video", "vae": autoencoder(size).to_dict(), "tokenizer": sign_diffusion(size).to_dict()}


def feature_codec(size: str) -> ConfigDict:
    """What stage II trains (paper: 512 × 34 × 28 to 12 tokens of 625 codes)."""
    sizes = {"debug": (32, (1, 2), 4), "small": (64, (1, 2, 4), 32), "paper": (128, (1, 2, 4, 8), 32)}
    width, multipliers, groups = sizes[size]
    levels = {"width": width, "multipliers": multipliers, "blocks": 1 if size == "debug" else 2, "norm_groups": groups}
    quantizer = {"name": "fsq", "levels": (5, 5, 5, 5), "bound": "symmetric"}
    return ConfigDict({"name": "feature_codec", "clip": CLIPS[size], **levels, "quantizer": quantizer})


def translator(size: str) -> ConfigDict:
    """Stage III: the codes of a text, frame after frame."""
    whole = {"name": "coded_features", "model": sign_video(size), "tokenizer": feature_codec(size).to_dict()}
    config = begun(size, ConfigDict(whole))
    signers(config, size)
    sizes = {"debug": (128, 3, 4), "small": (256, 6, 8), "paper": (512, 8, 8)}
    width, layers, heads = sizes[size]
    transformer = {"width": width, "layers": layers, "heads": heads, "mlp_width": 4 * width}
    config.model = {"name": "next_frame", "window": 128, "token_drop": 0.4, "condition_drop": 0.0}
    config.model.transformer = transformer
    sampler = {"name": "blocks", "temperature": 0.0, "top_k": 0, "top_p": 1.0}
    config.sampler = sampler | {"guidance_scale": 1.0, "guidance_schedule": "constant"}
    trained(config, size, 1e-6, 16, group="generator")
    if size == "debug":
        config.text = bpe_text(vocabulary_size=512, length=24, width=128, layers=2, heads=4)
        config.steps = 3000
        config.data.batch_size = 32
        config.ema.decay = 0.99
        config.optimizer = {"generator": muon()}
    elif size == "small":
        config.text = bpe_text(vocabulary_size=4096, length=64, width=512, layers=4, heads=8)
    else:
        config.data.clip.frames = 400
        config.text = {"encoder": {"name": "clip_text"}}
        config.text.tokenizer = {"name": "huggingface", "path": "", "length": 77}
        config.parts.text_encoder = frozen(CLIP_TEXT)
    return config


def trained(config: ConfigDict, size: str, rate: float, batch: int, group: str = "tokenizer") -> None:
    """Sets the training; at ``paper`` the published steps, rates and batches."""
    if size == "debug":
        config.eval_every = 600
        config.checkpoint_every = 300
        return
    config.steps = 50_000 if size == "paper" else 30_000
    config.eval_every = config.checkpoint_every = 2500
    config.data.batch_size = batch if size == "paper" else 32
    config.data.workers = 8
    config.ema.decay = 0.999
    if size == "paper":
        config.parallel.remat = "dots"
    published = {"learning_rate": rate, "weight_decay": 0.0, "b2": 0.999}
    config.optimizer = {group: optimizer(**(published if size == "paper" else {"learning_rate": 3e-4, "warmup": 1000}))}


def muon(rate: float = 1e-2) -> ConfigDict:
    """The optimizer of short runs."""
    rates = {"learning_rate": rate, "adam_share": 0.2, "warmup": 50, "final": 0.02, "weight_decay": 0.0}
    return optimizer("muon", **rates)
