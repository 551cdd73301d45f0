"""Networks that several systems share, at each size; plain data."""

from ml_collections import ConfigDict


def cvivit(size: str) -> ConfigDict:
    """The C-ViViT of Phenaki (paper: section 2.1, about 50M parameters).

    Used by phenaki, and for clips of the smaller sizes by nbp, videodit and tokenbridge.
    """
    config = ConfigDict({"name": "cvivit", "quantizer": {"name": "vq", "cosine": True}})
    if size == "debug":
        config.patch = (2, 4, 4)
        config.width = 128
        config.heads = 4
        config.mlp_width = 512
        # Codes that see nothing but their own patch are the easiest to predict: a short generator run needs that.
        config.encoder_layers = (0, 0)
        config.decoder_layers = (3, 2)
        config.quantizer.size = 96
        config.quantizer.width = 16
        config.quantizer.codebook_update = "ema"
        config.quantizer.decay = 0.95
        config.quantizer.restart_threshold = 0.05
    elif size == "small":
        config.patch = (2, 8, 8)
        config.width = 384
        config.heads = 6
        config.mlp_width = 1536
        config.encoder_layers = (4, 4)
        config.decoder_layers = (4, 4)
        config.quantizer.size = 4096
        config.quantizer.width = 32
        config.quantizer.codebook_update = "ema"
        config.quantizer.decay = 0.99
        config.quantizer.restart_threshold = 0.01
    else:
        config.patch = (2, 8, 8)
        config.width = 512
        config.heads = 8
        config.mlp_width = 2048
        config.encoder_layers = (4, 4)
        config.decoder_layers = (4, 4)
        # Codebook loss 1, commitment 0.25 (section 2.1).
        config.quantizer.size = 8192
        config.quantizer.width = 32
        config.quantizer.codebook_update = "gradient"
    return config


def convolutional(size: str, quantizer: str = "lfq") -> ConfigDict:
    """The causal convolutional tokenizer of MAGVIT-v2 (paper: 5 × 16 × 16 codes of 18 bits).

    Used by magvit2, nbp and cdt.
    """
    config = ConfigDict({"name": "convolutional", "padding": "zero", "quantizer": CODES[quantizer][size]})
    if size == "debug":
        config.width = 16
        config.multipliers = (1, 2, 4)
        config.spatial_strides = (2, 2)
        config.temporal_strides = (1, 2)
        config.blocks = 1
        config.middle_blocks = 0
        config.norm_groups = 4
    elif size == "small":
        config.width = 64
        config.multipliers = (1, 2, 2, 4)
        config.spatial_strides = (2, 2, 2)
        config.temporal_strides = (1, 2, 2)
        config.blocks = 2
        config.norm_groups = 16
    else:
        config.width = 128
        config.multipliers = (1, 2, 2, 4)
        config.spatial_strides = (2, 2, 2)
        config.temporal_strides = (1, 2, 2)
        config.blocks = 4
        config.norm_groups = 32
    return config


LFQ = {"name": "lfq", "entropy_weight": 0.1, "diversity": 1.0, "commitment_weight": 0.25}
EMA_VQ = {"name": "vq", "cosine": True, "codebook_update": "ema"}
CODES = {
    "lfq": {
        # A short run cannot afford all codes alike: with an entropy weight of 0.1 colours are lost.
        "debug": LFQ | {"bits": 10, "entropy_weight": 0.03},
        "small": LFQ | {"bits": 14},
        "paper": LFQ | {"bits": 18},
    },
    "fsq": {
        "debug": {"name": "fsq", "levels": (8, 8, 4, 4)},
        "small": {"name": "fsq", "levels": (8, 8, 8, 8, 4)},
        "paper": {"name": "fsq", "levels": (8, 8, 8, 8, 8, 8)},
    },
    "vq": {
        "debug": EMA_VQ | {"size": 1024, "width": 16, "decay": 0.95, "restart_threshold": 0.05},
        "small": EMA_VQ | {"size": 16_384, "width": 32},
        "paper": EMA_VQ | {"size": 2**18, "width": 32},
    },
}
"""Quantizer -> size -> its config: 10, 14 and 18 bits; the paper's is LFQ."""


def one_d(size: str, network: dict) -> ConfigDict:
    """Learned queries beside patches, then a row of cosine-VQ codes (paper: 256 patches, 256 codes of 12 bits).

    Used by one_d_piece and karl; ``network`` is the published transformer of encoder and decoder.
    """
    quantizer = {"name": "vq", "size": 4096, "width": 12}
    if size == "debug":
        # A short run needs a codebook that follows it and restarts what it does not use.
        quantizer |= {"size": 512, "decay": 0.95, "restart_threshold": 0.05}
        shape = {"clip": (4, 24, 24), "patch": (2, 4, 4), "queries": 64}
        network = {"width": 128, "layers": 2, "heads": 4, "mlp_width": 256}
    elif size == "small":
        quantizer |= {"restart_threshold": 0.01}
        shape = {"clip": (16, 64, 64), "patch": (4, 8, 8), "queries": 256}
        network = {"width": 384, "layers": 6, "heads": 6, "mlp_width": 1536}
    else:
        quantizer |= {"codebook_update": "gradient"}
        shape = {"clip": (1, 256, 256), "patch": (1, 16, 16), "queries": 256}
    # A short run has no time to tell queries apart that begin as near zero as the published ones.
    scale = 0.02 if size == "paper" else 1.0
    parts = {"encoder": dict(network), "decoder": dict(network), "quantizer": quantizer, "query_scale": scale}
    return ConfigDict({"name": "one_d", **shape, **parts})
