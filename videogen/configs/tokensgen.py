"""TokensGen (2025): a plan of condensed tokens of all chunks of a video, then a queue of frames that is told them.

    --config=tokensgen:stage=tokenizer|generator|to2v|t2to,size=debug|small|paper

``tokenizer`` and ``generator`` are a causal VAE and a diffusion transformer over one chunk of its latents, from text.
``to2v`` keeps that transformer as it is and trains a resampler, which condenses a chunk to a few tokens, and a branch
beside its blocks, which is told the tokens of two chunks that a window may lie across; the branch begins as a copy of
the transformer's projections and modulations. ``t2to`` learns the tokens of all chunks of a video at once, from text,
by their first principal components:

    python -m videogen.tokenize --checkpoint=TO2V --out=CACHE --normalise=pca:16
    python -m videogen.train --config=tokensgen:stage=t2to --config.parts.tokenizer.checkpoint=CACHE/tokenizer ...

Videos are drawn with ``videogen.inference.planned``: the plan, then windows over a queue of frames at rising noise
levels (adaptive FIFO; sampler.extension=adaptive_queue), whose steps are window × partitions; or from the tokens of a
given video under another text. ``launch/local.py`` runs the first three stages.

What differs from the published code: the base is not CogVideoX-5B with its weights but a transformer of its sizes that
starts from nothing, with one modulation for text and video, and T5 features through an MLP; so its parameter count is
ours. It is trained with a noise level for every latent frame, as the queue needs it, and not with one for a chunk. A
video is one stream of latents, of which 13 are a chunk, where published chunks of 49 frames are encoded apart. Queries
and keys are RMS-normalised in the resampler, its queries lie in the middle of what they share out, and the last frames
of the queue before the windows are told time 0. Clips have all their chunks; where some do not exist, they are in no
attention and no loss.
"""

from ml_collections import ConfigDict

from videogen.configs import videodit
from videogen.configs.common import t5_part, t5_text
from videogen.configs.generators import begun, flow, flow_from_text
from videogen.configuration import parse_argument
from videogen.defaults import optimizer

STAGES = ("tokenizer", "generator", "to2v")
# The stage t2to needs the cache of to2v's tokens with their principal components, a command of its own.

START_FROM = {"to2v": "generator"}
"""Stage -> the stage whose weights it begins with, for launch/local.py."""

CHUNK = {"debug": 3, "small": 5, "paper": 13}
"""Latent frames of a chunk, and of a window."""

QUERIES = {"debug": (2, 2, 2), "small": (2, 4, 4), "paper": (4, 8, 12)}
"""Tokens of a chunk along time, height and width."""

COMPONENTS = {"debug": 8, "small": 16, "paper": 16}
"""Principal components of a token that are planned."""

PLANNED = {"debug": 4, "small": 4, "paper": 24}
"""Chunks of a plan."""

BASE = ("embed", "time", "stack", "norm_modulation", "head", "statistics", "context", "text_inner", "text_outer")
"""Names in the generator of what is the trained transformer's."""

COPIED = ("attention.query_key_value", "attention.query_norm", "attention.key_norm", "modulation")
"""Of every block what the branch begins as a copy of."""

SWEEPS = {"scale": [{"model.scale": scale} for scale in (0.0, 0.5, 1.0)]}
"""Name -> variants, for launch/sweep.py."""


def get_config(argument: str = "") -> ConfigDict:
    """The config of a stage at a size; ``argument`` is what follows the colon of ``--config``."""
    chosen = parse_argument(argument, stage=(*STAGES, "t2to"), size=("debug", "small", "paper"))
    made = {"tokenizer": tokenizer, "generator": generator, "to2v": to2v, "t2to": t2to}
    return made[chosen["stage"]](chosen["size"])


def tokenizer(size: str) -> ConfigDict:
    """The causal tokenizer with a Gaussian bottleneck (paper: 4 × 8 × 8 pixels to 16 channels)."""
    return videodit.tokenizer(size)


def generator(size: str) -> ConfigDict:
    """The transformer over one chunk, from text."""
    config = flow(size, videodit.continuous(size))
    config.model.update({"text": "joint", "times": "frame", "prefix_share": 0.0})
    process = {"name": "variance_preserving", "schedule": "scaled_linear", "steps": 1000, "zero_terminal_snr": True}
    noise = {"process": process, "prediction": "v", "time_distribution": {"name": "uniform"}}
    config.model.noise = ConfigDict({**noise, "weighting": "", "shift": 1.0})
    config.sampler.update({"steps": 4 * CHUNK[size], "solver": {"name": "dpm_2m", "stochastic": True}})
    config.sampler.guidance_scale = 6.0 if size == "paper" else 3.0
    if size == "paper":
        paper(config, {"layers": 42, "width": 3072, "heads": 48, "mlp_width": 12_288}, chunks=1)
        config.model.update({"patch": (1, 2, 2), "modulation": "single"})
    else:
        flow_from_text(config, size)
        config.data.image_batch_size = 0
        config.data.clip = clip(size, 1)
    return config


def to2v(size: str) -> ConfigDict:
    """The transformer that is told tokens; the window of a clip of two chunks is drawn in training."""
    config = generator(size)
    config.task = "beside_tokens"
    base = {name: config.model[name] for name in ("transformer", "patch", "text", "modulation", "times", "noise")}
    base |= {"condition_drop": config.model.condition_drop}
    config.model = ConfigDict({"name": "flow_beside_tokens", "base": base, "chunk": CHUNK[size], "scale": 1.0})
    config.model.queries = QUERIES[size]
    config.model.resampler = resampler(size)
    config.sampler.extension = "adaptive_queue"
    paths = [(f"generator.generator.branch.stack.layers.{n}", f":generator.generator.stack.layers.{n}") for n in COPIED]
    config.start_from.paths = tuple(paths)
    config.optimizer.generator.freeze = tuple(f"generator.{name}" for name in BASE)
    if size == "paper":
        config.optimizer.generator.update({"learning_rate": 2e-4, "warmup": 200})
        config.data.batch_size = 144
        config.data.clip.frames = 4 * (2 * CHUNK[size] - 1) + 1
    else:
        config.optimizer.generator.freeze += ("text_encoder",)
        config.data.clip = clip(size, 2)
        config.data.own = ("clip",)
    if size == "debug":
        config.steps = 1200
        config.eval_every = config.checkpoint_every = 600
    return config


def t2to(size: str) -> ConfigDict:
    """The plan: a transformer over the tokens of all chunks, as if they were latents."""
    told = to2v(size)
    condenser = {name: told.model[name] for name in ("chunk", "queries", "resampler")}
    condenser |= {"width": told.model.base.transformer.width, "patch": told.model.base.patch}
    condensed = {"name": "condensed", "vae": videodit.continuous(size), "condenser": condenser}
    normaliser = {"name": "pca", "components": COMPONENTS[size]}
    model = ConfigDict({"name": "normalised", "tokenizer": condensed, "normaliser": normaliser})
    config, base = begun(size, model), generator(size)
    for section in (
        "model",
        "sampler",
        "text",
        "optimizer",
        "steps",
        "eval_every",
        "checkpoint_every",
        "ema",
        "parallel",
    ):
        config[section] = base[section]
    config.task = "plan"
    config.model.update({"patch": (1, 1, 1), "times": "clip"})
    config.sampler.extension = "window"
    config.data = base.data
    frames = (CHUNK[size] * PLANNED[size] - 1) * (4 if size == "paper" else 2) + 1
    config.data.clip.frames = frames
    config.data.own = ("clip",)
    if size == "paper":
        config.parts.text_encoder = t5_part()
        config.data.batch_size = 120
        config.optimizer.generator.update({"learning_rate": 3e-4, "warmup": 200})
    return config


def resampler(size: str) -> dict:
    """The resampler at each size (paper: depth 4, 16 heads of 64, 3-D rotary positions of tokens and queries)."""
    sizes = {
        "debug": {"width": 128, "depth": 2, "heads": 4, "head_width": 32, "query_scale": 1.0},
        "small": {"width": 512, "depth": 3, "heads": 8, "head_width": 64, "query_scale": 0.02},
        "paper": {"width": 3072, "depth": 4, "heads": 16, "head_width": 64, "query_scale": 0.02},
    }[size]
    return {"name": "perceiver", **sizes, "qk_norm": True, "rotary": "both"}


def clip(size: str, chunks: int) -> dict:
    """Clips of so many chunks at the smaller sizes."""
    side = 24 if size == "debug" else 64
    return {"frames": 2 * (CHUNK[size] * chunks - 1) + 1, "height": side, "width": side, "fps": 8.0}


def paper(config: ConfigDict, transformer: dict, chunks: int) -> None:
    """Sets the training of the base at the published sizes: chunks of 49 frames at 10 a second, 480 × 720."""
    config.steps = 500_000
    config.eval_every = 5000
    config.checkpoint_every = 5000
    config.data.clip = {"frames": 4 * (13 * chunks - 1) + 1, "height": 480, "width": 720, "fps": 10.0}
    config.data.own = ("clip",)
    config.data.source.name = "video_folder"
    config.data.batch_size = 128
    config.data.workers = 16
    config.text = t5_text(length=226)
    config.parts.text_encoder = t5_part()
    config.model.transformer = transformer
    config.ema.decay = 0.9999
    config.parallel.mesh.update({"data": 1, "fsdp": -1})
    config.parallel.remat = "attention"
    rates = {"learning_rate": 1e-4, "warmup": 200, "schedule": "constant", "b2": 0.95, "weight_decay": 1e-4}
    config.optimizer = {"generator": optimizer(**rates)}
