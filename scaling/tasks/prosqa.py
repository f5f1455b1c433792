"""ProsQA: chains of "every X is a Y" to follow, and two words, of which the person in question is only one.

The published files are read with `--data FOLDER_OR_FILE`. Without it, questions are generated with the statistics of 800
published ones: a graph without cycles whose nodes come in topological order, one sentence for each edge, in random order.
Nodes without parents are people, all others invented words in "-pus"; nodes 0 and 1 are people, and the question is about
one of them. The right word has no children and descends from this person only, the wrong one has none and descends from the
other of the two only. The shortest way to the right word has 3 to 6 steps.

Splits share neither names nor words. Nor do they share graphs, whatever the order of nodes: the nodes' numbers of parents
and children, sorted, name the split.

With a folder that has no training questions, as the published one, these are generated in the words and with the names of
the others in it, and have the graph of none of them. torch is not loaded.
"""

from __future__ import annotations

import random
import re
from bisect import bisect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from scaling.records.errors import UsageError
from scaling.records.records import Question
from scaling.tasks.answers import SEVERAL, Reading, read_text
from scaling.tasks.formats import Fields, holds_split, read_rows
from scaling.tasks.generated import SPLITS, GeneratedTask, people, pick, shuffled, split_by

# Measured on the published test and validation questions: how many have so many nodes, and steps to the right word.
_NODES = {14: 1, 17: 6, 18: 7, 19: 31, 20: 53, 21: 97, 22: 142, 23: 155, 24: 149, 25: 98, 26: 47, 27: 12, 28: 2}
_STEPS = {3: 326, 4: 350, 5: 105, 6: 19}
# Shares of nodes that are given so many parents. Those that come out are fewer: there may not be as many candidates, and
# a graph without question is drawn again.
_PARENTS = {0: 5.5, 1: 40, 2: 32, 3: 17, 4: 6.2, 5: 1.9, 6: 0.4}
_FEWEST = 4  # people of published questions that others can be made of
_TRIES = 1000  # graphs drawn for the same numbers of nodes and steps
_OF_ONE_ROOT = 0.42  # for each of the two: probability that parents are no descendants of the other one

_TRAIN = SPLITS[0]

_ONSETS = "b bl br cl d dr f fl g gl gr h j k l m n pl r s st t tr v w y z"
_RIMES = {"train": "an ar en ig ol un", "validation": "ad et ok", "test": "ab eg ul"}

_ASKED = re.compile(r"Is (?P<person>\w+) an? (?P<one>\w+) or (?:an? )?(?P<other>\w+)\?\s*$")
_SAID = re.compile(r"\b(\w+) is an? (\w+)\.")
_NOT = re.compile(r"\b(?:not|never|nor|isn['’]t)\s(?:an?\s)?\w+", re.IGNORECASE)
_SENTENCE_END = re.compile(r"[.!?;](?=\s|$)|\n")


@dataclass(frozen=True)
class Graph:
    """A graph in topological order, and what is asked about it.

    Attributes:
        parents: of each node.
        root: the node of the person in question.
        target: the node of the right word.
        wrong: the node of the other word.
        path: the nodes of a shortest way from root to target.
    """

    parents: tuple[tuple[int, ...], ...]
    root: int
    target: int
    wrong: int
    path: tuple[int, ...]


@dataclass(frozen=True)
class Published:
    """What the published questions of a folder are made of.

    Attributes:
        people: names of people.
        words: the invented words.
        shapes: of the graphs, see `shape`.
    """

    people: tuple[str, ...]
    words: tuple[str, ...]
    shapes: frozenset[str]


class ProsQA(GeneratedTask):
    """The task of ProsQA. An answer is one of the two words that a question offers."""

    name, kind = "prosqa", "text"
    wanted = "the right one of the two words"
    max_new_tokens = 128
    takes_data = True

    def questions(self, split: str, limit: int | None) -> Iterator[Question]:
        if self.data is None:
            return super().questions(split, limit)
        if split == _TRAIN and self.generates_beside(self.data):
            return super().questions(split, limit or type(self).limit)
        rows = enumerate(read_rows(self.data, split=split))
        return iter([self._question(row, f"{self.name}-{split}-{number:05d}", where) for number, (where, row) in rows])

    def generates_beside(self, data: Path) -> bool:
        return data.is_dir() and not holds_split(data, _TRAIN)

    def draw(self, rng: random.Random, split: str, width: int) -> Question | None:  # noqa: ARG002
        graph = draw_graph(rng)
        form, roots = shape(graph.parents), sum(not parents for parents in graph.parents)
        if split_by(f"prosqa/{form}") != split:
            return None
        if self.data is None:
            names, words = people(rng, split, roots), shuffled(rng, words_of(split))
        else:
            names, words = (shuffled(rng, own) for own in (self._published.people, self._published.words))
            if form in self._published.shapes or len(names) < roots:
                return None
        symbols = [words.pop() if parents else names.pop() for parents in graph.parents]
        edges = [(parent, node) for node, parents in enumerate(graph.parents) for parent in parents]

        def sentence(parent: int, node: int) -> str:
            every = "Every " if graph.parents[parent] else ""
            return f"{every}{symbols[parent]} is a {symbols[node]}."

        one, other = shuffled(rng, [symbols[graph.target], symbols[graph.wrong]])
        text = " ".join(sentence(*edge) for edge in shuffled(rng, edges))
        steps = tuple(sentence(*step) for step in zip(graph.path, graph.path[1:], strict=False))
        return Question(
            "", f"{text} Is {symbols[graph.root]} a {one} or {other}?", symbols[graph.target], rationale=steps
        )

    def canonical(self, answer: str, question: Question) -> str | None:
        """The word that an answer names: "Tom is a lempus." is "lempus"."""
        return _offered(answer, question) or None

    def read(self, text: str, question: Question) -> Reading:
        return read_text(
            text,
            stated=lambda said: _offered(_SENTENCE_END.split(said.strip(), maxsplit=1)[0], question),
            whole=lambda said: _offered(said, question),
            elsewhere=lambda rest: _concluded(rest, question),
        )

    @cached_property
    def _published(self) -> Published:
        """What the questions of `data` are made of. Raises UsageError if they have too few words to make others of."""
        assert self.data is not None
        held = [split for split in SPLITS if holds_split(self.data, split)]
        texts = [question.text for split in held for question in self.questions(split, None)]
        graphs = [_children_of(text) for text in texts]
        inner = {below for children in graphs for every in children.values() for below in every}
        outer = {above for children in graphs for above in children} - inner
        if len(inner) < max(_NODES) - 2 or len(outer) < _FEWEST:
            raise UsageError(
                f"`--data {self.data}` has no training questions, and they are made of the words of its others, which have "
                f"{len(inner)} words and {len(outer)} people where {max(_NODES) - 2} and {_FEWEST} are needed: give the "
                f"whole published files, or leave `--data` out."
            )
        return Published(tuple(sorted(outer)), tuple(sorted(inner)), frozenset(map(_shape_of, graphs)))

    def _question(self, row: Fields, identity: str, where: str) -> Question:
        """The question of a published row. where: the place of the row, with which messages begin."""
        text, answer, steps = (row.get(key) for key in ("question", "answer", "steps"))
        if not isinstance(text, str) or not _ASKED.search(text):
            raise UsageError(f'{where} must have a `question` that ends like "Is Tom a lempus or rorpus?": correct it.')
        if not isinstance(steps, list) or not all(isinstance(step, str) for step in steps):
            raise UsageError(f"{where} must have a list of texts as its `steps`: correct it.")
        question = Question(identity, text.strip(), str(answer), rationale=tuple(steps))
        word = self.canonical(question.answer, question)
        if word is None:
            raise UsageError(f"{where} must have one of the two words as its `answer`, not {answer!r:.60}: correct it.")
        return Question(identity, question.text, word, rationale=question.rationale)


def words_of(split: str) -> list[str]:
    """All invented words of a split. No other split has one of them, and neither have the published questions."""
    return [f"{onset}{rime}pus" for onset in _ONSETS.split() for rime in _RIMES[split].split()]


def draw_graph(rng: random.Random) -> Graph:
    """Draws a graph with a question."""
    while True:
        number, steps = _weighted(rng, _NODES), _weighted(rng, _STEPS)
        for _ in range(_TRIES):  # with the same numbers, as otherwise long ways would be too rare
            graph = _with_question(rng, *_draw_parents(rng, number), steps)
            if graph is not None:
                return graph


def _with_question(rng: random.Random, parents: list[list[int]], roots: list[set[int]], steps: int) -> Graph | None:
    """Chooses what is asked about a graph; None if there is nothing to ask, or a person of whom nothing is said.

    Args:
        rng: the source of chance.
        parents: of each node.
        roots: which of nodes 0 and 1 each node descends from.
        steps: length of the shortest way to the right word.
    """
    childless = set(range(len(parents))).difference(*parents)
    if any(not parents[node] for node in childless):
        return None
    root = pick(rng, (0, 1))
    paths = _shortest(parents, root)
    right = [node for node in sorted(childless) if roots[node] == {root} and len(paths[node]) == steps + 1]
    wrong = [node for node in sorted(childless) if roots[node] == {1 - root}]
    if not right or not wrong:
        return None
    target = pick(rng, right)
    return Graph(tuple(map(tuple, parents)), root, target, pick(rng, wrong), paths[target])


def shape(parents: Sequence[Sequence[int]]) -> str:
    """What graphs have in common that differ in the order of their nodes only: numbers of parents and children, sorted."""
    children = [sum(node in of for of in parents) for node in range(len(parents))]
    return " ".join(sorted(f"{len(of)}-{below}" for of, below in zip(parents, children, strict=True)))


def _children_of(text: str) -> dict[str, list[str]]:
    """For each name and word of a question of which something is said, what it is."""
    children: dict[str, list[str]] = {}
    for match in _SAID.finditer(text):
        children.setdefault(match[1], []).append(match[2])
    return children


def _shape_of(children: Mapping[str, Sequence[str]]) -> str:
    """The shape of the graph of a question. children: from `_children_of`."""
    nodes = list(dict.fromkeys([*children, *(below for every in children.values() for below in every)]))
    return shape([[above for above, node in enumerate(nodes) if of in children.get(node, ())] for of in nodes])


def _draw_parents(rng: random.Random, number: int) -> tuple[list[list[int]], list[set[int]]]:
    """Draws the parents of each node, and which of nodes 0 and 1 each descends from. Deep nodes are preferred as parents."""
    parents: list[list[int]] = []
    roots: list[set[int]] = []
    depths: list[int] = []
    # for each root, and for none (-1): the nodes that do not descend from it, and the sums of their weights so far
    without: dict[int, tuple[list[int], list[float]]] = {root: ([], []) for root in (-1, 0, 1)}
    for node in range(number):
        chance = rng.random()
        candidates, sums = without[1 if chance < _OF_ONE_ROOT else 0 if chance < 2 * _OF_ONE_ROOT else -1]
        chosen = _drawn(rng, candidates, sums, _weighted(rng, _PARENTS) if node > 1 else 0)
        parents.append(chosen)
        roots.append(set().union(*(roots[parent] for parent in chosen)) if node > 1 else {node})
        depths.append(1 + min((depths[parent] for parent in chosen), default=-1))
        for root, (nodes, weights) in without.items():
            if root not in roots[node]:
                nodes.append(node)
                weights.append((weights[-1] if weights else 0) + 1.5 * depths[node] + 1)
    return parents, roots


def _drawn(rng: random.Random, nodes: Sequence[int], sums: Sequence[float], wanted: int) -> list[int]:
    """Draws different nodes by their weights. sums: of the weights of the first nodes, for each node."""
    chosen: list[int] = []
    while len(chosen) < min(wanted, len(nodes)):
        node = nodes[bisect(sums, rng.random() * sums[-1])]
        if node not in chosen:
            chosen.append(node)
    return chosen


def _weighted(rng: random.Random, weights: Mapping[int, float]) -> int:
    """Draws a key by its weight."""
    place = rng.random() * sum(weights.values())
    for key, weight in weights.items():
        place -= weight
        if place < 0:
            return key
    return key


def _shortest(parents: Sequence[Sequence[int]], root: int) -> list[tuple[int, ...]]:
    """The nodes of a shortest way from the root to each node; empty where there is none."""
    paths: list[tuple[int, ...]] = []
    for node, above in enumerate(parents):
        ways = [(*paths[parent], node) for parent in above if paths[parent]]
        paths.append((root,) if node == root else min(ways, key=len, default=()))
    return paths


def _offered(said: str, question: Question) -> str | None:
    """The one of a question's two words that a text names; `SEVERAL` if it names both, None if it names none."""
    asked = _ASKED.search(question.text)
    said = _NOT.sub("", said)
    words = [asked["one"], asked["other"]] if asked else []
    named = [word.lower() for word in words if re.search(rf"\b{word}\b", said, re.IGNORECASE)]
    return SEVERAL if len(named) > 1 else named[0] if named else None


def _concluded(text: str, question: Question) -> str | None:
    """The word of the last sentence that names one of the two."""
    found = (_offered(sentence, question) for sentence in reversed(_SENTENCE_END.split(text)))
    return next((word for word in found if word is not None), None) or None
