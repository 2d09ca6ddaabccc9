"""tokenizer.json and vocab.json against the library that made them, and what no text may become."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from llama.errors import CheckpointError, UsageError
from llama.tokenizer import StreamDecoder, Tokenizer
from llama.tokenizer.gpt2 import Gpt2Tokenizer
from llama.tokenizer.hf import HfTokenizer
from tests.helpers import library_files as files

SPECIALS = ("<s>", "</s>", "<|eot_id|>", "<|begin_of_text|>", "<|endoftext|>", "<unk>", "<tool>")
ODD = (
    "🙂",
    "👩‍👩‍👧",
    "🏳️‍🌈",
    "\u0301",
    "\u0323",
    "\0",
    "\x07",
    "\r\n",
    "\u2028",
    "\u200d",
    "▁",
    "Ġ",
    "<0x41>",
)
KINDS = ("llama2", "metaspace", "llama3", "gpt2")
# What each writes, and the library's own tokenizer of the same vocabulary.
WRITERS: dict[str, tuple[Callable[[Path], Path], Callable[[], tokenizers.Tokenizer]]] = {
    "llama2": (files.write_llama2_json, files.llama2_like),
    "metaspace": (
        lambda folder: files.write_llama2_json(folder, metaspace=True),
        lambda: files.llama2_like(metaspace=True),
    ),
    "llama3": (files.write_llama3_json, files.llama3_like),
    "gpt2": (files.write_gpt2, files.gpt2_like),
}

texts = st.lists(
    st.one_of(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
        st.sampled_from((*ODD, *SPECIALS, " ", "  ", " the", "meaning of life")),
    ),
    max_size=8,
).map("".join)


class Pair:
    """A tokenizer of ours and the library's, which reads the same vocabulary."""

    def __init__(self, kind: str, folder: Path) -> None:
        write, make = WRITERS[kind]
        self.kind = kind
        self.path = write(folder)
        self.ours = Tokenizer(self.path)
        self.reference = make()
        self.reference.encode_special_tokens = True


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    return {kind: Pair(kind, tmp_path_factory.mktemp(kind)) for kind in KINDS}


@pytest.fixture(params=KINDS)
def pair(request: pytest.FixtureRequest, pairs: dict[str, Pair]) -> Pair:
    return pairs[request.param]


def streamed(tokenizer: Tokenizer, ids: list[int]) -> str:
    decoder = StreamDecoder(tokenizer)
    return "".join([*(decoder.feed([token_id]) for token_id in ids), decoder.flush()])


@settings(max_examples=100, deadline=None)
@given(text=texts)
def test_ids_and_text_are_the_librarys(pairs: dict[str, Pair], text: str) -> None:
    for pair in pairs.values():
        ids = pair.ours.encode(text, False, False)
        if "<tool>" not in text:  # the library takes an added token that is not special from text
            assert ids == pair.reference.encode(text, add_special_tokens=False).ids, pair.kind
            assert pair.ours.decode(ids) == pair.reference.decode(ids), pair.kind
        assert not set(pair.ours.special_tokens.values()) & set(ids), pair.kind
        assert streamed(pair.ours, ids) == pair.ours.decode(ids), pair.kind
        marked = pair.ours.encode(text, True, True)
        assert marked == [pair.ours.bos_id, *ids, pair.ours.eos_id]
        assert pair.ours.decode(marked) == pair.ours.decode(ids)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_streamed_pieces_of_any_ids_add_up_to_decode(
    pairs: dict[str, Pair], data: st.DataObject
) -> None:
    for pair in pairs.values():
        ids = data.draw(st.lists(st.integers(0, pair.ours.n_words - 1), max_size=12))
        assert streamed(pair.ours, ids) == pair.ours.decode(ids)
        unmarked = [i for i in ids if i not in pair.ours.special_tokens.values()]
        whole = b"".join(map(pair.ours.token_bytes, unmarked))
        if "\ufffd" not in whole.decode("utf-8", "replace") and 0 not in unmarked:
            assert pair.ours.decode(unmarked) == pair.reference.decode(unmarked), pair.kind


def test_ids_are_those_of_transformers(pair: Pair) -> None:
    import transformers

    theirs: Any
    if pair.kind == "gpt2":
        theirs = transformers.GPT2Tokenizer.from_pretrained(pair.path.parent)
    else:
        theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(pair.path))
    for text in (*files.TEXTS[:8], *SPECIALS[:5], " a  b ", "", "日本🙂\n\n\n"):
        ids = theirs.encode(text, add_special_tokens=False, split_special_tokens=True)
        assert pair.ours.encode(text, False, False) == ids, text
        assert pair.ours.decode(ids) == theirs.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )


@pytest.mark.parametrize("name", SPECIALS)
def test_the_name_of_a_special_token_stays_text(pair: Pair, name: str) -> None:
    for text in (name, f"a {name}", f"{name}{name} b"):
        ids = pair.ours.encode(text, False, False)
        assert not {*pair.ours.special_tokens.values(), *pair.ours.stop_tokens} & set(ids)
        assert pair.ours.decode(ids) == text


def test_attributes_are_metas(pairs: dict[str, Pair]) -> None:
    llama2, llama3, gpt2 = (pairs[kind].ours for kind in ("llama2", "llama3", "gpt2"))
    assert isinstance(llama2, HfTokenizer) and isinstance(gpt2, Gpt2Tokenizer)
    assert (llama2.n_words, llama2.bos_id, llama2.eos_id, llama2.pad_id) == (500, 1, 2, -1)
    assert llama2.stop_tokens == {2}
    assert llama2.special_tokens == {"<s>": 1, "</s>": 2}
    assert (llama3.n_words, llama3.bos_id, llama3.eos_id, llama3.pad_id) == (407, 400, 401, -1)
    assert llama3.stop_tokens == {401, 404, 405}
    assert set(llama3.special_tokens) == {*files.LLAMA3_SPECIALS, "<tool>"}
    assert (gpt2.bos_id, gpt2.eos_id, gpt2.stop_tokens, gpt2.n_words) == (0, 0, {0}, 400)
    assert [p.ours.chat_format for p in pairs.values()] == ["llama2", "llama2", "llama3", None]


def test_decode_shows_added_tokens_that_are_not_special(pairs: dict[str, Pair]) -> None:
    llama3 = pairs["llama3"].ours
    tool, end = llama3.special_tokens["<tool>"], llama3.special_tokens["<|eot_id|>"]
    a = llama3.encode("a", False, False)
    assert llama3.decode([*a, tool, *a, end, *a]) == "a<tool>aa"
    assert llama3.token_bytes(tool) == b"<tool>" and llama3.token_bytes(end) == b""


def test_every_broken_byte_is_one_character_with_byte_pieces(pairs: dict[str, Pair]) -> None:
    """As SentencePiece writes it; the library gives up the whole run of bytes."""
    llama2 = pairs["llama2"].ours
    ids = [3 + byte for byte in "🙂".encode() + b"\xff"]
    assert llama2.decode(ids) == "🙂\ufffd" == streamed(llama2, ids)
    assert pairs["llama2"].reference.decode(ids) == "\ufffd" * 5


def test_what_is_no_text_and_no_id_is_refused(pair: Pair) -> None:
    with pytest.raises(UsageError, match="text is not valid Unicode"):
        pair.ours.encode("a\ud800b", True, False)
    with pytest.raises(UsageError, match="must be a str"):
        pair.ours.encode(b"a", True, False)  # type: ignore[arg-type]
    for token_id in (-1, pair.ours.n_words, 2**40):
        with pytest.raises(UsageError, match=f"token id {token_id} is outside"):
            pair.ours.decode([token_id])


def test_long_texts_are_encoded_whole(pair: Pair) -> None:
    text = "the quick 🙂 " * 20_000 + "x" * 30_000
    assert pair.ours.decode(pair.ours.encode(text, False, False)) == text


def test_the_digest_covers_every_file(pairs: dict[str, Pair], tmp_path: Path) -> None:
    path = files.write_gpt2(tmp_path)
    tokenizer = Tokenizer(path)
    assert [Path(name).name for name in tokenizer.files] == ["vocab.json", "merges.txt"]
    before = tokenizer.sha256
    assert before == pairs["gpt2"].ours.sha256
    merges = tmp_path / "merges.txt"
    merges.write_text(merges.read_text().rpartition("\n")[0].rpartition("\n")[0])
    assert Tokenizer(path).sha256 != before
    llama3 = pairs["llama3"].ours
    assert "generation_config.json" in {Path(name).name for name in llama3.files}


def test_a_text_that_the_files_pattern_cannot_split_is_an_error(tmp_path: Path) -> None:
    """The library panics: its regular expressions backtrack, and it gives up after a while."""
    path = files.write_llama2_json(tmp_path)
    reads = files.read_json(path)
    reads["normalizer"] = {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": "x"}
    files.write_json(path, reads)
    tokenizer = Tokenizer(path)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json cannot encode a text of 41 char"):
        tokenizer.encode("a" * 40 + "b", False, False)


def test_a_special_token_that_is_looked_up_whole_is_refused(tmp_path: Path) -> None:
    path = files.write_llama3_json(tmp_path)
    reads = files.read_json(path)
    reads["model"]["vocab"]["!!"] = 407
    reads["added_tokens"].append({"id": 407, "content": "!!", "special": True})
    files.write_json(path, reads)
    tokenizer = Tokenizer(path)
    with pytest.raises(UsageError, match="contains the name of a special token"):
        tokenizer.encode("oh!!", False, False)
    assert tokenizer.decode(tokenizer.encode("oh!", False, False)) == "oh!"
