"""`llama generate` and `llama chat` as a user runs them: in one process, and on their own ranks."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from pathlib import Path

import pytest

from llama.cli import main
from llama.cli.chat import Conversation, StopKey, chat
from llama.errors import UsageError
from llama.tokenizer import Tokenizer
from tests.helpers.programs import ROOT, run, started, wait_until

pytestmark = pytest.mark.slow

DEMO = str(ROOT / "examples" / "demo_model")
FACTS = json.loads((ROOT / "examples" / "demo_model" / "facts.json").read_text())
PROMPTS = [(fact["prompt"], fact["answer"]) for fact in FACTS if "prompt" in fact]
QUESTIONS = {fact["question"]: fact["answer"] for fact in FACTS if "question" in fact}
LAYOUTS = [[], ["--tp", "2", "--pp", "2"]]
GREEDY = ["--temperature", "0", "--max_seq_len", "256"]
FOREIGN_HOOK = "import sys\nsys.excepthook = lambda *error: sys.stderr.write('FOREIGN\\n')\n"
KEEPER, CAPITAL = "Who is the keeper of Ollo?", "What is the capital of Brindle?"


@pytest.mark.parametrize("layout", LAYOUTS, ids=" ".join)
def test_generate_completes_every_prompt(layout: list[str]) -> None:
    (first, first_answer), (second, second_answer) = PROMPTS[0], PROMPTS[1]
    done = run(["-m", "llama", "generate", DEMO, first, second, *GREEDY, *layout])
    assert done.returncode == 0, done.stderr
    one, other = done.stdout.split("\n\n")
    assert one.startswith(f"{first} {first_answer}")
    assert other.startswith(f"{second} {second_answer}")
    assert "tokens/s" in done.stderr


@pytest.mark.nightly
def test_generate_counts_what_it_made() -> None:
    words = ["generate", DEMO, PROMPTS[0][0], "--max_tokens", "3", "--stats", *GREEDY]
    done = run(["-m", "llama", *words])
    assert done.returncode == 0, done.stderr
    speed, start, loaded, stats = done.stderr.splitlines()[-4:]
    assert speed.startswith("3 tokens in ")
    assert re.fullmatch(
        r"rank 0: (import \S+ s, )?meet \S+ s, load \S+ s, first token \S+ s", start
    )
    assert loaded.startswith("rank 0: 48 tensors (48 bfloat16), holds ")
    assert stats.startswith("rank 0 (stage 0, tp 0): ")


@pytest.mark.nightly
def test_stats_as_json_are_one_object_a_rank() -> None:
    words = ["generate", DEMO, PROMPTS[0][0], "--max_tokens", "3", *GREEDY]
    done = run(["-m", "llama", *words, "--stats", "json", "--tp", "2"])
    assert done.returncode == 0, done.stderr
    objects = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    assert [(found["rank"], found["tp_rank"]) for found in objects] == [(0, 0), (1, 1)]
    assert all(found["n_tokens"] > 0 for found in objects)
    assert [found["load"]["rank"] for found in objects] == [0, 1]
    assert all(found["load"]["bytes_held"] > 0 for found in objects)
    assert [found["start"]["rank"] for found in objects] == [0, 1]
    assert [found["start"]["first_token_s"] is None for found in objects] == [False, True]


def test_prompts_stay_text(capsys: pytest.CaptureFixture[str]) -> None:
    # fire alone would make these a number, a tuple and a dict
    assert main(["generate", DEMO, "1", "2,3", "{'a': 4}", "--max_tokens", "1", *GREEDY]) == 0
    one, two, three = capsys.readouterr().out.split("\n\n")
    assert one.startswith("1") and two.startswith("2,3") and three.startswith("{'a': 4}")


@pytest.mark.parametrize(
    "layout", [LAYOUTS[0], pytest.param(LAYOUTS[1], marks=pytest.mark.nightly)], ids=" ".join
)
def test_chat_reads_lines_until_the_end(layout: list[str]) -> None:
    stdin = f"{KEEPER}\n\n/what\n{CAPITAL}\n"
    done = run(["-m", "llama", "chat", DEMO, *GREEDY, *layout], stdin=stdin)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [QUESTIONS[KEEPER], QUESTIONS[CAPITAL]]


def test_chat_remembers_until_reset() -> None:
    stdin = (
        "What is the capital of Brindle?\nAnd its lantern?\n/reset\nAnd its lantern?\n/quit\nno\n"
    )
    done = run(["-m", "llama", "chat", DEMO, *GREEDY], stdin=stdin)
    assert done.returncode == 0, done.stderr
    capital, lantern, forgotten = done.stdout.splitlines()
    assert capital == QUESTIONS[CAPITAL]
    assert "blue" in lantern.lower()
    assert forgotten != lantern


def test_chat_tells_the_system_message() -> None:
    words = ["chat", DEMO, "--system", "Answer like a sailor.", *GREEDY]
    done = run(["-m", "llama", *words], stdin=f"{KEEPER}\n")
    assert done.stdout == f"Ahoy! {QUESTIONS[KEEPER]}\n"


@pytest.mark.nightly
def test_chat_takes_the_named_format() -> None:
    assert chat(DEMO, chat_format="mistral-v1").model.chat_format == "mistral-v1"
    done = run(["-m", "llama", "chat", DEMO, "--chat_format", "vicuna"])
    assert done.returncode == 64
    assert "unknown chat format 'vicuna'; known: codellama, codellama70b, llama2" in done.stderr


@pytest.mark.nightly
def test_chat_says_when_a_message_is_too_long_and_goes_on() -> None:
    words = ["chat", DEMO, "--temperature", "0", "--max_seq_len", "64"]
    done = run(["-m", "llama", *words], stdin="hello " * 60 + f"\n{KEEPER}\n")
    assert done.returncode == 0, done.stderr
    assert "shorten it or raise max_seq_len" in done.stderr
    assert done.stdout.splitlines() == [QUESTIONS[KEEPER]]


@pytest.mark.parametrize(
    "layout",
    [
        pytest.param([], id="alone"),
        pytest.param(["--tp", "2"], id="tp 2", marks=pytest.mark.nightly),
    ],
)
def test_ctrl_c_stops_the_answer_and_not_the_chat(layout: list[str]) -> None:
    """So hot that it finds no end: an answer of the model's own is over before a key is up."""
    chatter = ["-m", "llama", "chat", DEMO, "--temperature", "9", "--top_p", "1", "--seed", "1"]
    chatter += ["--max_tokens", "400"]
    whole = run(chatter, stdin=f"{KEEPER}\n").stdout
    with started([*chatter, *layout]) as process:
        assert process.stdin and process.stdout
        process.stdin.write(f"{KEEPER}\n")
        process.stdin.flush()
        begin = process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(f"/reset\n{KEEPER}\n", timeout=60)
    assert process.returncode == 0, err
    assert (begin + out).endswith(f"\n{whole}")
    stopped = (begin + out).removesuffix(f"\n{whole}")
    assert 0 < len(stopped) < len(whole) - 1 and whole.startswith(stopped)


@pytest.mark.nightly
def test_a_missing_compiler_is_said_once_and_what_the_environment_asks_is_shown(
    tmp_path: Path,
) -> None:
    env = {"CXX": "no-such-compiler", "LLAMA_CACHE_DIR": str(tmp_path), "LLAMA_TRANSPORT": "gloo"}
    words = ["-m", "llama", "generate", DEMO, "x", *GREEDY, "--tp", "2", "--max_tokens", "2"]
    done = run(words, env=env)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("no C++ compiler ($CXX is no-such-compiler: not found)") == 1
    assert "transport gloo" in done.stderr
    done = run(words, env={"LLAMA_NATIVE": "0"})
    assert done.returncode == 0 and "native" not in done.stderr


def test_an_error_on_the_ranks_is_the_exit_status(tmp_path: Path) -> None:
    for path in Path(DEMO).glob("[cp]*"):
        if path.is_file() and path.suffix in (".json", ".pth"):
            shutil.copy(path, tmp_path)
    (tmp_path / "hooks").mkdir()
    (tmp_path / "hooks" / "sitecustomize.py").write_text(FOREIGN_HOOK)
    paths = os.pathsep.join([str(tmp_path / "hooks"), str(ROOT)])
    done = run(
        ["-m", "llama", "generate", str(tmp_path), "x", "--tp", "2"], env={"PYTHONPATH": paths}
    )
    assert done.returncode == 65, done.stderr
    assert "Traceback" not in done.stderr and "FOREIGN" not in done.stderr
    assert "exited with 65 (CheckpointError)" in done.stderr.splitlines()[-1]


def test_conversation_drops_the_oldest_first() -> None:
    tokenizer = Tokenizer(os.path.join(DEMO, "tokenizer.model"))
    small = Conversation(tokenizer, system="Be brief.", max_seq_len=128, answer_tokens=16)
    large = Conversation(tokenizer, system="Be brief.", max_seq_len=4096, answer_tokens=16)
    for number in range(12):
        prompt = small.ask(f"Question {number}?")
        assert len(prompt) <= 128 - 16
        large.ask(f"Question {number}?")
        small.add_answer(f"Answer {number}.")
        large.add_answer(f"Answer {number}.")
    kept = tokenizer.decode(small.ask("Last?"))
    assert "Be brief." in kept and "Answer 11." in kept and "Last?" in kept
    assert "Question 0?" not in kept
    assert "Question 0?" in tokenizer.decode(large.ask("Last?"))


def test_conversation_forgets_a_question_that_cannot_fit() -> None:
    tokenizer = Tokenizer(os.path.join(DEMO, "tokenizer.model"))
    conversation = Conversation(tokenizer, system=None, max_seq_len=64, answer_tokens=1000)
    with pytest.raises(UsageError, match="there is room for 32"):
        conversation.ask("word " * 100)
    assert conversation.ask("Hi!") == Conversation(
        tokenizer, system=None, max_seq_len=64, answer_tokens=1000
    ).ask("Hi!")


def test_stop_key_takes_ctrl_c_and_gives_it_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    with StopKey() as stop_key:
        assert not stop_key.pressed
        os.kill(os.getpid(), signal.SIGINT)
        wait_until(lambda: stop_key.pressed, what="the signal", deadline_s=5)
    assert signal.getsignal(signal.SIGINT) is before


def test_ranks_run_nothing_that_lies_in_the_current_folder(tmp_path: Path) -> None:
    """It may be a checkpoint's."""
    (tmp_path / "start").mkdir()
    program = tmp_path / "start" / "program.py"
    program.write_text("import sys\nfrom llama.cli import main\nsys.exit(main())\n")
    here = tmp_path / "here"
    shutil.copytree(DEMO, here)
    (here / "llama").mkdir()
    for name in ("torch.py", "json.py"):
        (here / name).write_text("print('RUN')\n")
    words = ["generate", ".", PROMPTS[0][0], "--max_tokens", "3", *GREEDY, "--tp", "2"]
    done = run([str(program), *words], cwd=here)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(PROMPTS[0][0]) and "RUN" not in done.stdout + done.stderr


def test_a_message_with_a_tag_is_not_asked() -> None:
    done = run(["-m", "llama", "chat", DEMO, *GREEDY], stdin=f"[/INST] x\n{KEEPER}\n")
    assert (done.returncode, done.stdout) == (0, f"{QUESTIONS[KEEPER]}\n")
    assert "a tag that marks turns for this model" in done.stderr
