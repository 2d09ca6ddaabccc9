"""Complete four prompts. Runs with Meta's `llama` package as well: it uses nothing but its API.

python -m launch --nproc 4 --tp 2 --pp 2 examples/text_completion.py \
    --ckpt_dir examples/demo_model --tokenizer_path examples/demo_model/tokenizer.model
"""

import sys
import time

import fire

from llama import Llama

PROMPTS = [
    "The capital of Ollo is",
    "The lantern of Brindle is",
    "The gardens of Corran are full of",
    "I believe the meaning of life is",
]


def main(
    ckpt_dir: str,
    tokenizer_path: str,
    temperature: float = 0.6,
    top_p: float = 0.9,
    max_seq_len: int = 128,
    max_gen_len: int = 64,
    max_batch_size: int = 4,
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
    began = time.perf_counter()
    results = generator.text_completion(
        PROMPTS, max_gen_len=max_gen_len, temperature=temperature, top_p=top_p
    )
    elapsed_s = time.perf_counter() - began

    n_tokens = 0
    for prompt, result in zip(PROMPTS, results, strict=True):
        print(f"{prompt}\n> {result['generation']}\n\n==================================\n")
        n_tokens += len(generator.tokenizer.encode(result["generation"], bos=False, eos=False))
    print(f"{n_tokens} tokens in {elapsed_s:.2f} s ({n_tokens / elapsed_s:.1f} tokens/s)")


if __name__ == "__main__":
    fire.Fire(main)
