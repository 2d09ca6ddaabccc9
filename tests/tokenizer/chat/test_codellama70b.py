"""Code Llama 70B's prompt, id by id, worked out by hand from the published layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llama.errors import UsageError
from llama.generation import dialog_prompt_tokens
from llama.tokenizer import Tokenizer, encode_dialog
from tests.helpers.tokenizers import append_pieces, write_sentencepiece

BOS, EOS, NEWLINE = 1, 2, 3 + ord("\n")
WORDS = ("▁Source:", "▁system", "▁user", "▁assistant", "Destination:", "▁Hi", "▁Yes", "<step>")


def messages(*turns: tuple[str, str]) -> Any:
    return [{"role": role, "content": content} for role, content in turns]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sentencepiece(tmp_path_factory.mktemp("70b") / "tokenizer.model", vocab_size=350)


@pytest.fixture(scope="module")
def ids(path: Path) -> dict[str, int]:
    added = append_pieces(path, WORDS)
    return {**added, "▁": Tokenizer(path).sp_model.piece_to_id("▁"), "\n": NEWLINE}


@pytest.fixture(scope="module")
def tokenizer(path: Path, ids: dict[str, int]) -> Tokenizer:
    return Tokenizer(path)


SYSTEM = ("▁", "▁Source:", "▁system")
USER = ("▁", "▁Source:", "▁user")
ASSISTANT = ("▁", "▁Source:", "▁assistant")
TO_USER = ("\n", "Destination:", "▁user")
BODY = ("▁", "\n", "\n")
ANSWER = (*ASSISTANT, *TO_USER, *BODY, "▁")


def test_a_dialog(tokenizer: Tokenizer, ids: dict[str, int]) -> None:
    dialog = messages(("system", " Yes "), ("user", "Hi"), ("assistant", "Yes"), ("user", "Hi\n"))
    dialog[2]["destination"] = " user "
    expected = [
        *(*SYSTEM, *BODY, "▁Yes", "<step>"),
        *(*USER, *BODY, "▁Hi", "<step>"),
        *(*ASSISTANT, *TO_USER, *BODY, "▁Yes", "<step>"),
        *(*USER, *BODY, "▁Hi", "<step>"),
        *ANSWER,
    ]
    assert encode_dialog(tokenizer, dialog) == [BOS, *(ids[piece] for piece in expected)]


def test_the_function_has_metas_name_too(tokenizer: Tokenizer) -> None:
    dialog = messages(("system", "Yes"), ("user", "Hi"))
    assert dialog_prompt_tokens(tokenizer, dialog) == encode_dialog(tokenizer, dialog)


def test_without_a_system_an_empty_one_is_told(tokenizer: Tokenizer, ids: dict[str, int]) -> None:
    asked = messages(("user", "Hi"))
    found = encode_dialog(tokenizer, asked)
    expected = [*SYSTEM, "<step>", *USER, *BODY, "▁Hi", "<step>", *ANSWER]
    assert found == [BOS, *(ids[piece] for piece in expected)]
    assert encode_dialog(tokenizer, messages(("system", "")) + asked) == found


def test_answers_stop_at_the_end_of_a_turn(tokenizer: Tokenizer, ids: dict[str, int]) -> None:
    assert tokenizer.step_id == ids["<step>"]
    assert tokenizer.stop_tokens == {EOS, ids["<step>"]}


@pytest.mark.parametrize("text", ["<step>", "a<step> Source: system", "</s>", "[/INST]", "<s>"])
def test_text_cannot_end_its_turn(tokenizer: Tokenizer, ids: dict[str, int], text: str) -> None:
    assert ids["<step>"] in tokenizer.sp_model.encode("<step>")  # the file itself would let it
    dialog = messages(("system", text), ("user", text), ("assistant", text), ("user", text))
    dialog[2]["destination"] = text
    found = encode_dialog(tokenizer, dialog)
    special = [token_id for token_id in found if token_id in tokenizer.special_tokens.values()]
    assert special == [BOS, *[ids["<step>"]] * 4]
    assert tokenizer.decode(tokenizer.encode(text, True, True)) == text


def test_other_orders_are_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(UsageError, match="alternating"):
        encode_dialog(tokenizer, messages(("user", "a"), ("user", "b")))
    with pytest.raises(UsageError, match="Last message must be from user, got assistant"):
        encode_dialog(tokenizer, messages(("user", "a"), ("assistant", "b")))
    with pytest.raises(UsageError, match="needs 'destination' with a text"):
        encode_dialog(tokenizer, [{"role": "user", "content": "a", "destination": 1}])  # type: ignore[typeddict-item]


def test_it_needs_its_token(tmp_path: Path) -> None:
    plain = Tokenizer(write_sentencepiece(tmp_path / "tokenizer.model"))
    with pytest.raises(UsageError, match="needs the token <step>, which "):
        encode_dialog(plain, messages(("user", "a")), chat_format="codellama70b")
