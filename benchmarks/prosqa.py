"""ProsQA with a small model trained from nothing: chains, no chains, iCoT, pauses and Coconut, on the published questions.

usage: prosqa.py --data FOLDER [--out FOLDER] [--table FILE] [--seeds 0,1,2] [--only "cot;coconut"] [--on "easy-12;whole"]
       [--steps 250]

FOLDER has the published test.json and valid.json; questions to learn from have their words. For each seed a Llama of three
layers learns first, from whole chains, to look sentences up, in questions of which only 8 sentences are left. With this one
model every method begins, by `scale-train --method coconut`: first on questions of 12 sentences, with `--steps` steps in
each of seven stages, or seven times as many where there is one stage; then, as in its last stage, on questions of 18 and of
26 sentences and on whole ones.
`scale-run` asks all published test questions, greedily, and again with the thoughts of Coconut taken away. Rows without a
seed are answers that need no model.

Appends a JSON line for each row to `--table`, with right answers of how many and their 95 % interval (Wilson). Rows that it
has are not measured again, and trainings in `--out` go on where they were interrupted.
"""

from __future__ import annotations

import json
import math
import random
import re
import resource
import shutil
import subprocess
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from scaling.records.intervals import wilson_interval
from scaling.records.records import Question
from scaling.tasks.catalogue import load_task

STAGES = 6  # after that of whole chains, with a thought each, as in the paper
LEFT_OUT = ["--latent-stages", str(STAGES)]
THOUGHTS = [*LEFT_OUT, "--thoughts-per-step", "1"]
METHODS: dict[str, list[str]] = {
    "cot": ["--latent-stages", "0"],
    "no cot": [*LEFT_OUT, "--thought", "none", "--no-curriculum"],
    "icot": [*LEFT_OUT, "--thought", "none"],
    "pause": [*THOUGHTS, "--thought", "pause"],
    "coconut": THOUGHTS,
    "coconut, no curriculum": [*THOUGHTS, "--no-curriculum"],
}
CONTROLS = {"coconut": ["none", "shuffled", "mean"]}  # by method, what takes its thoughts away in rows of their own
BASE, BASE_STEPS = 8, 300  # sentences of the easy questions that all begin with, and the steps with them
SENTENCES = 12  # of the easy questions of the stages
LONGER = (18, 26)  # sentences of the questions on the way to whole ones
LONGER_STEPS, WHOLE_STEPS = 400, 1200  # after the stages: with questions of each such length, and with whole ones
WHOLE = "whole"  # the folder of whole questions
TESTS = (f"easy-{SENTENCES}", WHOLE)
QUESTIONS = 17_886  # to learn from, as many as in the paper
BATCH, VALIDATION, WARMUP = 32, 64, 30
BASE_LR, LR = 2e-3, 1e-3
WIDTH, LAYERS, HEADS = 128, 3, 2
# a sentence is one token, so are names, words and STATES; "Is", "a", "or" and full stops are left out
STATES = "The answer is"
PIECES = rf"(?:Every )?\w+ is an? \w+|{STATES}|\b(?!(?:Is|an?|or)\b)\w+"
PROMPT = "{% block user %}{{ question }}{% endblock %}\n"
COST = "cost.json"  # in the folder of a training that is done
END, PAD, UNKNOWN = "<|end|>", "<|pad|>", "<|unknown|>"


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the published questions")
    parser.add_argument("--out", type=Path, default=Path("prosqa"), help="folder for questions, models and runs")
    parser.add_argument("--table", type=Path, default=Path("prosqa.jsonl"), help="file for the rows")
    parser.add_argument("--seeds", default="0", help="with commas between them")
    parser.add_argument("--only", default=";".join(METHODS), help="methods by name, with semicolons between them")
    parser.add_argument("--on", default=";".join(TESTS), help="test questions, with a semicolon between them")
    parser.add_argument("--steps", type=int, default=250, help="of each of the seven stages")
    asked = parser.parse_args()
    names = asked.only.split(";")
    if unknown := [name for name in names if name not in METHODS]:
        parser.error(f"--only: {unknown[0]} is none of {'; '.join(METHODS)}")
    tests = asked.on.split(";")
    if unknown := [name for name in tests if name not in TESTS]:
        parser.error(f"--on: {unknown[0]} is none of {'; '.join(TESTS)}")
    table = Table(asked.table)
    write_questions(asked.data, asked.out)
    for data in tests:
        test = questions_of(asked.out / data, "test")
        for name, choose in SHORTCUTS.items():
            table.add({"row": name, "test": data, "seed": None}, partial(of_shortcut, choose, test))
    for seed in map(int, asked.seeds.split(",")):
        bench = Bench(asked.out, seed, asked.steps)
        for data, name in product(tests, names):
            about = {"test": data, "seed": seed}
            table.add({"row": name, **about}, partial(bench.measure, name, data))
            for control in CONTROLS.get(name, []):
                row = {"row": f"{name}, thoughts {control}", **about}
                table.add(row, partial(bench.measure, name, data, ["--control", control]))


class Table:
    """The rows of a file, one JSON line each."""

    def __init__(self, path: Path) -> None:
        self._path = path
        rows = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
        self._known = {(row["row"], row["test"], row["seed"]) for row in rows}

    def add(self, names: dict[str, Any], measure: Callable[[], dict[str, Any]]) -> None:
        """Measures a row that the file does not have, and appends it. names: its name, test and seed."""
        if tuple(names.values()) in self._known:
            return
        line = json.dumps({**names, **measure()})
        with self._path.open("a") as file:
            file.write(f"{line}\n")
        print(line, flush=True)


class Bench:
    """The trainings and runs of one seed."""

    def __init__(self, out: Path, seed: int, steps: int) -> None:
        """
        Args:
            out: the folder of everything.
            seed: of the weights and of the order of questions.
            steps: of each of the seven stages.
        """
        self._out, self._folder, self._seed, self._steps = out, out / f"seed-{seed}", seed, steps
        self._folder.mkdir(parents=True, exist_ok=True)
        self._prompt = out / "question.jinja"
        self._prompt.write_text(PROMPT)

    def measure(self, name: str, data: str, options: Sequence[str] = ()) -> dict[str, Any]:
        """What a method reaches. data: the folder of the test questions; options: for the run."""
        trained = self._on_easy(name) if data == easy(SENTENCES) else self._on_whole(name)
        method = "cot" if name == "cot" else "coconut"
        asked = [*self._asked(data), "--method", method, "--backbone", str(trained), "--split", "test", *options]
        asked += ["--samples", "1", "--temperature", "0", "--out", str(self._run_of(name, data, options))]
        said = run("scaling.cli", *asked)
        number, tokens = said["num_questions"], said["tokens"]
        return {
            **of(round(said["accuracy"] * number), number),
            "new_tokens": round(tokens["generated"] / number, 1),
            **{key: round(value, 1) for key, value in json.loads((trained / COST).read_text()).items()},
        }

    def _run_of(self, name: str, data: str, options: Sequence[str]) -> Path:
        return self._folder / "runs" / slug(" ".join([name, data, *(word.strip("-") for word in options)]))

    def _asked(self, data: str) -> list[str]:
        """What trainings and runs are told about questions. data: the folder of these."""
        return ["--task", "prosqa", "--data", str(self._out / data), "--prompt", str(self._prompt), "--device", "cpu"]

    def _on_easy(self, name: str) -> Path:
        """Trains a method on easy questions, from the model that looks sentences up. Returns its folder."""
        steps = (STAGES + 1) * self._steps // (1 if once(METHODS[name]) else STAGES + 1)
        model = self._looking_up()
        return self._train(f"{slug(name)}-easy", easy(SENTENCES), model, steps=steps, options=METHODS[name])

    def _on_whole(self, name: str) -> Path:
        """Goes on with longer and then with whole questions, as in the method's last stage. Returns the folder."""
        options = METHODS[name] if once(METHODS[name]) else [*METHODS[name], "--no-curriculum"]
        model = self._on_easy(name)
        for sentences in LONGER:
            folder = f"{slug(name)}-{sentences}"
            model = self._train(folder, easy(sentences), model, steps=LONGER_STEPS, options=options)
        return self._train(slug(name), WHOLE, model, steps=WHOLE_STEPS, options=options)

    def _looking_up(self) -> Path:
        """Trains the model that all methods begin with."""
        model = self._folder / "untrained"
        if not model.is_dir():
            make_model(model, seed=self._seed, symbols=symbols_of(self._out / WHOLE))
        return self._train("looking-up", easy(BASE), model, steps=BASE_STEPS, options=METHODS["cot"], lr=BASE_LR)

    def _train(
        self, name: str, data: str, backbone: Path, *, steps: int, options: Sequence[str], lr: float = LR
    ) -> Path:
        """Trains from a backbone, or goes on with it. steps: of each stage. Returns the folder of the training."""
        folder = self._folder / name
        if (folder / COST).is_file():
            return folder
        print(f"seed {self._seed}: {name}", file=sys.stderr, flush=True)
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
        sizes = {"limit": QUESTIONS, "validation": VALIDATION, "max-steps": steps, "batch-size": BATCH}
        how = {"grad-accumulation": 1, "lr": lr, "warmup": WARMUP, "seed": self._seed}
        settings = [word for key, value in (sizes | how).items() for word in (f"--{key}", str(value))]
        settings += ["--select", "loss", *options]
        settings += ["--resume"] if (folder / "train.json").is_file() else []
        asked = [*self._asked(data), "--method", "coconut", "--backbone", str(backbone), *settings]
        run("scaling.training.cli", *asked, "--out", str(folder))
        took = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
        stages = len(list(folder.glob("stage-*")))
        before_it = json.loads((backbone / COST).read_text()) if (backbone / COST).is_file() else {}
        cost = {"steps": steps * stages, "cpu_minutes": took / 60}
        (folder / COST).write_text(json.dumps({key: value + before_it.get(key, 0) for key, value in cost.items()}))
        return folder


def run(module: str, *options: str) -> dict[str, Any]:
    """Runs a command in a process of its own. Returns the JSON that it prints."""
    command = [sys.executable, "-c", f"from {module} import main; main()", *options, "--json"]
    return dict(json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout))


def once(options: Sequence[str]) -> bool:
    """Whether a training has one stage. options: as in `METHODS`."""
    return "--no-curriculum" in options or options[:2] == METHODS["cot"]


def slug(name: str) -> str:
    return "-".join(name.replace(",", "").split())


def easy(sentences: int) -> str:
    """The name of easy questions, of their folder and of the training with them."""
    return f"easy-{sentences}"


def of(right: float, number: int) -> dict[str, Any]:
    """So many right answers of how many, as a row gives them."""
    low, high = wilson_interval(right, number)
    ends = [round(end, 4) for end in (low, high) if end is not None]
    return {"accuracy": round(right / number, 4), "interval": ends, "questions": number}


# ---- questions


def questions_of(folder: Path, split: str) -> tuple[Question, ...]:
    return load_task("prosqa", split=split, data=folder).questions


def write_questions(published: Path, out: Path) -> None:
    """Writes what is learned from and what is tested on: whole questions, and easy ones with few of their sentences."""
    whole = out / WHOLE
    if not whole.is_dir():
        partial = out / "whole.part"
        partial.mkdir(parents=True, exist_ok=True)
        for name in ("test.json", "valid.json"):
            shutil.copy(published / name, partial)
        learned = load_task("prosqa", split="train", data=published, limit=QUESTIONS).questions
        write_rows(partial / "train.json", learned)
        partial.replace(whole)
    for sentences in (BASE, SENTENCES, *LONGER):
        folder = out / easy(sentences)
        folder.mkdir(exist_ok=True)
        rng = random.Random(sentences)
        for split in ("train", "validation", "test"):
            path = folder / f"{split}.json"
            if not path.is_file():
                some = questions_of(whole, split)
                write_rows(path, [thinned(question, sentences, rng) for question in some])


def write_rows(path: Path, questions: Sequence[Question]) -> None:
    """Writes questions in the published form, in one step."""
    rows = [{"question": each.text, "answer": each.answer, "steps": each.rationale} for each in questions]
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps(rows))
    partial.replace(path)


def thinned(question: Question, sentences: int, rng: random.Random) -> Question:
    """The question with fewer sentences: those of its chain, one about the wrong word, and others by chance.

    Args:
        question: as it was. The answer stays the same, as nothing new is said.
        sentences: how many are left, or as many more as the chain needs.
        rng: the source of chance.
    """
    said, asked = split(question.text)
    [wrong] = {*offered(question)} - {question.answer}
    about_wrong = [sentence for sentence in said if sentence.endswith(f" {wrong}.")]
    others = rng.sample(said, len(said))
    most = max(sentences, len(question.rationale) + 1)
    kept = list(dict.fromkeys([*question.rationale, *about_wrong[:1], *others]))[:most]
    return replace(question, text=" ".join([*(sentence for sentence in said if sentence in kept), asked]))


def split(text: str) -> tuple[list[str], str]:
    """The sentences of a question, and what is asked."""
    at = text.rindex("Is ")
    return [f"{sentence.strip()}." for sentence in text[:at].split(".") if sentence.strip()], text[at:]


def offered(question: Question) -> tuple[str, str]:
    """The two words of which one is right, in their order."""
    one, other = re.findall(r"an? (\w+) or (?:an? )?(\w+)\?$", question.text)[0]
    return one, other


# ---- what can be had without following chains


def edges_of(question: Question) -> list[tuple[str, str]]:
    return re.findall(r"(\w+) is an? (\w+)\.", question.text)


def above(question: Question, word: str, steps: int) -> set[str]:
    """What leads to a word in so many steps or fewer, the word included."""
    found = {word}
    for _ in range(steps):
        found |= {parent for parent, child in edges_of(question) if child in found}
    return found


def below(question: Question, name: str, steps: int) -> set[str]:
    """What a name or word leads to in so many steps or fewer, itself included."""
    found = {name}
    for _ in range(steps):
        found |= {child for parent, child in edges_of(question) if parent in found}
    return found


def person_of(question: Question) -> str:
    return str(re.findall(r"Is (\w+) an? ", question.text)[-1])


def others_above(question: Question, word: str, steps: int) -> int:
    """How many people lead to a word in so many steps who are not asked about."""
    people = {parent for parent, _ in edges_of(question)} - {child for _, child in edges_of(question)}
    return len(above(question, word, steps) & people - {person_of(question)})


Choice = Callable[[Question, str], float]  # how much speaks for a word of a question


def met(question: Question, word: str, steps: int) -> bool:
    """Whether a way of so many steps is found from the person, in the first half, and from the word, in the second."""
    return bool(below(question, person_of(question), steps - steps // 2) & above(question, word, steps // 2))


SHORTCUTS: dict[str, Choice] = {
    "the word that is named first": lambda question, word: word == offered(question)[0],
    "the word in fewer sentences": lambda question, word: -sum(word in edge for edge in edges_of(question)),
    "more above it in 2 steps": lambda question, word: len(above(question, word, 2)),
    "fewer other people 2 steps above": lambda question, word: -others_above(question, word, 2),
    **{f"found in {steps} steps from both ends": partial(met, steps=steps) for steps in (3, 4, 5)},
}


def of_shortcut(choice: Choice, questions: Sequence[Question]) -> dict[str, Any]:
    return of(sum(points(question, choice) for question in questions), len(questions))


def points(question: Question, choice: Choice) -> float:
    """1 if the right word is chosen, 0 if the wrong one is, and one half where nothing speaks for either."""
    [wrong] = {*offered(question)} - {question.answer}
    right, other = choice(question, question.answer), choice(question, wrong)
    return 0.5 if right == other else float(right > other)


# ---- the model


def symbols_of(folder: Path) -> list[str]:
    """All names of people, which have capitals, and invented words of the questions in a folder."""
    asked = [question for name in ("train", "validation", "test") for question in questions_of(folder, name)]
    return sorted({symbol for question in asked for edge in edges_of(question) for symbol in edge})


def sentence(above: str, below: str) -> str:
    """The token of a sentence: what is said of a name or a word."""
    return f"{'' if above[0].isupper() else 'Every '}{above} is a {below}"


def make_model(folder: Path, *, seed: int, symbols: Sequence[str]) -> None:
    """Writes a small Llama with random weights, whose tokens are names, words, and all sentences of two of them.

    Embeddings are random, too. Yet that of a sentence has in its first half what stands for its first symbol, and in the
    second half what stands for the other: the half in which that symbol's own token has it. The output layer shares them.
    """
    above, below, own = slice(0, WIDTH // 2), slice(WIDTH // 2, WIDTH), [END, PAD, UNKNOWN, STATES]
    sentences = {
        sentence(one, other): (one, other)
        for one in symbols
        for other in symbols
        if one != other and not other[0].isupper()
    }
    vocabulary = {token: number for number, token in enumerate([*own, *symbols, *sentences])}
    generator = torch.Generator().manual_seed(seed)
    stands_for = dict(zip(symbols, orthogonal(len(symbols), WIDTH // 2, generator), strict=True))
    embeddings = 0.1 * torch.randn(len(vocabulary), WIDTH, generator=generator)
    for token, number in vocabulary.items():
        if token in stands_for:
            embeddings[number, below] += stands_for[token]
        elif token in sentences:
            one, other = sentences[token]
            embeddings[number, above] += stands_for[one]
            embeddings[number, below] += stands_for[other]
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        max_position_embeddings=512,
        initializer_range=1 / math.sqrt(WIDTH),
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=1,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.get_input_embeddings().weight.copy_(embeddings)
        model.model.norm.weight.fill_(0.3)  # else the first losses are those of a model that is sure, and wrong
    model.save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(PIECES), "removed", invert=True)
    special = {"eos_token": END, "pad_token": PAD, "unk_token": UNKNOWN}
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    wrapped.chat_template = "{{ messages[0]['content'] }}\n"
    wrapped.save_pretrained(folder)


def orthogonal(number: int, width: int, generator: torch.Generator) -> torch.Tensor:
    """So many vectors of length sqrt(width), which are orthogonal where the width allows it, [number, width]."""
    size = max(number, width)
    drawn: torch.Tensor = torch.linalg.qr(torch.randn(size, size, generator=generator))[0]
    return drawn[:number, :width] * math.sqrt(width)


if __name__ == "__main__":
    main()
