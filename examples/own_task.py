"""An own task: capitals of countries, with its own questions, prompt and reader. `scale-run --task examples/own_task.py`"""

import re

from scaling.tasks.task import Question, Task

CAPITALS = {"France": "Paris", "Japan": "Tokyo", "Peru": "Lima", "Kenya": "Nairobi", "Iceland": "Reykjavik"}
SOLVED = {"Italy": "Rome", "Norway": "Oslo"}


class Capitals(Task):
    kind = "text"  # answers are equal where their texts are, whatever their case
    request = "Name the city and nothing else, in square brackets, as in [Rome]."
    splits = ("train", "test")
    max_new_tokens = 16

    def questions(self, split, limit):
        for country, city in list((SOLVED if split == "train" else CAPITALS).items())[:limit]:
            yield Question(country, f"What is the capital of {country}?", city, rationale=(f"{country} is a country.",))

    def solution(self, question):
        return f"[{question.answer}]"

    def read(self, text, question):
        found = re.findall(r"\[([^\[\]]+)\]", text)
        return self.canonical(found[-1], question) if found else None
