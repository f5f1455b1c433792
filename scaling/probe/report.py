"""The figures of a probe, and what they say in sentences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from scaling.probe.facts import ANSWER, OPERAND, OPERATION, RESULT
from scaling.probe.measure import CONSTANT, NONE, OTHER, OWN, RATIONALE, Estimate, Losses
from scaling.probe.states import PLACES, SLOTS

_HOLDS = 0.5  # of what there is to gain over chance, so much must be read for "holds"
_LITTLE = 0.02  # nats a token: a difference that may be certain and still matters to nobody


@dataclass(frozen=True)
class Room:
    """Losses of the answer's own tokens, and what a rationale takes of them.

    Attributes:
        tokens: mean number of tokens of an answer.
        per_token, per_answer: mean losses in nats by what stands before the answer: `none` (the question alone), `rationale`
            and, where there is one, `constant`, the best constant prompt.
        room: the loss after the question minus the loss after question and rationale, in nats a token.
        room_per_answer: the same in nats an answer.
        constant: what the best constant prompt takes, in nats a token; None without one.
        left: the room that is left beside it, in nats a token; None without one.
    """

    tokens: float
    per_token: Mapping[str, float]
    per_answer: Mapping[str, float]
    room: Estimate
    room_per_answer: Estimate
    constant: Estimate | None
    left: Estimate | None

    @classmethod
    def of(cls, losses: Losses) -> Room:
        tuned = CONSTANT in losses.sums
        return cls(
            tokens=float(losses.tokens.double().mean()),
            per_token={name: losses.per_token(name) for name in losses.sums},
            per_answer={name: losses.per_answer(name) for name in losses.sums},
            room=losses.gain(NONE, RATIONALE),
            room_per_answer=losses.gain(NONE, RATIONALE, per_token=False),
            constant=losses.gain(NONE, CONSTANT) if tuned else None,
            left=losses.gain(CONSTANT, RATIONALE) if tuned else None,
        )


@dataclass(frozen=True)
class ProbedFact:
    """How well something that the answer needs is read from the assistant's states.

    Attributes:
        name: what is read. kind: of what sort it is, see `scaling.probe.facts`.
        classes: the number of its classes; 0 for an amount.
        chance: the score without states.
        questions: how many tell it.
        scores: by place, the share read rightly, of an amount the share of the variance that is explained (R2).
        gains: by place, how much of what there is to gain over chance is gained.
    """

    name: str
    kind: str
    classes: int
    chance: float
    questions: int
    scores: Mapping[str, float]
    gains: Mapping[str, Estimate]


@dataclass(frozen=True)
class Oracle:
    """What thoughts do that are optimised for each question.

    Attributes:
        scored_on: what the thoughts were not optimised on and are scored on.
        second_chain: whether that is a second chain of each question. On an answer alone a failure decides nothing, as the
            thoughts have learned the wording of a chain.
        own_chain, unseen: mean losses in nats a token of the chain that they were optimised on, and of what they are scored
            on: `none` (without thoughts), `constant` (where all began), `own`, and `other` (thoughts of another question).
        gain: `constant` minus `own` of the latter: how much they help.
        information: `other` minus `own` of the latter: how much of it belongs to the question.
    """

    scored_on: str
    second_chain: bool
    own_chain: Mapping[str, float]
    unseen: Mapping[str, float]
    gain: Estimate
    information: Estimate

    @classmethod
    def of(cls, own: Losses, unseen: Losses, *, another: bool) -> Oracle:
        """another: whether the unseen targets are second chains of the same questions, and not answers alone."""
        return cls(
            "another chain of the same question" if another else "the answer alone",
            another,
            {name: own.per_token(name) for name in own.sums},
            {name: unseen.per_token(name) for name in unseen.sums},
            unseen.gain(CONSTANT, OWN),
            unseen.gain(OTHER, OWN),
        )


@dataclass(frozen=True)
class Preferred:
    """The place that tells more than the slots. more: by how much, as a share of what there is to gain."""

    place: str
    more: Estimate


@dataclass(frozen=True)
class Report:
    """All figures of a probe.

    Attributes:
        task, backbone, assistant: their names.
        settings: all options with their values.
        questions: how many were measured.
        room: losses of answers.
        layers: the layer of each place at which most was read.
        facts: what was read from the states, at that layer.
        not_probed: sentences about what could not be asked for.
        preferred: the place that tells more than the slots; None if none does for certain.
        oracle: None where it was not asked for.
        seconds: that the probe took.
    """

    task: str
    backbone: str
    assistant: str
    settings: Mapping[str, Any]
    questions: int
    room: Room
    layers: Mapping[str, int]
    facts: tuple[ProbedFact, ...]
    not_probed: tuple[str, ...]
    preferred: Preferred | None
    oracle: Oracle | None
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """What `scale-probe --json` prints: the figures and the verdict."""
        return {**asdict(self), "verdict": self.verdict()}

    def verdict(self) -> list[str]:
        """What the figures say, in sentences."""
        return [self._room(), *self._constant(), *self._states(), *self._oracle(), self._whole()]

    def _room(self) -> str:
        room, whole = self.room.room_per_answer, self.room.per_answer[NONE]
        if not _matters(self.room.room):
            return f"No room is measurable: the rationale changes the loss of an answer by {_interval(room, sign=-1)} nats."
        return f"There is room: the rationale takes {_interval(room)} of the {whole:.2f} nats of an answer."

    def _constant(self) -> Iterator[str]:
        constant, left = self.room.constant, self.room.left
        if constant is None or left is None:
            return
        taken = f"takes {_interval(constant)} nats a token" if constant.positive else "takes nothing measurable"
        if _matters(left):
            yield f"A constant prompt {taken}; {_interval(left)} are left for what depends on the question."
        else:
            yield f"A constant prompt {taken} and leaves no room for what depends on the question."

    def _states(self) -> Iterator[str]:
        """For each kind of fact, where it is held; and the states to train on."""
        kinds = dict.fromkeys(fact.kind for fact in self.facts)
        by_holders: dict[tuple[str, ...], list[str]] = {}
        for kind in sorted(kinds, key=[ANSWER, OPERATION, OPERAND, RESULT].index):
            by_holders.setdefault(tuple(self._held(kind, place) for place in PLACES), []).append(kind)
        for held, names in by_holders.items():
            yield f"The {_joined(names)}: {_places(held)}."
        if not self.facts:
            yield f"The states were not probed ({'; '.join(self.not_probed) or 'the task tells no fact'})."
        elif self.preferred:
            yield (
                f"{_first_upper(PLACES[self.preferred.place])} tells more than the slots: train with "
                f"`--states {self.preferred.place}`."
            )
        else:
            yield f"No other states tell more than the slots for certain: `--states {SLOTS}` will do."

    def _held(self, kind: str, place: str) -> str:
        """Whether a place holds all facts of a kind, some of them or of their amount, or nothing."""
        gains = [fact.gains[place] for fact in self.facts if fact.kind == kind]
        if all(gain.positive and gain.mean >= _HOLDS for gain in gains):
            return _HELD
        return _PARTLY if any(gain.positive for gain in gains) else _NOT

    def _oracle(self) -> Iterator[str]:
        if self.oracle is None:
            return
        gain, losses = self.oracle.gain, self.oracle.unseen
        what = f"from {losses[CONSTANT]:.2f} to {losses[OWN]:.2f} nats a token on {self.oracle.scored_on}"
        if _matters(gain):
            yield f"There are thoughts that help: optimised on a question's own chain, they lower the loss {what}."
        elif _matters(self.oracle.information):
            yield (
                f"Thoughts optimised on a question's own chain carry their question ({losses[OTHER]:.2f} nats a token with "
                f"another question's, {losses[OWN]:.2f} with the own), and yet help no more than the constant prompt "
                f"({losses[CONSTANT]:.2f}): they have learned the chain's wording, too."
            )
        else:
            open_ = "" if self.oracle.second_chain else "; with one chain that decides nothing, see `--targets self`"
            yield f"No thoughts that help were found: optimised on a question's own chain, they take the loss {what}{open_}."

    def _whole(self) -> str:
        """The verdict in one sentence."""
        left = self.room.left or self.room.room
        if not _matters(left):
            return "Verdict: thoughts have nothing to gain here that a constant prompt has not; take another task or target."
        best = self.preferred.place if self.preferred else SLOTS
        reads = [fact.gains[best] for fact in self.facts]
        if reads and not any(gain.positive for gain in reads):
            return "Verdict: there is room, but no linear map finds what is needed in this assistant's states."
        oracle = self.oracle
        if oracle and oracle.second_chain and not (_matters(oracle.gain) or _matters(oracle.information)):
            return "Verdict: there is room, but not even thoughts of the question's own chain brought anything."
        return f"Verdict: thoughts can help here; begin with `--states {best}`, and judge them by the best constant prompt."


_HELD, _PARTLY, _NOT = "held", "held in part", "not held"


def _places(held: tuple[str, ...]) -> str:
    """In which places something is held, in words. held: for each of `PLACES`."""
    by_state: dict[str, list[str]] = {}
    for place, state in zip(PLACES.values(), held, strict=True):
        by_state.setdefault(state, []).append(place)
    prepositions = {_HELD: "held by", _PARTLY: "held in part by", _NOT: "not held by"}
    return ", ".join(f"{prepositions[state]} {_joined(by_state[state])}" for state in prepositions if state in by_state)


def _matters(gain: Estimate) -> bool:
    """Whether a gain in nats a token is certain and not tiny."""
    return gain.positive and gain.mean >= _LITTLE


def _interval(value: Estimate, *, sign: int = 1) -> str:
    low, high = sorted((sign * value.low, sign * value.high))
    return f"{sign * value.mean:.2f} ({low:.2f} to {high:.2f})"


def _joined(words: list[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _first_upper(text: str) -> str:
    return text[0].upper() + text[1:]
