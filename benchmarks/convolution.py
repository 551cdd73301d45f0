"""Times the causal convolution tokenizer beside public PyTorch models of the same size and compression, in one run.

    pip install torch torchvision magvit2-pytorch==0.5.1 diffusers==0.42.1
    python benchmarks/convolution.py [--calls=5]

A training step (reconstruction and quantizer losses, AdamW) at batch 2 of 9 × 64 × 64 beside magvit2-pytorch, and
encoding plus decoding of 17 × 128 × 128 beside two causal VAEs of diffusers. Prints a JSON line for each measurement,
{"name", "seconds", "batch", "shape", "parameters", "device"}: the median of ``--calls`` calls after one that is not
counted, the two of a pair taking turns; and a line with the ratio of each pair, ours over theirs.
"""

import sys
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
from benchmarks.train_step import stepper  # noqa: E402
from videogen import tokenizers  # noqa: E402
from videogen.environment import use_large_pages  # noqa: E402
from videogen.training.state import parameter_count  # noqa: E402

CALLS = flags.DEFINE_integer("calls", 5, "Timed calls of each.", lower_bound=3)

TRAINED, CODED = (2, 9, 64, 64, 3), (1, 17, 128, 128, 3)

LFQ = {"name": "lfq", "bits": 10}
GAUSSIAN = {"name": "gaussian", "width": 16, "kl_weight": 1e-6}
CONVOLUTIONAL = {"name": "convolutional", "norm_groups": 4}


def magvit2_pytorch() -> Timed:
    """A training step without perceptual and adversarial losses: 2 × 4 × 4 pixels to one of 2^10 codes."""
    import torch
    from magvit2_pytorch import VideoTokenizer

    layers = ("residual", "compress_space", ("consecutive_residual", 2), "compress_space", ("consecutive_residual", 2))
    model = VideoTokenizer(
        image_size=TRAINED[2],
        init_dim=19,
        codebook_size=1024,
        layers=(*layers, "compress_time", ("consecutive_residual", 2)),
        use_gan=False,
        perceptual_loss_weight=0.0,
    )
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
    video = torch.rand(TRAINED[0], 3, *TRAINED[1:4])

    def step() -> None:
        optimizer.zero_grad()
        model(video, return_loss=True)[0].backward()
        optimizer.step()

    return step, sum(p.numel() for p in model.parameters())


def diffusers_vae(name: str, **settings: Any) -> Timed:
    """Encoding and decoding of a clip by a causal VAE of diffusers."""
    import diffusers
    import torch

    model = getattr(diffusers, name)(**settings).eval()
    video = torch.rand(CODED[0], 3, *CODED[1:4]) * 2 - 1

    @torch.inference_mode()
    def call() -> None:
        model.decode(model.encode(video).latent_dist.mode())

    return call, sum(p.numel() for p in model.parameters())


def trained(config: dict[str, Any]) -> Timed:
    """A training step of ours."""
    model = tokenizers.build(CONVOLUTIONAL | config, dtype=jnp.float32, remat="none", rngs=nnx.Rngs(0))
    video = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, TRAINED), jnp.float32)

    def loss(model: nnx.Module, video: jax.Array) -> jax.Array:
        latents, _, losses, _ = model.bottleneck(model.encode(video), key=jax.random.key(0), train=True)
        return jnp.mean((model.decode(latents) - video) ** 2) + sum(losses.values())

    return stepper(model, loss, video)


def coded(config: dict[str, Any]) -> Timed:
    """Encoding and decoding of a clip by ours."""
    model = tokenizers.build(CONVOLUTIONAL | config, dtype=jnp.float32, remat="none", rngs=nnx.Rngs(0))
    video = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, CODED), jnp.float32)
    graph, state = nnx.split(model)

    def there_and_back(state: nnx.State, video: jax.Array) -> jax.Array:
        model = nnx.merge(graph, state)
        return model.decode(model.bottleneck(model.encode(video))[0])

    call = jax.jit(there_and_back)
    return lambda: jax.block_until_ready(call(state, video)), parameter_count(nnx.state(model, nnx.Param))


def pairs() -> dict[str, tuple[str, Callable[[], Timed], Callable[[], Timed], tuple[int, ...]]]:
    """Name -> (the peer's name, ours, the peer, shape); as many parameters, up to 5 %, and levels of the same sides."""
    coarse = {"spatial_strides": (2, 2, 1), "temporal_strides": (1, 1, 2), "blocks": 1, "quantizer": LFQ}
    fine = {"spatial_strides": (2, 2, 2), "temporal_strides": (1, 2, 2), "blocks": 2, "quantizer": GAUSSIAN}
    cogvideox = {"down_block_types": ("CogVideoXDownBlock3D",) * 4, "up_block_types": ("CogVideoXUpBlock3D",) * 4}
    cogvideox |= {"block_out_channels": (32, 64, 64, 128), "layers_per_block": 2, "norm_num_groups": 8}
    wan = {"base_dim": 24, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 2, "temperal_downsample": [False, True, True]}
    return {
        "train_step": (
            "magvit2-pytorch",
            lambda: trained({"width": 16, "multipliers": (1, 2, 4, 8), "middle_blocks": 0, **coarse}),
            magvit2_pytorch,
            TRAINED,
        ),
        "encode_decode/cogvideox": (
            "diffusers.AutoencoderKLCogVideoX",
            lambda: coded({"width": 32, "multipliers": (1, 2, 2, 4), "middle_blocks": 0, **fine}),
            lambda: diffusers_vae("AutoencoderKLCogVideoX", **cogvideox),
            CODED,
        ),
        "encode_decode/wan": (
            "diffusers.AutoencoderKLWan",
            lambda: coded({"width": 20, "multipliers": (1, 2, 4, 4), **fine}),
            lambda: diffusers_vae("AutoencoderKLWan", **wan),
            CODED,
        ),
    }


def main(_: list[str]) -> None:
    for name, (peer, ours, theirs, shape) in pairs().items():
        with peer_packages("torch torchvision magvit2-pytorch==0.5.1 diffusers==0.42.1"):
            other = theirs()
        compare(name, {"videogen": ours(), peer: other}, shape, CALLS.value)


if __name__ == "__main__":
    use_large_pages()
    app.run(main)
