"""An own task: capitals of countries, with its own questions, prompt and reader. `scale-run --task examples/own_task.py`"""

import re

from scaling.tasks.task import Question, Task

CAPITALS = {"France": "Paris", "Japan": "Tokyo", "Peru": "Lima", "Kenya": "Nairobi", "Mongolia": "Ulaanbaatar"}
SOLVED = {"Italy": "Rome", "Norway": "Oslo"}


class Capitals(Task):
    name = "capitals"
    kind = "text"  # answers are equal where their texts are, whatever their case
    request = "Answer in one sentence that ends with the name of the city."
    splits = ("train", "test")
    max_new_tokens = 24

    def questions(self, split, limit):
        for country, city in list((SOLVED if split == "train" else CAPITALS).items())[:limit]:
            yield Question(country, f"What is the capital of {country}?", city, rationale=(f"It is in {country}.",))

    def solution(self, question):
        return f"The capital of {question.id} is {question.answer.title()}."

    def read(self, text, question):
        names = re.findall(r"\b[A-Z]\w+", text)
        return self.canonical(names[-1], question) if names else None
