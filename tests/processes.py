"""How tests start processes, and the smallest training they start."""

import os
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]

TOKENIZER = (
    "--config=phenaki:stage=tokenizer,size=debug",
    "--config.data.clip.frames=5",
    "--config.data.clip.height=16",
    "--config.data.clip.width=16",
    "--config.data.eval_batch_size=4",
    "--config.model.width=32",
    "--config.model.heads=2",
    "--config.model.mlp_width=64",
    "--config.model.encoder_layers=(1,1)",
    "--config.model.decoder_layers=(1,1)",
    "--config.model.quantizer.size=32",
    "--config.log_every=1",
)
"""A C-ViViT of 32 channels on 5×16×16 clips; every step is logged."""


def environment(devices: int = 1) -> dict[str, str]:
    """The environment of a process that finds the checkout and so many virtual devices, and no PyTorch.

    All that it compiles goes into the cache: many of these processes are the same training.
    """
    return {
        **os.environ,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": os.pathsep.join(map(str, (REPOSITORY, REPOSITORY / "tests" / "absent"))),
    }
