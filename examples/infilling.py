"""Fill the gap of two programs with Code Llama 7B or 13B. It uses nothing but Meta's API.

python -m launch --nproc 2 --tp 2 examples/infilling.py \
    --ckpt_dir CodeLlama-7b --tokenizer_path CodeLlama-7b/tokenizer.model
"""

import sys

import fire

from llama import Llama

PROGRAMS = [
    '''def remove_non_ascii(s: str) -> str:
    """ <FILL>
    return result
''',
    """# Installation
<FILL>
Now `import llama` works.
""",
]


def main(
    ckpt_dir: str,
    tokenizer_path: str,
    temperature: float = 0.0,
    top_p: float = 0.9,
    max_seq_len: int = 192,
    max_gen_len: int = 128,
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
    results = generator.text_infilling(
        prefixes=[program.split("<FILL>")[0] for program in PROGRAMS],
        suffixes=[program.split("<FILL>")[1] for program in PROGRAMS],
        max_gen_len=max_gen_len,
        temperature=temperature,
        top_p=top_p,
    )
    for result in results:
        print(f"{result['full_text']}\n==================================\n")


if __name__ == "__main__":
    fire.Fire(main)
