"""Networks that predict what is in a noisy clip, for generators and decoders. They know nothing of processes."""

from videogen.denoisers.registers import EARLY_LAYER, RegisterDenoiser

__all__ = ["EARLY_LAYER", "RegisterDenoiser"]
