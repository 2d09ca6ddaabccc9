"""Answer three dialogs. Runs with Meta's `llama` package as well: it uses nothing but its API.

python -m launch --nproc 2 --tp 2 examples/chat_completion.py \
    --ckpt_dir examples/demo_model --tokenizer_path examples/demo_model/tokenizer.model
"""

import sys

import fire

from llama import Dialog, Llama

DIALOGS: list[Dialog] = [
    [{"role": "user", "content": "Who is the keeper of Ollo?"}],
    [
        {"role": "user", "content": "What is the capital of Brindle?"},
        {"role": "assistant", "content": "The capital of Brindle is Tansy."},
        {"role": "user", "content": "What colour is its lantern?"},
    ],
    [
        {"role": "system", "content": "Answer like a sailor."},
        {"role": "user", "content": "Which animals live on Hush?"},
    ],
]


def main(
    ckpt_dir: str,
    tokenizer_path: str,
    temperature: float = 0.6,
    top_p: float = 0.9,
    max_seq_len: int = 512,
    max_batch_size: int = 8,
    max_gen_len: int | None = None,
    **unknown: object,
) -> None:
    if unknown:  # fire would complain of them only after the run
        sys.exit(f"unknown flags: --{', --'.join(unknown)}")
    generator = Llama.build(
        ckpt_dir=ckpt_dir,
        tokenizer_path=tokenizer_path,
        max_seq_len=max_seq_len,
        max_batch_size=max_batch_size,
    )
    results = generator.chat_completion(
        DIALOGS, max_gen_len=max_gen_len, temperature=temperature, top_p=top_p
    )
    for dialog, result in zip(DIALOGS, results, strict=True):
        for message in [*dialog, result["generation"]]:
            print(f"{message['role'].capitalize()}: {message['content']}")
        print("\n==================================\n")


if __name__ == "__main__":
    fire.Fire(main)
