"""videogen: pretraining of generative video models in JAX, from two CPU cores to a pod."""

from typing import Any

# What is used is imported on use: data workers and --help need none of it.


def load(directory: str, mesh: Any = None, dtype: str | None = None) -> Any:
    """The ready tokenizer or generator of a run directory or export; see ``videogen.training.loading.load``."""
    from videogen.training import loading

    return loading.load(directory, mesh, dtype)


def encode(checkpoint: Any, video: str, out: str, **settings: Any) -> Any:
    """Writes a video file as codes; see ``videogen.inference.files.encode``."""
    from videogen.inference import files

    return files.encode(checkpoint, video, out, **settings)


def decode(checkpoint: Any, codes: str, out: str, **settings: Any) -> Any:
    """Writes the video of a file of codes; see ``videogen.inference.files.decode``."""
    from videogen.inference import files

    return files.decode(checkpoint, codes, out, **settings)


def sample(checkpoint: Any, out: str, prompts: Any = (), **settings: Any) -> Any:
    """Draws videos into files; see ``videogen.inference.files.sample``."""
    from videogen.inference import files

    return files.sample(checkpoint, out, prompts, **settings)
