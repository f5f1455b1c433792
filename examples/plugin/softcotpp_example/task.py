"""A task with questions, a request and an answer reader of its own."""

import re

import softcotpp as sc

WORDS = ("banana", "raspberry", "mississippi", "assessment", "committee", "tennessee", "engineer", "possession")


class LetterCount(sc.Task):
    name = "letter-count"
    kind = "number"
    request = "Spell the word letter by letter, then give the number in square brackets, as in [4]."
    splits = ("train", "test")
    max_new_tokens = 64

    def questions(self, split, limit):  # more than `limit` are cut off
        for word in WORDS[::2] if split == "test" else WORDS[1::2]:
            letter = max(word, key=word.count)
            text = f"How many times does the letter {letter} occur in the word {word}?"
            yield sc.Question(word, text, str(word.count(letter)), rationale=(" ".join(word),))

    def solution(self, question):  # what is learned from
        return f"{question.rationale[0]} [{question.answer}]"

    def read(self, text, question):
        found = re.findall(r"\[(\d+)\]", text)
        return found[-1] if found else None
