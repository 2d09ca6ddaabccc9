"""tokenizer.json and vocab.json files with the settings of published ones, trained on the spot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from tests.helpers.tokenizers import CORPUS

LLAMA3_SPECIALS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
)
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEXTS = (*CORPUS, "日本語 🙂 Привет e\u0301", "the </s> and the <|endoftext|>") * 3


def llama2_like(*, metaspace: bool = False) -> Tokenizer:
    """BPE over whole texts with byte fallback, ids as Llama 2's: unk 0, bos 1, eos 2, 256 bytes.

    `metaspace` makes the pieces as newer conversions do, without a normalizer.
    """
    found = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if metaspace:
        found.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        found.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    found.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    names = ["<unk>", "<s>", "</s>"]
    pieces = names + [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=pieces, show_progress=False)
    found.train_from_iterator(TEXTS, trainer)
    found = _with_added(found, names)
    found.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return found


def llama3_like() -> Tokenizer:
    """Byte-level BPE, split as Llama 3 splits, its specials after the vocabulary."""
    found = Tokenizer(models.BPE(ignore_merges=True))
    found.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    found.decoder = decoders.ByteLevel()
    _train_bytes(found, [])
    found.add_special_tokens(list(LLAMA3_SPECIALS))
    found.add_tokens(["<tool>"])
    begin = LLAMA3_SPECIALS[0]
    found.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A", special_tokens=[(begin, found.token_to_id(begin))]
    )
    return found


def gpt2_like() -> Tokenizer:
    found = Tokenizer(models.BPE())
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = decoders.ByteLevel()
    _train_bytes(found, ["<|endoftext|>"])
    return found


def write_hf_tokenizer(folder: Path, tokenizer: Tokenizer, *, bos: str, eos: str) -> Path:
    """tokenizer.json and the tokenizer_config.json that names begin and end."""
    path = folder / "tokenizer.json"
    tokenizer.save(str(path))
    write_json(folder / "tokenizer_config.json", {"bos_token": bos, "eos_token": {"content": eos}})
    return path


def write_llama2_json(folder: Path, **options: bool) -> Path:
    return write_hf_tokenizer(folder, llama2_like(**options), bos="<s>", eos="</s>")


def write_llama3_json(folder: Path) -> Path:
    path = write_hf_tokenizer(folder, llama3_like(), bos="<|begin_of_text|>", eos="<|end_of_text|>")
    ids = json.loads(path.read_text())["added_tokens"]
    of = {token["content"]: token["id"] for token in ids}
    ends = [of[name] for name in ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>")]
    write_json(folder / "generation_config.json", {"eos_token_id": ends, "temperature": 0.6})
    return path


def write_gpt2(folder: Path, *, prefix: str = "") -> Path:
    """vocab.json and merges.txt; Megatron-LM's have the prefix "gpt2-"."""
    model = json.loads(gpt2_like().to_str())["model"]
    path = folder / f"{prefix}vocab.json"
    write_json(path, model["vocab"])
    merges = "".join(f"{left} {right}\n" for left, right in model["merges"])
    (folder / f"{prefix}merges.txt").write_text("#version: 0.2\n" + merges, encoding="utf-8")
    return path


def write_json(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def _train_bytes(tokenizer: Tokenizer, specials: list[str]) -> None:
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)


def _with_added(tokenizer: Tokenizer, names: list[str]) -> Tokenizer:
    """Only `names` remain added tokens; the byte pieces were added for training alone."""
    settings = json.loads(tokenizer.to_str())
    settings["added_tokens"] = []
    found = Tokenizer.from_str(json.dumps(settings))
    found.add_special_tokens([AddedToken(name, normalized=False) for name in names])
    return found


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
