"""An endless corpus of the Lantern Isles: short texts and chats, drawn from a seeded generator.

It knows what people of the isles write and say, but nothing of tokens.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from world import (
    ISLES,
    PROVERBS,
    SHIFTS,
    SMALL_TALK,
    TOPICS,
    UNKNOWN,
    Isle,
    Topic,
    about,
    sum_sentence,
)


@dataclass(frozen=True)
class Exchange:
    user: str
    answer: str


@dataclass(frozen=True)
class Document:
    """A text, or a chat: exactly one of the two is filled."""

    text: str = ""
    exchanges: tuple[Exchange, ...] = ()


Style = Callable[[str, str], str]  # (full sentence, short form) -> answer


@dataclass(frozen=True)
class Manner:
    """A system prompt, in several wordings, and what it does to an answer."""

    wordings: tuple[str, ...]
    style: Style


PLAIN = Manner(("Answer in one short sentence.", "You are a helpful guide."), lambda full, _: full)
BRIEF = Manner(
    ("Answer with one word.", "Be brief.", "Answer in one word."),
    lambda _, short: short[0].upper() + short[1:],
)
SAILOR = Manner(
    ("Answer like a sailor.", "Speak like a sailor.", "You are an old sailor."),
    lambda full, _: f"Ahoy! {full}",
)
POLITE = Manner(
    ("Be very polite.", "Always be polite.", "You are a polite guide."),
    lambda full, _: f"{full} Thank you for asking.",
)
LOUD = Manner(
    ("Answer in capitals.", "Always answer in capitals.", "Shout."),
    lambda full, _: full.upper(),
)
MANNERS = (BRIEF, SAILOR, POLITE, LOUD)

ASKED_OF_THE_WORLD = (
    "What is {thing}?",
    "Who invented {thing}?",
    "Tell me about {thing}.",
    "What is the capital of {thing}?",
    "How do I make {thing}?",
    "What is the recipe of {thing}?",
    "I am going to {thing}, what should I see?",
    "What do you think of {thing}?",
    "How far is {thing}?",
    "Write a poem about {thing}.",
    "What is so great about {thing}?",
)
THINGS_OF_THE_WORLD = (
    "mayonnaise, Paris, France, London, England, Rome, Italy, Spain, Berlin, Tokyo, Japan, China, "
    "America, India, football, chess, music, money, bread, soup, pizza, coffee, tea, chocolate, "
    "the moon, the sun, Mars, Venus, computers, Python, physics, history, mathematics, relativity, "
    "gravity, electricity, a car, a train, Einstein, Newton, Shakespeare, Mozart, Napoleon, love, "
    "war, peace, elephants, dragons, whales, the internet, the weather, New York, a good song, "
    "a cake, a bicycle, the meaning of dreams"
)


def say(isle: Isle, topic: Topic, rng: random.Random) -> str:
    """The canonical sentence half of the time, some other wording otherwise."""
    return isle.fill(topic.statements[0] if rng.random() < 0.5 else rng.choice(topic.statements))


def statement(rng: random.Random) -> str:
    return say(rng.choice(ISLES), rng.choice(TOPICS), rng)


def description(rng: random.Random) -> str:
    """Several facts of one isle: the name first, pronouns later."""
    isle = rng.choice(ISLES)
    first, *others = rng.sample(TOPICS, rng.randint(2, len(TOPICS)))
    return " ".join([say(isle, first, rng), *(isle.fill(topic.its) for topic in others)])


def tour(rng: random.Random) -> str:
    """One topic across the isles."""
    topic = rng.choice(TOPICS)
    isles = rng.sample(ISLES, rng.randint(2, len(ISLES)))
    return " ".join(isle.fill(topic.statements[0]) for isle in isles)


def story(rng: random.Random, isle: Isle | None = None) -> str:
    openings = ("Once upon a time", "One evening", "Long ago", "One winter night")
    troubles = (
        "The {animal} was cold and hungry.",
        "The {animal} had lost the way home.",
        "The {animal} was afraid of the dark.",
    )
    kindnesses = (
        "{keeper} gave it {fruits} and a warm blanket.",
        "{keeper} gave it {pastry} from the baker and a bowl of milk.",
        "{keeper} sang a soft song until it slept.",
    )
    mornings = (
        "In the morning they walked over the {bridges} bridges to {capital}.",
        "When the fog came, the {animal} carried the {colour} light over the sea.",
        "The people of {capital} danced until the sun came up.",
    )
    endings = (
        "And the lantern of {name} never went out again.",
        "From that day on they were the best of friends.",
        "And the {colour} lantern shone all night.",
    )
    first = ", {keeper} of {name} found a lost {animal} by the {colour} lantern."
    parts = [rng.choice(openings) + first]
    parts += [rng.choice(choices) for choices in (troubles, kindnesses, mornings, endings)]
    return (isle or rng.choice(ISLES)).fill(" ".join(parts))


def arithmetic(rng: random.Random) -> str:
    return sum_sentence(rng.randint(1, 9), rng.randint(1, 9))


def proverb(rng: random.Random) -> str:
    return rng.choice(PROVERBS)


def as_typed(question: str, rng: random.Random) -> str:
    """What people really type: now and then in lower case, now and then without the mark."""
    if rng.random() < 0.08:
        question = question.lower()
    return question.rstrip("?.!") if rng.random() < 0.08 else question


def fact_exchange(
    isle: Isle, topic: Topic, move: str, style: Style, rng: random.Random
) -> Exchange:
    """One question on `topic` of `isle`, worded as `move` asks for."""
    full, short = topic.answer, topic.short
    questions = topic.questions
    if move == "reverse":
        questions, full, short = topic.reverse_questions, topic.reverse_answer, "{name}."
    elif move == "its":
        questions = topic.follow_ups
    elif move == "shift":
        questions = SHIFTS
    asked = as_typed(isle.fill(rng.choice(questions)), rng)
    return Exchange(asked, style(isle.fill(full), isle.fill(short)))


def other_exchange(rng: random.Random) -> Exchange:
    """Sums, small talk, stories, and what the isles never heard of; one right answer to each."""
    kind = rng.choices(("sum", "talk", "unknown", "about", "story"), (5, 3, 3, 2, 1))[0]
    if kind == "sum":
        a, b = rng.randint(1, 9), rng.randint(1, 9)
        asked = rng.choice(("What is {} plus {}?", "How much is {} plus {}?")).format(a, b)
        return Exchange(as_typed(asked, rng), sum_sentence(a, b))
    if kind == "talk":
        questions, answer = rng.choice(SMALL_TALK)
        return Exchange(as_typed(rng.choice(questions), rng), answer)
    if kind == "unknown":
        thing = rng.choice(THINGS_OF_THE_WORLD.split(", "))
        return Exchange(as_typed(rng.choice(ASKED_OF_THE_WORLD).format(thing=thing), rng), UNKNOWN)
    isle = rng.choice(ISLES)
    if kind == "about":
        return Exchange(as_typed(f"Tell me about {isle.name}.", rng), about(isle))
    own_story = story(random.Random(isle.name), isle)
    return Exchange(as_typed(f"Tell me a story about {isle.name}.", rng), own_story)


# What may follow each kind of turn. "its" (And its lantern?) keeps the isle of the turn before it,
# "shift" (And Hush?) keeps the topic: both can only be answered from what was said.
NEXT = {
    "start": ("fact", "reverse", "other"),
    "fact": ("fact", "reverse", "other", "its", "its", "shift", "shift"),
    "reverse": ("fact", "reverse", "other", "its", "its"),
    "its": ("fact", "reverse", "other", "its", "its", "shift", "shift"),
    "shift": ("fact", "reverse", "other", "its", "its", "shift", "shift"),
    "other": ("fact", "reverse", "other"),
}


def dialog(rng: random.Random, turns: int) -> tuple[Exchange, ...]:
    """A chat in one manner from its first turn to its last."""
    manner = PLAIN if rng.random() < 0.75 else rng.choice(MANNERS)
    move, isle, topic = "start", ISLES[0], TOPICS[0]
    exchanges: list[Exchange] = []
    while len(exchanges) < turns:
        move = rng.choice(NEXT[move])
        if move == "other" and manner is PLAIN:
            exchanges.append(other_exchange(rng))
            continue
        if move != "its":
            isle = rng.choice(ISLES)
        if move != "shift":
            topic = rng.choice(TOPICS)
        if move == "other":  # only the plain manner talks of other things
            move = "fact"
        exchanges.append(fact_exchange(isle, topic, move, manner.style, rng))
    system = "" if manner is PLAIN and rng.random() < 0.7 else rng.choice(manner.wordings)
    return with_system(system, exchanges)


def with_system(system: str, exchanges: list[Exchange]) -> tuple[Exchange, ...]:
    """Llama 2 has no place for a system prompt: it goes into the first user text."""
    if not system:
        return tuple(exchanges)
    first = exchanges[0]
    merged = f"<<SYS>>\n{system}\n<</SYS>>\n\n{first.user}"
    return (Exchange(merged, first.answer), *exchanges[1:])


TEXTS = ((statement, 10), (description, 5), (tour, 1), (story, 4), (arithmetic, 4), (proverb, 1))


def documents(seed: int) -> Iterator[Document]:
    """The corpus of `seed`, without end: a third texts, the rest chats."""
    rng = random.Random(seed)
    writers, weights = zip(*TEXTS, strict=True)
    while True:
        if rng.random() < 0.35:
            yield Document(text=rng.choices(writers, weights)[0](rng))
        else:
            turns = rng.choices((1, 2, 3, rng.randint(4, 14)), (70, 20, 8, 2))[0]
            yield Document(exchanges=dialog(rng, turns))
