"""videogen: pretraining of generative video models in JAX, from two CPU cores to a pod."""

from typing import Any


def load(directory: str) -> Any:
    """The ready tokenizer or generator of a run directory or export; see ``videogen.training.loading.load``."""
    # Imported on use: data workers and --help need none of it.
    from videogen.training import loading

    return loading.load(directory)
