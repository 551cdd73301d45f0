"""The same training steps in phenaki-pytorch 0.5.0, for ``train_step.py --peer``.

    pip install torch phenaki-pytorch==0.5.0

Its trainers import packages its models do not use (torchvision, ema-pytorch, …); where those are not installed,
empty stand-ins let the models be imported.
"""

import importlib.util
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from unittest.mock import MagicMock

TRAINER_ONLY = (
    "torchvision",
    "torchvision.transforms",
    "torchvision.datasets",
    "torchvision.utils",
    "cv2",
    "accelerate",
    "ema_pytorch",
    "sentencepiece",
)


def _import_peer():
    # transformers looks for torchvision itself: it must do so before the stand-ins are there.
    from transformers import T5Config, T5EncoderModel, T5Tokenizer  # noqa: F401

    for name in [n for n in TRAINER_ONLY if importlib.util.find_spec(n.split(".")[0]) is None]:
        sys.modules[name] = MagicMock(__spec__=ModuleSpec(name, None))
    import phenaki_pytorch

    return phenaki_pytorch


def steps(video_shape: tuple[int, ...], token_shape: tuple[int, int]) -> dict[str, tuple[Callable[[], None], int]]:
    """Name -> (one AdamW step, parameters), at the sizes of ``train_step.py``."""
    peer = _import_peer()
    import torch

    torch.manual_seed(0)
    batch, frames, height, width, channels = video_shape
    video = torch.rand(batch, channels, frames, height, width) * 2 - 1
    tokenizer = peer.CViViT(
        dim=128,
        codebook_size=1024,
        image_size=height,
        patch_size=8,
        temporal_patch_size=2,
        spatial_depth=4,
        temporal_depth=4,
        dim_head=32,
        heads=4,
        use_vgg_and_gan=False,
        lookup_free_quantization=False,
    )
    generator = peer.MaskGit(
        dim=512, num_tokens=1024, max_seq_len=token_shape[1], depth=8, heads=8, dim_head=64, dim_context=768
    )
    ids = torch.randint(0, 1024, token_shape)
    masked = torch.rand(token_shape) < 0.5
    text = torch.randn(batch, 16, 768)
    text_mask = torch.ones(batch, 16, dtype=torch.bool)
    inputs = torch.where(masked, 1024, ids)

    def masked_loss():
        logits = generator(inputs, video_patch_shape=(5, 8, 8), context=text, text_mask=text_mask)
        return torch.nn.functional.cross_entropy(logits[masked], ids[masked])

    def stepper(module, loss):
        optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4, betas=(0.9, 0.99))

        def step():
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()

        return step, sum(p.numel() for p in module.parameters())

    return {
        "cvivit": stepper(tokenizer, lambda: tokenizer(video)),
        "masked_transformer": stepper(generator, masked_loss),
    }
