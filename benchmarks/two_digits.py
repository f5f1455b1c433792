"""A task to run with `--task benchmarks/two_digits.py`: one sum or difference of numbers of two digits, as a short story.

The default backbone cannot work it out in one pass, and Qwen2.5-Coder-0.5B as the assistant mostly can. So thoughts have
something to tell although the backbone sees the question. Splits share the stories, and neither numbers nor names.
"""

import random

from scaling.records.records import Question
from scaling.tasks.generated import GeneratedTask, people, pick, split_by

STORIES = {
    "+": (
        "{name} has {a} {things} and buys {b} more. How many {things} does {name} have now?",
        "There are {a} {things} in a box. {name} puts {b} {things} into it. How many {things} are in the box now?",
        "{name} counts {a} {things} in the morning and {b} in the evening. How many {things} does {name} count in all?",
    ),
    "-": (
        "{name} has {a} {things} and sells {b} of them. How many {things} does {name} have now?",
        "There are {a} {things} in a box. {name} takes {b} {things} out of it. How many {things} are left in the box?",
        "{name} needs {a} {things} and has {b}. How many {things} does {name} still need?",
    ),
}
THINGS = ("apples", "books", "cards", "coins", "cups", "eggs", "keys", "nuts", "plums", "shells", "stamps", "stones")


class TwoDigits(GeneratedTask):
    name, kind = "two-digits", "number"
    limit, max_new_tokens = 500, 24

    def draw(self, rng: random.Random, split: str, width: int) -> Question | None:
        a, b, sign = pick(rng, range(11, 99)), pick(rng, range(11, 99)), pick(rng, "+-")
        result = a + b if sign == "+" else a - b
        if result < 1 or split_by(f"two digits/{a},{b}") != split:
            return None
        [name] = people(rng, split, 1, width=width)
        text = pick(rng, STORIES[sign]).format(name=name, a=a, b=b, things=pick(rng, THINGS))
        return Question("", text, str(result), rationale=(f"{a} {sign} {b} = {result}.",))
