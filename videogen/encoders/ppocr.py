"""PP-OCRv6's recogniser (PaddlePaddle, Apache-2.0): what a crop of one line of text says.

The file is ``PP-OCRv6_rec_small.onnx`` of the package ``rapidocr``, run by ``onnxruntime`` alone. There is no detector,
no threshold of confidence and no batch: the reading of a crop depends on that crop only.
"""

import hashlib
import importlib
import importlib.util
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from videogen.errors import UserError

HEIGHT, WIDTH = 48, 320
"""Every crop has this height, and behind it grey up to this width; a longer one is squeezed."""


class PpOcr:
    """``crop -> text``, exactly one for each; it is empty where nothing is read.

    Attributes:
      name: of the recogniser, as protocols have it.
      hash: SHA-256 of the file.
    """

    name = "ppocrv6"

    def __init__(self, path: str | Path):
        """Opens the network.

        Args:
          path: the onnx file.

        Raises:
          UserError: onnxruntime is not installed, or the file is no recogniser with its letters inside.
        """
        if importlib.util.find_spec("onnxruntime") is None:
            raise UserError("reading text needs onnxruntime; install it with: pip install 'videogen[evaluation]'")
        runtime = importlib.import_module("onnxruntime")
        options = runtime.SessionOptions()
        options.log_severity_level = 3
        try:
            content = Path(path).read_bytes()
            self._session = runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
            letters = self._session.get_modelmeta().custom_metadata_map["character"]
        except Exception as error:  # onnxruntime's errors have no common base
            line = " ".join(str(error).split())[:120]
            raise UserError(
                f"cannot read {path}: {line}; give PP-OCRv6_rec_small.onnx of the package rapidocr"
            ) from error
        # The first class is no letter, the last is a space, which the file's list leaves out.
        self.letters = ["", *letters.split("\n"), " "]
        self.hash = hashlib.sha256(content).hexdigest()
        self._input = self._session.get_inputs()[0].name

    def __call__(self, crop: UInt8[np.ndarray, "height width 3"]) -> str:
        """The text of a crop, red first."""
        (scores,) = self._session.run(None, {self._input: prepared(crop)[None]})
        if scores.shape[-1] != len(self.letters):
            raise UserError(f"the recogniser has {scores.shape[-1]} classes and {len(self.letters)} letters")
        return "".join(self.letters[place] for place in collapsed(scores[0].argmax(-1)))


def prepared(crop: UInt8[np.ndarray, "height width 3"]) -> Float[np.ndarray, "3 48 320"]:
    """A crop as the network takes it: blue first, in [-1, 1], bilinear, on the left of a field of zeros."""
    height, width = crop.shape[:2]
    wide = min(-(-HEIGHT * width // height), WIDTH)
    resized = Image.fromarray(np.ascontiguousarray(crop)).resize((wide, HEIGHT), Image.Resampling.BILINEAR)
    field = np.zeros((3, HEIGHT, WIDTH), np.float32)
    field[:, :, :wide] = np.asarray(resized, np.float32)[..., ::-1].transpose(2, 0, 1) / 127.5 - 1
    return field


def collapsed(classes: np.ndarray) -> list[int]:
    """The classes of a row of places: repeated ones once, and without class 0, which is no letter (CTC)."""
    first = np.concatenate([[True], classes[1:] != classes[:-1]]) if len(classes) else np.zeros(0, bool)
    return [int(place) for place in classes[first & (classes != 0)]]
