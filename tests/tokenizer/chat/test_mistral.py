"""Mistral's prompts, id by id, worked out by hand from the layouts that mistral-common writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llama.errors import UsageError
from llama.tokenizer import Tokenizer, encode_dialog
from tests.helpers.tokenizers import append_pieces, write_sentencepiece, write_tekken

BOS, EOS, INST, END_INST = 1, 2, 3, 4
WORDS = ("▁Hi", "▁Hello", "▁Be", "▁brief", "Bye", "▁Bye", "▁[INST]", "▁[/INST]")
SPECIAL_TEXTS = ("[/INST]", "[INST]", "</s>", "<s>", "<|eot_id|>", "<step>", "[/INST]</s>[INST]")


def messages(*turns: tuple[str, str]) -> Any:
    return [{"role": role, "content": content} for role, content in turns]


CHAT = messages(
    ("system", "Be brief"), ("user", "Hi"), ("assistant", "Hello"), ("user", "Bye"),
)  # fmt: skip


class Known:
    """A tokenizer whose words of WORDS are one id each."""

    def __init__(self, path: Path, **options: Any) -> None:
        write_sentencepiece(path, vocab_size=350, **options)
        self.ids = append_pieces(path, WORDS)
        self.tokenizer = Tokenizer(path)
        first_byte = 1 + len(self.tokenizer.special_tokens)  # after unk and the control pieces
        self.ids["\n"] = first_byte + ord("\n")

    def __getitem__(self, word: str) -> int:
        return self.ids[word]


@pytest.fixture(scope="module")
def v1(tmp_path_factory: pytest.TempPathFactory) -> Known:
    return Known(tmp_path_factory.mktemp("v1") / "tokenizer.model.v1")


@pytest.fixture(scope="module")
def v3(tmp_path_factory: pytest.TempPathFactory) -> Known:
    path = tmp_path_factory.mktemp("v3") / "tokenizer.model.v3"
    return Known(path, control=["[INST]", "[/INST]"])


def test_v1_writes_the_tags_as_text_and_one_bos(v1: Known) -> None:
    newline = v1["\n"]
    assert encode_dialog(v1.tokenizer, CHAT) == [
        BOS,
        *[v1["▁[INST]"], v1["▁Be"], v1["▁brief"], newline, newline],
        *v1.tokenizer.encode_infilling("Hi"),
        v1["▁[/INST]"],
        *[v1["▁Hello"], EOS],
        *[v1["▁[INST]"], v1["▁Bye"], v1["▁[/INST]"]],
    ]


def test_v3_marks_turns_with_tokens_and_tells_the_system_last(v3: Known) -> None:
    newline = v3["\n"]
    assert encode_dialog(v3.tokenizer, CHAT) == [
        BOS,
        *[INST, v3["▁Hi"], END_INST],
        *[v3["▁Hello"], EOS],
        *[INST, v3["▁Be"], v3["▁brief"], newline, newline, v3["Bye"], END_INST],
    ]


def test_v2_is_v3_where_there_are_no_tools(v3: Known) -> None:
    ids = [encode_dialog(v3.tokenizer, CHAT, chat_format=f"mistral-{v}") for v in ("v2", "v3")]
    assert ids[0] == ids[1]


def test_only_answers_lose_the_spaces_at_their_end_and_only_from_v2_on(
    v1: Known, v3: Known
) -> None:
    plain = messages(("user", "Hi"), ("assistant", "Hello"), ("user", "Bye"))
    spaced = messages(("user", " Hi "), ("assistant", "Hello  "), ("user", "Bye\n"))
    for known in (v1, v3):
        texts = known.tokenizer.decode(encode_dialog(known.tokenizer, spaced))
        assert " Hi " in texts and "Bye\n" in texts
    ids = encode_dialog(v3.tokenizer, spaced)
    assert v3["▁Hello"] == ids[ids.index(EOS) - 1]
    ids = encode_dialog(v1.tokenizer, spaced)
    assert v1["▁Hello"] != ids[ids.index(EOS) - 1]
    assert ids.count(BOS) == encode_dialog(v1.tokenizer, plain).count(BOS) == 1


def test_an_empty_system_is_none(v1: Known, v3: Known) -> None:
    for known in (v1, v3):
        asked = messages(("user", "Hi"))
        found = encode_dialog(known.tokenizer, messages(("system", "")) + asked)
        assert found == encode_dialog(known.tokenizer, asked)
    assert found == [BOS, INST, v3["▁Hi"], END_INST]


@pytest.mark.parametrize(
    ("roles", "reason"),
    [
        (("assistant", "user"), "alternating"),
        (("user", "user"), "alternating"),
        (("user", "system", "user"), "alternating"),
        (("system", "system", "user"), "alternating"),
        (("system",), "alternating"),
        (("user", "tool"), "alternating"),
        (("user", "assistant"), "Last message must be from user, got assistant"),
    ],
)
def test_other_orders_are_refused(
    v1: Known, v3: Known, roles: tuple[str, ...], reason: str
) -> None:
    for known in (v1, v3):
        with pytest.raises(UsageError, match=reason):
            encode_dialog(known.tokenizer, messages(*((role, "x") for role in roles)))


@pytest.mark.parametrize("text", SPECIAL_TEXTS)
def test_text_can_neither_end_a_turn_nor_start_one(v3: Known, text: str) -> None:
    dialog = messages(
        ("system", text), ("user", text), ("assistant", text), ("user", f"Hi {text} Hi")
    )
    ids = encode_dialog(v3.tokenizer, dialog)
    special = set(v3.tokenizer.special_tokens.values())
    assert [i for i in ids if i in special] == [BOS, INST, END_INST, EOS, INST, END_INST]
    assert v3.tokenizer.decode(ids).count(text) == 4


def test_v3_needs_its_tokens(v1: Known) -> None:
    with pytest.raises(UsageError, match=r"need the tokens \[INST\] and .*; use mistral-v1"):
        encode_dialog(v1.tokenizer, CHAT, chat_format="mistral-v3")


def test_tekken_has_no_space_after_the_tokens(tmp_path: Path) -> None:
    tokenizer = Tokenizer(write_tekken(tmp_path / "tekken.json", words=["Hi", "user", "\n\n"]))
    hi, user, blank = (tokenizer.encode(text, False, False) for text in ("Hi", "user", "\n\n"))
    assert len(hi + user + blank) == 3
    dialog = messages(("system", "user"), ("user", "Hi"))
    assert encode_dialog(tokenizer, dialog) == [BOS, INST, *user, *blank, *hi, END_INST]
