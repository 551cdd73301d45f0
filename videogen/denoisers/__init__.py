"""Networks that predict what is in a noisy clip, for generators and decoders. They know nothing of solvers."""

from videogen.denoisers.branch import ORIGIN, Beside, TokenBranch
from videogen.denoisers.registers import EARLY_LAYER, RegisterDenoiser
from videogen.denoisers.video import ROTARY, Prepared, VideoTransformer, read_denoiser

__all__ = [
    "EARLY_LAYER",
    "ORIGIN",
    "ROTARY",
    "Beside",
    "Prepared",
    "RegisterDenoiser",
    "TokenBranch",
    "VideoTransformer",
    "read_denoiser",
]
