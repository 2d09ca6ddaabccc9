"""tekken.json against tiktoken itself, and what is wrong with a broken one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llama.errors import CheckpointError, UsageError
from llama.tokenizer import StreamDecoder, Tokenizer
from llama.tokenizer.tekken import TekkenTokenizer
from llama.tokenizer.tiktoken import MAX_ENCODE_CHARS
from tests.helpers.tokenizers import TIKTOKEN_WORDS, write_tekken

N_SPECIAL = 24


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TekkenTokenizer:
    return TekkenTokenizer(write_tekken(tmp_path_factory.mktemp("nemo") / "tekken.json"))


def test_special_tokens_come_first(tokenizer: TekkenTokenizer) -> None:
    assert isinstance(Tokenizer(tokenizer.model_path), TekkenTokenizer)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (1, 2, -1)
    assert (tokenizer.special_tokens["[INST]"], tokenizer.special_tokens["[/INST]"]) == (3, 4)
    assert tokenizer.special_tokens["<SPECIAL_23>"] == 23
    assert len(tokenizer.special_tokens) == N_SPECIAL
    assert tokenizer.stop_tokens == {2}
    assert tokenizer.encode("!", True, True) == [1, N_SPECIAL, 2]
    # As many as the config says, though the file lists two more.
    n_listed = len(json.loads(Path(tokenizer.model_path).read_text())["vocab"])
    assert tokenizer.n_words == N_SPECIAL + n_listed - 2
    with pytest.raises(UsageError, match=r"token id \d+ is outside"):
        tokenizer.decode(tokenizer.n_words)


def test_every_word_is_its_rank_after_the_special_tokens(tokenizer: TekkenTokenizer) -> None:
    listed = json.loads(Path(tokenizer.model_path).read_text())["vocab"]
    for word in TIKTOKEN_WORDS[:5]:
        (token_id,) = tokenizer.encode(word, False, False)
        assert listed[token_id - N_SPECIAL]["rank"] == token_id - N_SPECIAL
        assert tokenizer.decode(token_id) == word
        assert tokenizer.token_bytes(token_id) == word.encode()


def test_special_tokens_have_no_text_and_end_a_broken_character(tokenizer: TekkenTokenizer) -> None:
    first, *rest = tokenizer.encode("🙂", False, False)
    ids = [1, first, 3, *rest, first, *rest, 2]
    assert tokenizer.decode(ids) == "\ufffd" + "\ufffd" * len(rest) + "🙂"
    decoder = StreamDecoder(tokenizer)
    assert decoder.feed(ids) + decoder.flush() == tokenizer.decode(ids)


def test_long_texts_are_encoded_whole(tokenizer: TekkenTokenizer) -> None:
    text = "x" * (MAX_ENCODE_CHARS + 3)
    assert tokenizer.decode(tokenizer.encode(text, False, False)) == text


@pytest.mark.parametrize(
    ("version", "chat_format"), [("v3", "mistral-v3"), ("v7", None), (None, None)]
)
def test_the_version_says_which_chat_format(
    tmp_path: Path, version: Any, chat_format: str | None
) -> None:
    path = write_tekken(tmp_path / "tekken.json", version=version)
    assert Tokenizer(path).chat_format == chat_format


def test_later_files_name_their_special_tokens(tmp_path: Path) -> None:
    path = write_tekken(tmp_path / "tekken.json")
    settings = json.loads(path.read_text())
    names = ["<unk>", "</s>", "<s>", "[THINK]"]
    settings["special_tokens"] = [
        {"rank": rank, "token_str": name, "is_control": True} for rank, name in enumerate(names)
    ]
    path.write_text(json.dumps(settings))
    tokenizer = Tokenizer(path)
    assert (tokenizer.bos_id, tokenizer.eos_id) == (2, 1)
    assert list(tokenizer.special_tokens)[3:5] == ["[THINK]", "<SPECIAL_4>"]


Break = Callable[[dict[str, Any]], object]
BROKEN: list[tuple[Break, str]] = [
    (lambda s: s["config"].pop("pattern"), "config needs a pattern"),
    (lambda s: s["config"].update(pattern="(a"), "has a pattern that is none"),
    (lambda s: s["config"].update(default_vocab_size="x"), "default_vocab_size must be a number"),
    (lambda s: s["config"].update(default_vocab_size=10**6), "no vocabulary of at least 999976"),
    (lambda s: s["config"].update(default_num_special_tokens=1), "no vocabulary of at least"),
    (
        lambda s: s["config"].update(default_num_special_tokens=2, default_vocab_size=280),
        "needs the special tokens <s>",
    ),
    (lambda s: s.update(vocab={}), "no vocabulary of at least"),
    (lambda s: s["vocab"].__setitem__(3, None), "vocabulary entry None needs a rank"),
    (lambda s: s["vocab"][3].update(rank=2.5), "vocabulary entry .* needs a rank"),
    (lambda s: s["vocab"][3].update(rank=2), "not the ranks 0 to"),
    (lambda s: s["vocab"].__setitem__(-3, s["vocab"][0]), "vocabulary entry .* of its own"),
    (
        lambda s: s["config"].update(
            default_num_special_tokens=2**30, default_vocab_size=2**30 + 291
        ),
        "1,073,741,824 special tokens; at most 65,536 are plausible",
    ),
    (lambda s: s["vocab"][3].update(token_bytes="?"), "token_bytes in base64"),
    (lambda s: s["vocab"][3].update(token_bytes="/////w=="), "no token for byte 0x24"),
    (lambda s: s.update(special_tokens=[{"rank": 24, "token_str": "a"}]), "a rank below 24"),
    (lambda s: s.update(special_tokens=[{"rank": 0, "token_str": "a"}]), "tokens <s> and </s>"),
]


@pytest.mark.parametrize(("spoil", "reason"), BROKEN, ids=[reason for _, reason in BROKEN])
def test_a_broken_file_is_refused(tmp_path: Path, spoil: Break, reason: str) -> None:
    path = write_tekken(tmp_path / "tekken.json")
    settings = json.loads(path.read_text())
    spoil(settings)
    path.write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match=reason) as caught:
        Tokenizer(path)
    assert str(path) in str(caught.value)


def test_a_pattern_that_gives_up_is_an_error(tmp_path: Path) -> None:
    path = write_tekken(tmp_path / "tekken.json")
    settings = json.loads(path.read_text())
    settings["config"]["pattern"] = r"(?:(?=a)a+)+$|."
    path.write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match=r"tekken\.json cannot encode a text of 41 char"):
        Tokenizer(path).encode("a" * 40 + "b", False, False)
