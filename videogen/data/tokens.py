"""The token cache: clips as codes of one tokenizer, so that generators train without decoding video.

The cache is keyed by the hash of the tokenizer's weights; codes mean nothing to another tokenizer.
"""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Int

from videogen.data.clip import Clip
from videogen.data.records import Records, RecordWriter
from videogen.data.source import Source, held_out
from videogen.errors import UserError

KIND = "tokens"


class TokenWriter(RecordWriter):
    """Writes a token cache; use it in a ``with`` block, whose clean end completes the cache.

    Args:
      directory: made here; must not exist.
      meta: ``tokenizer_hash``, ``vocabulary`` (codes per level), ``frames``, ``height``, ``width``, ``fps``
        of the clips, and ``classes`` where they have labels; ``count`` and ``grid``, the shape of a clip's
        codes, are added.
    """

    def __init__(self, directory: str | os.PathLike, meta: Mapping[str, Any]):
        dtype = "<u2" if max(meta["vocabulary"]) <= 2**16 else "<i4"
        super().__init__(directory, {"kind": KIND, "dtype": dtype, **meta})

    def write(self, indices: Int[np.ndarray, "*grid"], caption: str = "", label: int | None = None) -> None:
        """Appends the codes of one clip.

        Raises:
          UserError: a grid unlike that of the clips before, or codes outside the vocabulary.
        """
        indices = np.asarray(indices)
        grid = self.meta.setdefault("grid", list(indices.shape))
        if list(indices.shape) != grid:
            raise UserError(f"a token cache has one grid: got {list(indices.shape)} after {grid}")
        if indices.min() < 0 or (indices >= np.array(self.meta["vocabulary"])).any():
            raise UserError(f"codes outside the vocabulary {self.meta['vocabulary']}")
        header = {"caption": caption} | ({} if label is None else {"label": int(label)})
        super().write(header, indices.astype(self.meta["dtype"]).tobytes())


class TokenSource(Source):
    """The clips of a token cache as codes: ``indices int32`` of the cache's grid instead of ``video``.

    Args:
      clip: must be the clip the cache was made of, its ``fps`` aside.
      seed: unused, nothing is random about reading codes.
      split: both splits hold all clips unless ``holdout`` keeps some for 'eval'.
      path: the directory of the cache.
      tokenizer_hash: the tokenizer that will decode the codes; ``None`` does not compare.
      holdout: share of the captions (of the clips, where they have none) that only 'eval' has, by their hash.

    Attributes:
      meta: what the cache says about itself.

    Raises:
      UserError: no complete cache, or one of another tokenizer or clip size.
    """

    def __init__(
        self,
        *,
        clip: Clip,
        seed: int,
        split: str,
        path: str,
        tokenizer_hash: str | None = None,
        holdout: float = 0.0,
    ):
        super().__init__(clip=clip, seed=seed, split=split)
        if not 0 <= holdout < 1:
            raise UserError(f"holdout is a share of the clips in [0, 1), got {holdout}")
        self._records = Records(path, KIND)
        self.meta = self._records.meta
        self.classes = tuple(self.meta.get("classes", ()))
        made_by = self.meta["tokenizer_hash"]
        if tokenizer_hash is not None and made_by != tokenizer_hash:
            raise UserError(
                f"the token cache {path} was made by tokenizer {made_by[:12]}, the generator has "
                f"{tokenizer_hash[:12]}; write the cache again with this tokenizer"
            )
        sizes = [(getattr(clip, side), self.meta[side]) for side in ("frames", "height", "width")]
        if any(ours != theirs for ours, theirs in sizes):
            ours, theirs = ("x".join(map(str, side)) for side in zip(*sizes, strict=True))
            raise UserError(f"the token cache {path} holds clips of {theirs}, data.clip asks for {ours}")
        self._indices = list(range(len(self._records)))
        if holdout:
            keys = ((i, self._records[i][0]["caption"] or str(i)) for i in self._indices)
            self._indices = [i for i, key in keys if held_out(key, holdout) == (split == "eval")]

    def __len__(self) -> int:
        return len(self._indices)

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Reads the codes of one clip."""
        header, payload = self._records[self._indices[index]]
        codes = np.frombuffer(payload, self.meta["dtype"])
        sample = {
            "indices": codes.astype(np.int32).reshape(self.meta["grid"]),
            "caption": header["caption"],
            "fps": self.meta["fps"],
        }
        return sample | {"label": header["label"]} if self.classes else sample

    def caption(self, index: int) -> str:
        return self._records[self._indices[index]][0]["caption"]
