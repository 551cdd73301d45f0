"""Times published models as they are read here beside their classes in diffusers, with the same weights, in one run.

    pip install torch diffusers==0.42.1
    python benchmarks/public_peers.py [--only=wan,cosmos] [--clip=17x128x128] [--calls=5]

Tokenizers encode and decode a clip; the transformer takes one denoising step (8 layers, width 512, 2,000 tokens, a text
of 64 tokens). Weights are random and saved by diffusers; widths are a quarter of the published ones unless --full is
given. Prints what ``benchmarks.common.compare`` prints: medians of calls that take turns, and ours over theirs.
"""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from flax import nnx

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.common import Timed, compare, peer_packages  # noqa: E402
from videogen.conditioning import Conditioning, EncodedText  # noqa: E402
from videogen.encoders.loading import fill  # noqa: E402
from videogen.environment import use_large_pages  # noqa: E402
from videogen.generators import NormalisedLatents  # noqa: E402
from videogen.generators.flow import FlowTransformer  # noqa: E402
from videogen.generators.public.wan import WAN_TEXT, wan_described, wan_names  # noqa: E402
from videogen.inference.files import read_clip_size  # noqa: E402
from videogen.tokenizers.public import read_tokenizer  # noqa: E402
from videogen.training.state import parameter_count  # noqa: E402

ONLY = flags.DEFINE_list("only", None, "Names of what is timed; by default all.")
CLIP = flags.DEFINE_string("clip", "17x128x128", "FRAMESxHEIGHTxWIDTH that tokenizers code.")
CALLS = flags.DEFINE_integer("calls", 5, "Timed calls of each.", lower_bound=3)
FULL = flags.DEFINE_bool("full", False, "Published widths of tokenizers.")

TOKENIZERS = {
    "wan": ("AutoencoderKLWan", {"base_dim": 24}),
    "ltx": (
        "AutoencoderKLLTXVideo",
        {"block_out_channels": (32, 64, 128, 128), "decoder_block_out_channels": (32, 64, 128, 128)},
    ),
    "cogvideox": (
        "AutoencoderKLCogVideoX",
        {
            **{"down_block_types": ("CogVideoXDownBlock3D",) * 4, "up_block_types": ("CogVideoXUpBlock3D",) * 4},
            **{"block_out_channels": (32, 64, 64, 128), "norm_num_groups": 8},
        },
    ),
    "cosmos": (
        "AutoencoderKLCosmos",
        {"encoder_block_out_channels": (32, 64, 128, 128), "decode_block_out_channels": (64, 128, 128, 128)},
    ),
}
"""Name -> class of diffusers, and its settings at a quarter of the published widths."""


def tokenizer(name: str, folder: Path) -> tuple[dict[str, Timed], tuple[int, ...]]:
    """Encoding and decoding of a clip by both."""
    import diffusers
    import torch

    kind, small = TOKENIZERS[name]
    torch.manual_seed(0)
    theirs = getattr(diffusers, kind)(**({} if FULL.value else small)).eval()
    theirs.save_pretrained(folder)
    model = read_tokenizer(folder).tokenizer
    shape = read_clip_size(CLIP.value)
    video = np.random.default_rng(0).uniform(-1, 1, (1, shape.frames, shape.height, shape.width, 3)).astype(np.float32)
    given = torch.from_numpy(np.moveaxis(video, -1, 1).copy())

    @torch.inference_mode()
    def call() -> None:
        theirs.decode(theirs.encode(given).latent_dist.mode())

    graph, state = nnx.split(model)

    @jax.jit
    def there_and_back(state: nnx.State, video: jax.Array) -> jax.Array:
        model = nnx.merge(graph, state)
        return model.decode(model.bottleneck(model.encode(video))[0])

    ours = (lambda: jax.block_until_ready(there_and_back(state, video))), parameter_count(nnx.state(model, nnx.Param))
    other = call, sum(p.numel() for p in theirs.parameters())
    return {"videogen": ours, f"diffusers.{kind}": other}, video.shape


def wan_transformer(folder: Path) -> tuple[dict[str, Timed], tuple[int, ...]]:
    """One denoising step of a transformer of Wan by both."""
    import diffusers
    import torch

    settings: dict[str, Any] = {"num_attention_heads": 4, "attention_head_dim": 128, "num_layers": 8, "ffn_dim": 2048}
    torch.manual_seed(0)
    theirs = diffusers.WanTransformer3DModel(**settings, text_dim=512).eval()
    found, grid = wan_described(dict(theirs.config)), (5, 40, 40)
    kept = {name: value for name, value in found.model.items() if name != "name"}

    def made() -> FlowTransformer:
        model = FlowTransformer(found.channels, grid, **kept, context_width=found.text_width, rngs=nnx.Rngs(0))
        model.statistics = NormalisedLatents()
        return model

    tensors = {name: x.numpy() for name, x in theirs.state_dict().items()}
    abstract = nnx.eval_shape(made)
    model = fill(abstract, wan_names(abstract), tensors, "the model")
    rng = np.random.default_rng(0)
    latents = rng.standard_normal((1, *grid, found.channels)).astype(np.float32)
    text = rng.standard_normal((1, 64, found.text_width)).astype(np.float32)
    rows = np.pad(text, ((0, 0), (0, WAN_TEXT - 64), (0, 0)))
    given = [torch.from_numpy(x) for x in (np.moveaxis(latents, -1, 1).copy(), np.float32([500.0]), rows)]

    @torch.inference_mode()
    def call() -> None:
        theirs(*given, return_dict=False)

    graph, state = nnx.split(model)

    @jax.jit
    def step(state: nnx.State, latents: jax.Array, text: jax.Array) -> jax.Array:
        model = nnx.merge(graph, state)
        told = Conditioning(EncodedText(text, jnp.ones(text.shape[:2], bool)))
        return model.predict(latents, jnp.full(len(latents), 0.5), model.prepare(told))

    ours = (lambda: jax.block_until_ready(step(state, latents, text))), parameter_count(nnx.state(model, nnx.Param))
    other = call, sum(p.numel() for p in theirs.parameters())
    return {"videogen": ours, "diffusers.WanTransformer3DModel": other}, latents.shape


def main(_: list[str]) -> None:
    known: dict[str, Callable[[Path], tuple[dict[str, Timed], tuple[int, ...]]]] = {
        **{name: lambda folder, name=name: tokenizer(name, folder) for name in TOKENIZERS},
        "wan_transformer": wan_transformer,
    }
    for name in ONLY.value or known:
        if name not in known:
            sys.exit(f"error: unknown {name!r}; known: {', '.join(known)}")
        with tempfile.TemporaryDirectory() as folder, peer_packages("torch diffusers==0.42.1"):
            both, shape = known[name](Path(folder))
            compare(name, both, shape, CALLS.value)


if __name__ == "__main__":
    use_large_pages()
    app.run(main)
