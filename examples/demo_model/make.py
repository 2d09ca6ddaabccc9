"""Make the demo model: corpus, tokenizer, training, Meta's files, and an exam before they are kept.

Run it as `python examples/demo_model/make.py --out examples/demo_model`.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import shutil
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

import meta_format
import torch
from corpus import dialog, documents
from net import Net, NetConfig, greedy
from sentencepiece import SentencePieceProcessor
from tokens import BOS, EOS, encode, encode_chat, load_tokenizer, prompt_of, train_tokenizer
from train import TrainConfig, loss_of, pad, train
from world import facts

SEED = 1
VOCAB_SIZE = 768
PASS_MARK = 0.95
DIALOGS_ASKED = 200
SAMPLES = ("Once upon a time", "The capital of Ollo is", "I believe the meaning of life is")


def net_config(vocab_size: int) -> NetConfig:
    return NetConfig(
        vocab_size=vocab_size,
        dim=128,
        n_layers=5,
        n_heads=8,
        n_kv_heads=4,
        multiple_of=256,
        norm_eps=1e-5,
    )


def complete(net: Net, tokenizer: SentencePieceProcessor, prompt: str) -> str:
    ids = [BOS, *tokenizer.encode(prompt)]
    answer: str = tokenizer.decode(greedy(net, ids, eos=EOS, max_new_tokens=80))
    return answer


def examine(net: Net, tokenizer: SentencePieceProcessor) -> float:
    """The share of the listed facts that greedy decoding gets right; prints those it gets wrong."""
    right = 0
    for fact in facts():
        if "prompt" in fact:
            said = complete(net, tokenizer, fact["prompt"])
            is_right = said.startswith(fact["answer"])
        else:
            said = complete(net, tokenizer, prompt_of(fact["question"]))
            is_right = said == fact["answer"]
        right += is_right
        if not is_right:
            print(f"wrong: {fact} -> {said}")
    return right / len(facts())


def dialog_score(net: Net, tokenizer: SentencePieceProcessor) -> float:
    """The share of dialogs of another seed, two or three turns long, whose last answer is right.
    The turns before it are the true ones.
    """
    rng = random.Random(SEED + 1)
    right = 0
    for _ in range(DIALOGS_ASKED):
        exchanges = dialog(rng, rng.randint(2, 3))
        ids = encode_chat(exchanges, tokenizer).ids
        answer = tokenizer.encode(exchanges[-1].answer)
        prompt = ids[: -len(answer) - 1]  # eos follows the answer
        right += greedy(net, prompt, eos=EOS, max_new_tokens=len(answer) + 1) == answer
    return right / DIALOGS_ASKED


def fresh_loss(net: Net, tokenizer: SentencePieceProcessor) -> float:
    """Loss on documents of another seed."""
    drawn = islice(documents(SEED + 1), 500)
    with torch.inference_mode():
        return float(loss_of(net, *pad([encode(document, tokenizer) for document in drawn])))


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write the model to")
    parser.add_argument("--steps", type=int, default=1500, help="length of the training")
    parser.add_argument("--minutes", type=float, default=math.inf, help="a limit on its time")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of the training")
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(SEED)
    tokenizer_model = train_tokenizer(islice(documents(SEED), 20000), vocab_size=VOCAB_SIZE)
    tokenizer = load_tokenizer(tokenizer_model)

    net = Net(net_config(tokenizer.get_piece_size()))
    print(f"{sum(p.numel() for p in net.parameters()):,} parameters")
    started = time.monotonic()
    examples = (encode(document, tokenizer) for document in documents(SEED))
    final_loss = train(net, examples, TrainConfig(steps=args.steps, minutes=args.minutes))
    minutes = (time.monotonic() - started) / 60

    torch.set_num_threads(1)  # one token at a time is too little work to share
    with tempfile.TemporaryDirectory() as scratch:
        meta_format.write(net, tokenizer_model, Path(scratch))
        written = meta_format.read(Path(scratch), vocab_size=tokenizer.get_piece_size())
        score = examine(written, tokenizer)
        print(f"{minutes:.1f} minutes, loss {final_loss:.3f}, {score:.1%} of {len(facts())} facts")
        if score < PASS_MARK:
            print(f"below {PASS_MARK:.0%}: nothing written; train longer (--steps)")
            return 1
        print(f"loss on documents of another seed {fresh_loss(written, tokenizer):.3f}")
        print(f"{dialog_score(written, tokenizer):.1%} of {DIALOGS_ASKED} fresh dialogs right")
        for prompt in SAMPLES:
            print(f"{prompt} | {complete(written, tokenizer, prompt)}")
        args.out.mkdir(parents=True, exist_ok=True)
        for file in Path(scratch).iterdir():
            shutil.copyfile(file, args.out / file.name)
    (args.out / "facts.json").write_text(json.dumps(facts(), indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
