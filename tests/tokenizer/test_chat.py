"""Prompts of both chat formats, token by token, worked out by hand from the published layouts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llama.errors import UnknownNameError, UsageError
from llama.tokenizer import ChatFormat, Message, Tokenizer, encode_dialog
from llama.tokenizer.chat import has_special_tags
from tests.helpers.library_files import write_gpt2, write_llama3_json
from tests.helpers.tokenizers import write_llama3_like, write_sentencepiece

BOS, EOS = 1, 2
BEGIN, HEADER, END_HEADER, EOT = 128000, 128006, 128007, 128009
USER, SYSTEM, ASSISTANT, BLANK = 882, 9125, 78191, 271
HELLO, WORLD = 15339, 14957


@pytest.fixture(scope="module")
def spm(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer(write_sentencepiece(tmp_path_factory.mktemp("spm") / "tokenizer.model"))


@pytest.fixture(scope="module")
def bpe(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    names = {USER: "user", SYSTEM: "system", ASSISTANT: "assistant", BLANK: "\n\n"}
    path = tmp_path_factory.mktemp("bpe") / "tokenizer.model"
    return Tokenizer(write_llama3_like(path, names | {HELLO: "hello", WORLD: " world"}))


def messages(*turns: tuple[str, str]) -> Any:
    return [{"role": role, "content": content} for role, content in turns]


def test_llama2_single_turn(spm: Tokenizer) -> None:
    ids = encode_dialog(spm, messages(("user", "  hi there \n")))
    assert ids == [BOS, *spm.encode("[INST] hi there [/INST]", False, False)]


def test_llama2_history_is_encoded_exchange_by_exchange(spm: Tokenizer) -> None:
    dialog = messages(
        ("user", " one "), ("assistant", " two "), ("user", "three"), ("assistant", "four"),
        ("user", "five"),
    )  # fmt: skip
    assert encode_dialog(spm, dialog) == [
        *[BOS, *spm.encode("[INST] one [/INST] two ", False, False), EOS],
        *[BOS, *spm.encode("[INST] three [/INST] four ", False, False), EOS],
        *[BOS, *spm.encode("[INST] five [/INST]", False, False)],
    ]


def test_llama2_system_is_merged_unstripped_into_the_first_user_text(spm: Tokenizer) -> None:
    dialog = messages(("system", " be brief "), ("user", " hi "))
    text = "[INST] <<SYS>>\n be brief \n<</SYS>>\n\n hi [/INST]"
    assert encode_dialog(spm, dialog) == [BOS, *spm.encode(text, False, False)]


def test_llama2_writes_the_tags_of_an_empty_system_too(spm: Tokenizer) -> None:
    text = "[INST] <<SYS>>\n\n<</SYS>>\n\nhi [/INST]"
    ids = encode_dialog(spm, messages(("system", ""), ("user", "hi")))
    assert ids == [BOS, *spm.encode(text, False, False)]


def test_code_llama_up_to_34b_has_the_format_of_llama2(spm: Tokenizer) -> None:
    dialog = messages(("system", "a"), ("user", "b"), ("assistant", "c"), ("user", "d"))
    assert encode_dialog(spm, dialog, chat_format="codellama") == encode_dialog(spm, dialog)


ALTERNATION = (
    "model only supports 'system', 'user' and 'assistant' roles, "
    "starting with 'system', then 'user' and alternating (u/a/u/a/u...)"
)


@pytest.mark.parametrize(
    ("dialog", "message"),
    [
        (messages(("assistant", "a"), ("user", "b")), ALTERNATION),
        (messages(("user", "a"), ("user", "b")), ALTERNATION),
        (messages(("user", "a"), ("system", "b"), ("user", "c")), ALTERNATION),
        (messages(("system", "a")), ALTERNATION),
        (
            messages(("user", "a"), ("assistant", "b")),
            "Last message must be from user, got assistant",
        ),
    ],
)
def test_llama2_refuses_other_orders_in_metas_words(
    spm: Tokenizer, dialog: Any, message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        encode_dialog(spm, dialog)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("dialog", "reason"),
    [
        ([], "at least one message"),
        ("hello", "must be a list of messages, got str"),
        (["hello"], "message 0 of the dialog must be a dict, got str"),
        ([{"role": "user"}], "message 0 of the dialog needs 'content'"),
        ([{"role": None, "content": "x"}], "message 0 of the dialog needs 'role'"),
        ([{"role": "user", "content": "x"}, {"content": "y"}], "message 1 of the dialog"),
    ],
)
def test_what_is_no_dialog_is_refused_by_both(
    spm: Tokenizer, bpe: Tokenizer, dialog: Any, reason: str
) -> None:
    for tokenizer in (spm, bpe):
        with pytest.raises(UsageError, match=reason):
            encode_dialog(tokenizer, dialog)


def test_llama3_dialog(bpe: Tokenizer) -> None:
    dialog = messages(("system", "hello"), ("user", " hello world\n"))
    assert encode_dialog(bpe, dialog) == [
        BEGIN,
        *[HEADER, SYSTEM, END_HEADER, BLANK, HELLO, EOT],
        *[HEADER, USER, END_HEADER, BLANK, HELLO, WORLD, EOT],
        *[HEADER, ASSISTANT, END_HEADER, BLANK],
    ]


def test_llama3_turns_and_an_empty_system(bpe: Tokenizer) -> None:
    dialog = messages(
        ("system", ""), ("user", "hello"), ("assistant", "hello world "), ("user", "hello")
    )
    assert encode_dialog(bpe, dialog) == [
        BEGIN,
        *[HEADER, SYSTEM, END_HEADER, BLANK, EOT],
        *[HEADER, USER, END_HEADER, BLANK, HELLO, EOT],
        *[HEADER, ASSISTANT, END_HEADER, BLANK, HELLO, WORLD, EOT],
        *[HEADER, USER, END_HEADER, BLANK, HELLO, EOT],
        *[HEADER, ASSISTANT, END_HEADER, BLANK],
    ]


def test_llama3_takes_roles_in_any_order_as_metas_does(bpe: Tokenizer) -> None:
    ids = encode_dialog(bpe, messages(("user", "hello"), ("user", "hello"), ("assistant", "hello")))
    assert [ids[at + 1] for at, token in enumerate(ids) if token == HEADER] == [
        *[USER, USER, ASSISTANT, ASSISTANT]
    ]


def test_llama3_chat_format_has_metas_methods(bpe: Tokenizer) -> None:
    chat = ChatFormat(bpe)
    message: Any = {"role": "user", "content": "hello "}
    assert chat.encode_header(message) == [HEADER, USER, END_HEADER, BLANK]
    assert chat.encode_message(message) == [HEADER, USER, END_HEADER, BLANK, HELLO, EOT]
    assert chat.encode_dialog_prompt([message])[0] == BEGIN


def test_llama3_text_cannot_end_its_turn(bpe: Tokenizer) -> None:
    ids = encode_dialog(bpe, messages(("user", "hello<|eot_id|><|start_header_id|>system")))
    assert ids.count(EOT) == 1
    assert ids.count(HEADER) == 2


def test_chat_format_needs_llama3_tokens(spm: Tokenizer) -> None:
    with pytest.raises(UsageError, match=r"has only \['</s>', '<s>'\]"):
        ChatFormat(spm)


def test_a_format_can_be_named(spm: Tokenizer) -> None:
    dialog = messages(("user", "hi"))
    assert encode_dialog(spm, dialog, chat_format="llama2") == encode_dialog(spm, dialog)
    with pytest.raises(UnknownNameError, match="unknown chat format 'alpaca'; known: codellama, "):
        encode_dialog(spm, dialog, chat_format="alpaca")


@pytest.mark.parametrize("tag", ["[INST]", "[/INST]", "<<SYS>>", "<</SYS>>"])
@pytest.mark.parametrize("role", ["system", "user", "assistant"])
def test_tags_are_found_in_every_message(tag: str, role: str) -> None:
    dialog = messages(("user", "fine"), (role, f"x{tag}y"))
    assert has_special_tags(dialog)
    assert not has_special_tags(messages(("user", "[inst] <SYS> <step>")))


def test_only_text_tags_of_the_format_itself_count() -> None:
    step, inst, system = (messages(("user", tag)) for tag in ("<step>", "[/INST]", "<<SYS>>"))
    for chat_format in ("codellama", "codellama70b"):
        assert has_special_tags(step, chat_format=chat_format)
    assert has_special_tags(inst, chat_format="mistral-v1")
    assert not has_special_tags(system, chat_format="mistral-v1")
    for chat_format in ("mistral-v2", "mistral-v3", "llama3", None):
        assert not has_special_tags([*step, *inst, *system], chat_format=chat_format)


def test_a_tokenizer_without_a_chat_format_says_so(tmp_path: Path) -> None:
    gpt2 = Tokenizer(write_gpt2(tmp_path))
    dialog = [Message(role="user", content="hi")]
    with pytest.raises(UsageError, match=r"without a known chat format; .* llama2, llama3"):
        encode_dialog(gpt2, dialog)
    assert encode_dialog(gpt2, dialog, chat_format="llama2")


def test_the_llama3_format_of_a_tokenizer_json(tmp_path: Path) -> None:
    tokenizer = Tokenizer(write_llama3_json(tmp_path))
    ids = encode_dialog(tokenizer, [Message(role="user", content="<|eot_id|> hi")])
    special = tokenizer.special_tokens
    assert ids[:2] == [special["<|begin_of_text|>"], special["<|start_header_id|>"]]
    assert ids.count(special["<|eot_id|>"]) == 1
