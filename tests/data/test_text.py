import pickle
import time

import numpy as np
import pytest
import tokenizers

from videogen.data.text import (
    ByteTokenizer,
    FileTokenizer,
    build_text_tokenizer,
    load_text_tokenizer,
    train_bpe,
)
from videogen.errors import UserError

CAPTIONS = [f"a {size} red circle moves {way}" for size in ("small", "large") for way in ("left", "up")]
TEXTS = [*CAPTIONS, "", "größer 漢字 🙂", "x" * 100]


@pytest.fixture
def t5_like(tmp_path):
    """A tokenizer.json that appends </s> as id 1 and pads with id 0, like T5's."""
    words = ["<pad>", "</s>", "<unk>", "a", "red", "circle"]
    model = tokenizers.models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.enable_padding(length=99)
    path = tmp_path / "tokenizer.json"
    tokenizer.save(str(path))
    return path


@pytest.mark.parametrize("make", [lambda: ByteTokenizer(40), lambda: train_bpe(CAPTIONS, 300, 40)])
def test_ids_and_masks(make):
    tokenizer = make()
    ids, mask = tokenizer.encode(TEXTS)
    assert ids.shape == mask.shape == (len(TEXTS), 40)
    assert ids.dtype == np.int32 and mask.dtype == bool
    assert ids.max() < tokenizer.vocabulary_size and (ids[mask] > 0).all() and (ids[~mask] == 0).all()
    # Padding only ever follows text.
    assert (np.diff(mask.astype(int), axis=1) <= 0).all()
    assert not mask[TEXTS.index("")].any() and mask[-1].all()
    assert len({row.tobytes() for row in ids}) == len(TEXTS)


def test_bytes_are_the_utf8_bytes():
    ids, mask = ByteTokenizer(8).encode(["aé"])
    assert ids[0].tolist() == [98, 196, 170, 0, 0, 0, 0, 0]


def test_bpe_is_deterministic_and_shorter_than_bytes():
    first, again = train_bpe(CAPTIONS, 300, 64), train_bpe(CAPTIONS, 300, 64)
    np.testing.assert_array_equal(first.encode(TEXTS)[0], again.encode(TEXTS)[0])
    assert first.vocabulary_size <= 300
    assert first.encode(CAPTIONS)[1].sum() < ByteTokenizer(64).encode(CAPTIONS)[1].sum() / 3


def test_bpe_is_the_same_in_every_process(run_python):
    captions = [f"a {size} {hue} shape {i % 7}" for i in range(60) for size in ("big", "wee") for hue in "rgb"]
    tokenizer = train_bpe(captions, 320, 64)
    code = f"""
from videogen.data.text import train_bpe
print(train_bpe({captions!r}, 320, 64).encode({captions[:8]!r})[0].tolist())
"""
    result = run_python(code)
    assert result.stdout.strip() == str(tokenizer.encode(captions[:8])[0].tolist()), result.stderr


def test_bpe_needs_room_for_all_bytes():
    with pytest.raises(UserError, match="at least 257"):
        train_bpe(CAPTIONS, 256, 64)
    tokenizer = train_bpe(CAPTIONS, 257, 64)
    assert tokenizer.vocabulary_size == 257 and tokenizer.encode(TEXTS)[0].max() < 257


def test_t5_files_end_with_their_end_token_even_when_cut(t5_like):
    tokenizer = FileTokenizer(t5_like, 4)
    ids, mask = tokenizer.encode(["a red circle a red circle", "red"])
    assert ids.tolist() == [[3, 4, 5, 1], [4, 1, 0, 0]]
    assert mask.sum(1).tolist() == [4, 2]


@pytest.mark.parametrize("kind", ["bytes", "bpe", "t5"])
def test_saving_and_pickling_keep_the_ids(kind, t5_like, tmp_path):
    makers = {
        "bytes": lambda: ByteTokenizer(12),
        "bpe": lambda: train_bpe(CAPTIONS, 300, 12),
        "t5": lambda: FileTokenizer(t5_like, 12),
    }
    tokenizer = makers[kind]()
    tokenizer.save(tmp_path / "saved")
    expected = tokenizer.encode(TEXTS)
    for other in (load_text_tokenizer(tmp_path / "saved"), pickle.loads(pickle.dumps(tokenizer))):
        for left, right in zip(expected, other.encode(TEXTS), strict=True):
            np.testing.assert_array_equal(left, right)
        assert (other.vocabulary_size, other.length) == (tokenizer.vocabulary_size, 12)


def test_a_learned_bpe_can_be_reused_as_a_file(tmp_path):
    learned = train_bpe(CAPTIONS, 300, 12)
    learned.save(tmp_path / "saved")
    for path in (tmp_path / "saved", tmp_path / "saved" / "tokenizer.json"):
        again = build_text_tokenizer({"name": "bpe", "path": path, "vocabulary_size": 300, "length": 12})
        np.testing.assert_array_equal(again.encode(TEXTS)[0], learned.encode(TEXTS)[0])


@pytest.mark.parametrize("length", [0, -1, None, "8"])
def test_lengths_must_be_positive(length, t5_like):
    for make in (ByteTokenizer, lambda n: train_bpe(CAPTIONS, 300, n), lambda n: FileTokenizer(t5_like, n)):
        with pytest.raises(UserError, match="positive number"):
            make(length)


@pytest.mark.parametrize("content", ["", "{}", "[]", "not json"])
def test_foreign_files_are_one_clear_error(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match="tokenizer.json is no Hugging Face tokenizer"):
        FileTokenizer(tmp_path, 8)
    (tmp_path / "settings.json").write_text(content)
    with pytest.raises(UserError, match="holds no text tokenizer|unknown text tokenizer None"):
        load_text_tokenizer(tmp_path)


def test_mistakes_are_named(tmp_path):
    for name in ("bpe", "huggingface"):
        for path in ({}, {"path": ""}):
            with pytest.raises(UserError, match="needs a path"):
                build_text_tokenizer({"name": name, "length": 8, **path})
    with pytest.raises(UserError, match="did you mean 'bytes'"):
        build_text_tokenizer({"name": "byte", "length": 8})
    with pytest.raises(UserError, match="no text tokenizer"):
        build_text_tokenizer({"name": "huggingface", "path": str(tmp_path), "length": 8})
    with pytest.raises(UserError, match="no text tokenizer"):
        load_text_tokenizer(tmp_path)


def test_largest_id_counts_gaps_and_added_tokens(tmp_path):
    """A vocabulary of four entries with the id 900 indexed beyond a table of four rows."""
    model = tokenizers.models.WordLevel({"<pad>": 0, "a": 5, "red": 900, "<unk>": 2}, unk_token="<unk>")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert FileTokenizer(tmp_path, 8).largest_id == 900 and FileTokenizer(tmp_path, 8).vocabulary_size == 4
    tokenizer.add_special_tokens(["<end>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert FileTokenizer(tmp_path, 8).largest_id == max(tokenizer.get_vocab().values())
    assert ByteTokenizer(8).largest_id == 256 and ByteTokenizer(8).encode(["\U0010ffff"])[0].max() <= 256
    assert train_bpe(CAPTIONS, 300, 8).largest_id == train_bpe(CAPTIONS, 300, 8).vocabulary_size - 1


def test_cut_captions_are_known(t5_like):
    assert [ByteTokenizer(4).is_cut(text) for text in ("", "four", "fives", "ééé")] == [False, False, True, True]
    t5 = FileTokenizer(t5_like, 4)
    assert [t5.is_cut(text) for text in ("", "a red circle", "a red circle a")] == [False, False, True]
    bpe = train_bpe(CAPTIONS, 300, 6)
    for text in TEXTS:
        whole = train_bpe(CAPTIONS, 300, 500).encode([text])[1].sum()
        assert bpe.is_cut(text) == (whole > 6)


@pytest.mark.parametrize("make", [lambda: ByteTokenizer(16), lambda: train_bpe([*CAPTIONS, "y" * 5_000_000], 300, 16)])
def test_megabytes_of_one_word_and_halves_of_surrogate_pairs(make):
    """The first took minutes, the second ended the run."""
    began = time.monotonic()
    tokenizer = make()
    ids, mask = tokenizer.encode(["x" * 5_000_000, "a \ud83d b", "\udcff"])
    assert ids.shape == (3, 16) and mask[0].all()
    assert tokenizer.is_cut("x" * 5_000_000)
    np.testing.assert_array_equal(tokenizer.encode(["a \ud83d b"])[0], tokenizer.encode(["a \ufffd b"])[0])
    assert time.monotonic() - began < 10


def test_ids_are_read_back():
    captions = ["a large red circle moves left", "zwei Kreise, ünï"]
    for tokenizer in (ByteTokenizer(64), train_bpe(captions, 300, 64)):
        ids, mask = tokenizer.encode(captions)
        assert [tokenizer.decode(row[there]) for row, there in zip(ids, mask, strict=True)] == captions


def test_what_begins_a_word_and_what_is_no_word():
    bytes_ = ByteTokenizer(9)
    ids, _ = bytes_.encode(["ab cd"])
    assert bytes_.begins[ids[0]].tolist() == [False, False, True, False, False, *[False] * 4]
    assert np.flatnonzero(bytes_.markers).tolist() == [0] and len(bytes_.begins) == 257
    learned = train_bpe(CAPTIONS, 300, 40)
    ids, mask = learned.encode(["a large zebra"])
    # Every word begins with a space, as the text does.
    assert learned.begins[ids[0][mask[0]]].sum() == 3 and learned.begins[ids[0][0]]
    assert np.flatnonzero(learned.markers).tolist() == [0]


def test_pieces_of_words_of_a_published_vocabulary(tmp_path):
    words = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", "run", "##ning", "red"]
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[PAD]")
    )
    tokenizer.add_special_tokens(words[:4])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    read = FileTokenizer(tmp_path, 8)
    assert read.begins.tolist() == [True, True, True, True, True, False, True]
    assert np.flatnonzero(read.markers).tolist() == [0, 1, 2, 3]


def test_cleaned_texts_have_no_entities_and_single_spaces(t5_like, tmp_path):
    plain, cleaned = FileTokenizer(t5_like, 12), FileTokenizer(t5_like, 12, cleaned=True)
    written, meant = "a  cat &amp;amp; dog\n", "a cat & dog"
    np.testing.assert_array_equal(cleaned.encode([written])[0], plain.encode([meant])[0])
    assert (plain.encode([written])[0] != plain.encode([meant])[0]).any()
    # Also after it was saved, and in another process.
    cleaned.save(tmp_path)
    for again in (load_text_tokenizer(tmp_path), pickle.loads(pickle.dumps(cleaned))):
        np.testing.assert_array_equal(again.encode([written])[0], plain.encode([meant])[0])
    plain.save(tmp_path)
    assert not load_text_tokenizer(tmp_path).cleaned
