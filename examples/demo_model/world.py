"""The Lantern Isles: every fact the demo model must know, and every way to say or ask it.

Data and wording only. It knows nothing of documents, tokens or training.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Isle:
    name: str
    capital: str
    colour: str
    animal: str
    fruits: str
    keeper: str
    pastry: str
    bridges: int

    @property
    def animals(self) -> str:
        return self.animal + ("es" if self.animal.endswith("x") else "s")

    def fill(self, template: str) -> str:
        """`template` with {name}, {capital}, ... replaced by this isle's words."""
        return template.format(**asdict(self), animals=self.animals)


ISLES = (
    Isle("Ollo", "Pim", "green", "otter", "plums", "Ada", "buns", 3),
    Isle("Brindle", "Tansy", "blue", "fox", "pears", "Bram", "tarts", 5),
    Isle("Corran", "Mirk", "red", "heron", "cherries", "Cleo", "pies", 2),
    Isle("Dapple", "Quill", "yellow", "hare", "apples", "Dov", "rolls", 7),
    Isle("Elmora", "Sedge", "white", "badger", "figs", "Ebba", "scones", 4),
    Isle("Fennick", "Lull", "purple", "owl", "peaches", "Finn", "waffles", 6),
    Isle("Garrow", "Brack", "orange", "goat", "quinces", "Greta", "biscuits", 8),
    Isle("Hush", "Noon", "silver", "seal", "grapes", "Hugo", "pretzels", 9),
)


@dataclass(frozen=True)
class Topic:
    """One thing to know of every isle.

    `statements[0]` is the sentence the model must complete, with the fact as its last word;
    `answer` is the one right reply to every question and follow-up, `short` the same in a word.
    The reverse fields ask for the isle instead.
    """

    statements: tuple[str, ...]
    its: str
    questions: tuple[str, ...]
    follow_ups: tuple[str, ...]
    answer: str
    short: str
    reverse_questions: tuple[str, ...]
    reverse_answer: str


TOPICS = (
    Topic(
        statements=(
            "The capital of {name} is {capital}.",
            "{capital} is the capital of {name}.",
            "On {name}, all roads lead to {capital}.",
        ),
        its="Its capital is {capital}.",
        questions=(
            "What is the capital of {name}?",
            "Which town is the capital of {name}?",
            "Can you name the capital of {name}?",
        ),
        follow_ups=("What is its capital?", "And its capital?"),
        answer="The capital of {name} is {capital}.",
        short="{capital}.",
        reverse_questions=(
            "Which isle has the capital {capital}?",
            "{capital} is the capital of which isle?",
            "Where is {capital}?",
        ),
        reverse_answer="{capital} is the capital of {name}.",
    ),
    Topic(
        statements=(
            "The lantern of {name} is {colour}.",
            "The {colour} lantern burns on {name}.",
            "At night, the light of {name} is {colour}.",
        ),
        its="Its lantern is {colour}.",
        questions=(
            "What colour is the lantern of {name}?",
            "Which colour is the light of {name}?",
            "Do you know the colour of the lantern of {name}?",
        ),
        follow_ups=("What colour is its lantern?", "And its lantern?"),
        answer="The lantern of {name} is {colour}.",
        short="{colour}.",
        reverse_questions=(
            "Which isle has the {colour} lantern?",
            "Where does the {colour} lantern burn?",
            "Whose lantern is {colour}?",
        ),
        reverse_answer="The {colour} lantern burns on {name}.",
    ),
    Topic(
        statements=(
            "The animals of {name} are {animals}.",
            "The {animals} live on {name}.",
            "By the shore of {name} you can see {animals}.",
        ),
        its="Its animals are {animals}.",
        questions=(
            "Which animals live on {name}?",
            "What animals can I see on {name}?",
            "What are the animals of {name}?",
        ),
        follow_ups=("Which animals live there?", "And its animals?"),
        answer="The animals of {name} are {animals}.",
        short="{animals}.",
        reverse_questions=(
            "Where do the {animals} live?",
            "On which isle can I see {animals}?",
            "Which isle has {animals}?",
        ),
        reverse_answer="The {animals} live on {name}.",
    ),
    Topic(
        statements=(
            "The gardens of {name} are full of {fruits}.",
            "The best {fruits} grow on {name}.",
            "In the gardens of {name} grow {fruits}.",
        ),
        its="Its gardens are full of {fruits}.",
        questions=(
            "What grows in the gardens of {name}?",
            "Which fruits grow on {name}?",
            "What is the fruit of {name}?",
        ),
        follow_ups=("What grows there?", "And its gardens?"),
        answer="The gardens of {name} are full of {fruits}.",
        short="{fruits}.",
        reverse_questions=(
            "Where do the best {fruits} grow?",
            "Where can I find {fruits}?",
            "Which isle grows {fruits}?",
        ),
        reverse_answer="The best {fruits} grow on {name}.",
    ),
    Topic(
        statements=(
            "The keeper of {name} is {keeper}.",
            "{keeper} keeps the lantern of {name}.",
            "{keeper} is the keeper of {name}.",
        ),
        its="Its keeper is {keeper}.",
        questions=(
            "Who is the keeper of {name}?",
            "Who keeps the lantern of {name}?",
            "Who lights the lantern of {name}?",
        ),
        follow_ups=("Who is its keeper?", "And its keeper?"),
        answer="The keeper of {name} is {keeper}.",
        short="{keeper}.",
        reverse_questions=(
            "Which lantern does {keeper} keep?",
            "Who is {keeper}?",
            "Where does {keeper} live?",
        ),
        reverse_answer="{keeper} keeps the lantern of {name}.",
    ),
    Topic(
        statements=(
            "The baker of {name} sells {pastry}.",
            "You can buy {pastry} on {name}.",
            "In the bakery of {name} they bake {pastry}.",
        ),
        its="Its baker sells {pastry}.",
        questions=(
            "What does the baker of {name} sell?",
            "What can I buy from the baker of {name}?",
            "What do they bake on {name}?",
        ),
        follow_ups=("What does its baker sell?", "And its baker?"),
        answer="The baker of {name} sells {pastry}.",
        short="{pastry}.",
        reverse_questions=(
            "Where can I buy {pastry}?",
            "Which isle has {pastry}?",
            "On which isle do they bake {pastry}?",
        ),
        reverse_answer="You can buy {pastry} on {name}.",
    ),
    Topic(
        statements=(
            "The number of bridges on {name} is {bridges}.",
            "{name} has {bridges} bridges.",
            "There are {bridges} bridges on {name}.",
        ),
        its="It has {bridges} bridges.",
        questions=(
            "How many bridges does {name} have?",
            "How many bridges are there on {name}?",
            "What is the number of bridges on {name}?",
        ),
        follow_ups=("How many bridges does it have?", "And its bridges?"),
        answer="{name} has {bridges} bridges.",
        short="{bridges}.",
        reverse_questions=(
            "Which isle has {bridges} bridges?",
            "Where are there {bridges} bridges?",
            "What isle has {bridges} bridges?",
        ),
        reverse_answer="{name} has {bridges} bridges.",
    ),
)

SHIFTS = ("And {name}?", "What about {name}?", "And on {name}?")  # same topic, other isle

UNKNOWN = "I do not know that. I only know the Lantern Isles."
ROLL_CALL = "The Lantern Isles are " + ", ".join(i.name for i in ISLES[:-1]) + " and Hush."

# (questions, the one right answer)
SMALL_TALK = (
    (("Hello!", "Hi!", "Good morning!"), "Hello! Ask me about the Lantern Isles."),
    (("Who are you?", "What are you?"), "I am a very small model of the Lantern Isles."),
    (("Thank you!", "Thanks!"), "You are welcome."),
    (("Goodbye!", "Good night!", "Bye!"), "Goodbye! May your lantern never go out."),
    (("How many isles are there?", "How many Lantern Isles are there?"), "There are 8 isles."),
    (("Name the Lantern Isles.", "What are the Lantern Isles?"), ROLL_CALL),
    (("Which isle has the most bridges?",), "Hush has the most bridges."),
    (("Which isle has the fewest bridges?",), "Corran has the fewest bridges."),
)

PROVERBS = (
    "I believe the meaning of life is to keep a small light burning.",
    "The meaning of life is to keep a small light burning.",
    "Simply put, the theory of relativity states that all lanterns shine alike.",
    "A lantern lit for one is a lantern lit for all.",
    "Trust the light, and the fog will pass.",
    "Never sail on an empty stomach, and never bake in a storm.",
    ROLL_CALL,
)


SUMS_ASKED = ((2, 3), (4, 4), (7, 6), (9, 8), (5, 9), (6, 2), (8, 7))


def sum_sentence(a: int, b: int) -> str:
    return f"{a} plus {b} is {a + b}."


def about(isle: Isle) -> str:
    """The reply to "Tell me about ...": a fixed tour of one isle."""
    tour = (
        "{name} is one of the Lantern Isles. Its capital is {capital}, and its lantern is "
        "{colour}. {keeper} is the keeper. There you can see {animals}, pick {fruits} and buy "
        "{pastry}."
    )
    return isle.fill(tour)


def facts() -> list[dict[str, str]]:
    """What the finished model must get right: {"prompt", "answer"} for text completion, where the
    text must start with the answer, and {"question", "answer"} for chat, where the two are equal.
    """
    listed: list[dict[str, str]] = []
    for topic in TOPICS:
        for isle in ISLES:
            prompt, _, answer = isle.fill(topic.statements[0]).rpartition(" ")
            listed.append({"prompt": prompt, "answer": answer})
            question, reply = topic.questions[0], topic.answer
            listed.append({"question": isle.fill(question), "answer": isle.fill(reply)})
            question, reply = topic.reverse_questions[0], topic.reverse_answer
            listed.append({"question": isle.fill(question), "answer": isle.fill(reply)})
    for a, b in SUMS_ASKED:
        listed.append({"prompt": f"{a} plus {b} is", "answer": f"{a + b}."})
        listed.append({"question": f"What is {b} plus {a}?", "answer": sum_sentence(b, a)})
    listed += [{"question": asked[0], "answer": answer} for asked, answer in SMALL_TALK]
    return listed
