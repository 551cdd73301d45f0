"""Text tokenizers, captions -> padded token ids: bytes, BPE learned from captions, a Hugging Face file."""

import html
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tokenizers
from etils import epath
from jaxtyping import Bool, Int32

from videogen.data.captions import clean_text
from videogen.errors import UserError, near_matches

SETTINGS = "settings.json"
VOCABULARY = "tokenizer.json"
PAD = 0
LONGEST_TEXT = 2**16
"""Characters of a caption that are read; a word of megabytes would keep a tokenizer busy for minutes."""

SPACES, GOING_ON = ("Ġ", "▁"), "##"
"""What pieces begin with that begin a word, or go on with it."""

Encoded = tuple[Int32[np.ndarray, "batch length"], Bool[np.ndarray, "batch length"]]


class ByteTokenizer:
    """UTF-8 bytes; id 0 is padding, byte b is id b + 1."""

    name = "bytes"
    vocabulary_size = 257
    largest_id = 256

    def __init__(self, length: int):
        self.length = _checked_length(length)

    def encode(self, captions: Sequence[str]) -> Encoded:
        """Ids, cut or padded to ``length``, and which of them are text."""
        return _pad([[b + 1 for b in _readable(caption).encode()[: self.length]] for caption in captions], self.length)

    @property
    def begins(self) -> Bool[np.ndarray, "ids"]:
        """Ids that begin a word: a space belongs to the word behind it."""
        return np.arange(self.vocabulary_size) == 1 + ord(" ")

    @property
    def markers(self) -> Bool[np.ndarray, "ids"]:
        """Ids that are no part of what is said."""
        return np.arange(self.vocabulary_size) == PAD

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids of one caption, without padding; bytes that are no UTF-8 become U+FFFD."""
        return bytes(int(i) - 1 for i in ids if i != PAD).decode(errors="replace")

    def is_cut(self, caption: str) -> bool:
        """Whether a caption has more tokens than ``length``."""
        return len(_readable(caption).encode()) > self.length

    def save(self, directory: epath.PathLike) -> None:
        """Writes what ``load`` needs into a directory."""
        _save_settings(directory, self)


class FileTokenizer:
    """A Hugging Face ``tokenizer.json``: a BPE learned here, or T5's, whose ``</s>`` survives the cutting.

    Args:
      path: the file or its directory.
      length: ids of a text.
      cleaned: HTML entities are read twice and white space is collapsed, as for the prompts of Wan.
    """

    name = "huggingface"

    def __init__(self, path: epath.PathLike, length: int, *, cleaned: bool = False):
        path = epath.Path(path)
        path = path / VOCABULARY if path.is_dir() else path
        if not path.exists():
            raise UserError(f"no text tokenizer at {path}; give a Hugging Face tokenizer.json or its directory")
        try:
            tokenizer = tokenizers.Tokenizer.from_str(path.read_text())
        except Exception as error:  # the library raises nothing more special
            raise UserError(f"{path} is no Hugging Face tokenizer ({error})") from error
        self._wrap(tokenizer, length, cleaned)

    def _wrap(self, tokenizer: tokenizers.Tokenizer, length: int, cleaned: bool = False) -> None:
        self.length, self.cleaned = _checked_length(length), cleaned
        self._tokenizer = tokenizer
        self._tokenizer.enable_truncation(length)
        self._tokenizer.no_padding()

    @property
    def vocabulary_size(self) -> int:
        """Number of ids."""
        return self._tokenizer.get_vocab_size()

    @property
    def largest_id(self) -> int:
        """The largest id a caption can have; ids of a file need not be without gaps."""
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=PAD)

    @property
    def begins(self) -> Bool[np.ndarray, "ids"]:
        """Ids that begin a word: ``Ġ`` (byte-level BPE) and ``▁`` (SentencePiece) begin one, ``##`` (WordPiece) goes on
        with it; in a vocabulary without all of these every piece is a word."""
        pieces = self._tokenizer.get_vocab(with_added_tokens=True)
        found = np.ones(self.largest_id + 1, bool)
        spaced = any(piece.startswith(SPACES) for piece in pieces)
        for piece, number in pieces.items():
            found[number] = piece.startswith(SPACES) if spaced else not piece.startswith(GOING_ON)
        return found

    @property
    def markers(self) -> Bool[np.ndarray, "ids"]:
        """Ids that are no part of what is said: padding, beginnings, ends."""
        found = np.zeros(self.largest_id + 1, bool)
        special = [number for number, piece in self._tokenizer.get_added_tokens_decoder().items() if piece.special]
        found[special] = True
        return found

    def encode(self, captions: Sequence[str]) -> Encoded:
        """Ids, cut or padded to ``length``, and which of them are text."""
        return _pad([e.ids for e in self._tokenizer.encode_batch(list(map(self._read, captions)))], self.length)

    def _read(self, caption: str) -> str:
        text = _readable(caption)
        return " ".join(html.unescape(html.unescape(text)).split()) if self.cleaned else text

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids of one caption, without special ones."""
        return self._tokenizer.decode([int(i) for i in ids]).strip()

    def is_cut(self, caption: str) -> bool:
        """Whether a caption has more tokens than ``length``."""
        return bool(self._tokenizer.encode(self._read(caption)).overflowing)

    def save(self, directory: epath.PathLike) -> None:
        """Writes settings and vocabulary into a directory."""
        _save_settings(directory, self)
        (epath.Path(directory) / VOCABULARY).write_text(self._tokenizer.to_str())

    def __reduce__(self) -> tuple:
        # Worker processes get the vocabulary as text.
        return _file_tokenizer, (self._tokenizer.to_str(), self.length, self.cleaned)


def _file_tokenizer(text: str, length: int, cleaned: bool = False) -> FileTokenizer:
    tokenizer = FileTokenizer.__new__(FileTokenizer)
    tokenizer._wrap(tokenizers.Tokenizer.from_str(text), length, cleaned)
    return tokenizer


def train_bpe(captions: Sequence[str], vocabulary_size: int, length: int) -> FileTokenizer:
    """A byte-level BPE learned from captions; the same captions give the same vocabulary.

    Id 0 is padding; every text can be encoded, whatever the captions held.

    Raises:
      UserError: the vocabulary has no room for padding and the 256 bytes.
    """
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    if vocabulary_size <= len(alphabet):
        raise UserError(f"a byte-level vocabulary has at least {1 + len(alphabet)} entries, got {vocabulary_size}")
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True)
    model.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=["<pad>"],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    model.train_from_iterator(map(_readable, captions), trainer)
    return _file_tokenizer(model.to_str(), length)


TEXT_TOKENIZERS = ("bytes", "bpe", "huggingface")


def build_text_tokenizer(config: Mapping[str, Any]) -> ByteTokenizer | FileTokenizer:
    """The tokenizer of ``{name: bytes | huggingface, length, path, cleaned}``; ``bpe`` with a path is a file, too.

    Raises:
      UserError: an unknown name, no length or path, or no tokenizer there.
    """
    name, length = config.get("name"), config.get("length")
    if name not in TEXT_TOKENIZERS:
        raise UserError(f"unknown text tokenizer {name!r}{near_matches(name, TEXT_TOKENIZERS)}")
    if name == "bytes":
        return ByteTokenizer(length)
    if not config.get("path"):
        raise UserError(f"text tokenizer {name!r} needs a path: a Hugging Face tokenizer.json or its directory")
    return FileTokenizer(config["path"], length, cleaned=bool(config.get("cleaned")))


def load_text_tokenizer(directory: epath.PathLike) -> ByteTokenizer | FileTokenizer:
    """Reads what ``save`` wrote."""
    directory = epath.Path(directory)
    try:
        settings = {"path": directory, **json.loads((directory / SETTINGS).read_text())}
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{directory} holds no text tokenizer ({error})") from error
    return build_text_tokenizer(settings)


def _save_settings(directory: epath.PathLike, tokenizer: ByteTokenizer | FileTokenizer) -> None:
    directory = epath.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    settings = {"name": tokenizer.name, "length": tokenizer.length}
    if isinstance(tokenizer, FileTokenizer) and tokenizer.cleaned:
        settings["cleaned"] = True
    (directory / SETTINGS).write_text(json.dumps(settings) + "\n")


def _readable(caption: str) -> str:
    return clean_text(caption[:LONGEST_TEXT])


def _checked_length(length: Any) -> int:
    if not isinstance(length, int) or length < 1:
        raise UserError(f"the length of tokenized captions must be a positive number, got {length!r}")
    return length


def _pad(ids: Sequence[Sequence[int]], length: int) -> Encoded:
    out = np.full((len(ids), length), PAD, np.int32)
    mask = np.zeros((len(ids), length), bool)
    for row, entry in enumerate(ids):
        entry = entry[:length]
        out[row, : len(entry)] = entry
        mask[row, : len(entry)] = True
    return out, mask
