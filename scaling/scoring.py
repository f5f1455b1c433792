"""Scores of a run's chains by a user's function or a reward model, for best-of-n votes: the higher, the better the chain.

`python -m scaling.scoring FOLDER --scorer S --out FILE` scores the run in FOLDER. `scale-report --scorer` calls it, as
reports load no models. A text is scored once: scores lie in the cache folder under the scorer, the question and the text, so
that a second report, or a run that was extended, asks only for what is new.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from scaling.cache import Cache
from scaling.records.errors import UsageError, one_line
from scaling.records.journal import load, load_questions
from scaling.records.plugins import installed, is_spec, load_object
from scaling.records.records import Completion, PromptedQuestion, Question
from scaling.tasks.task import with_options

GROUP = "softcotpp.scorers"  # entry points under which packages install scorers
Score = Callable[[str, list[str]], Sequence[float]]  # (question, chains) -> one score for each chain
Pair = tuple[str, str]  # (question, chain)

_TOGETHER = 64  # most chains of a question in one call of a scorer
_TOKENS = 16_384  # most tokens in a reward model's batch, with padding


def score_run(folder: Path, spec: str, cache: Path, tell: Callable[[int, int], None]) -> Iterator[dict[str, Any]]:
    """Scores every chain of a run. Only texts that the cache does not hold are scored.

    Args:
        folder: the run directory.
        spec: the scorer, see `scorer_of`.
        cache: the folder with the scores of earlier calls.
        tell: is called with the number of chains scored so far and the number to score.

    Yields:
        For every chain {"question_id", "path", "sample", "score"}.

    Raises:
        UsageError: the scorer cannot be loaded, or does not return one finite number for each chain.
    """
    _, completions = load(folder)
    texts = {asked.id: _text(asked) for asked in load_questions(folder)}
    scored = [completion for completion in completions if completion.question_id in texts]
    score, identity = scorer_of(spec)
    path = cache / f"{hashlib.sha256(identity.encode()).hexdigest()[:16]}.jsonl"
    known = Cache(path, lambda line: (line["key"], float(line["score"])))
    pairs = dict.fromkeys((texts[completion.question_id], completion.text) for completion in scored)  # each text once
    new = [pair for pair in pairs if _key(pair) not in known]
    done = 0
    for question, chains in _together(new):
        scores = _checked(score(question, chains), len(chains), spec)
        keys = [_key((question, chain)) for chain in chains]
        known.add({"key": key, "score": score} for key, score in zip(keys, scores, strict=True))
        done += len(chains)
        tell(done, len(new))
    yield from (
        _line(completion, known[_key((texts[completion.question_id], completion.text))]) for completion in scored
    )


def _line(completion: Completion, score: float) -> dict[str, Any]:
    return {
        "question_id": completion.question_id,
        "path": completion.path,
        "sample": completion.sample,
        "score": score,
    }


def _text(asked: PromptedQuestion) -> str:
    return with_options(Question(asked.id, asked.text, asked.answer, asked.choices))


def _together(pairs: Sequence[Pair]) -> Iterator[tuple[str, list[str]]]:
    """Groups chains by question: the arguments of each call of a scorer."""
    chains_of: dict[str, list[str]] = {}
    for question, chain in pairs:
        chains_of.setdefault(question, []).append(chain)
    for question, chains in chains_of.items():
        for start in range(0, len(chains), _TOGETHER):
            yield question, chains[start : start + _TOGETHER]


def _checked(scores: Any, number: int, spec: str) -> list[float]:
    """The scores as floats. Raises UsageError unless they are `number` finite numbers."""
    try:
        values = [float(score) for score in scores]
    except (TypeError, ValueError):
        values = []
    if len(values) != number or not all(map(math.isfinite, values)):
        raise UsageError(
            f"`--scorer` {spec} must return {number} finite numbers for {number} chains, the higher the better; it returned "
            f"{str(scores)[:100]}"
        )
    return values


def _key(pair: Pair) -> str:
    """The key of a question and a chain in the cache."""
    return hashlib.sha256(f"{pair[0]}\0{pair[1]}".encode("utf-8", "surrogatepass")).hexdigest()[:32]


def scorer_of(spec: str) -> tuple[Score, str]:
    """Loads a scorer.

    Args:
        spec: a function, as `load_object` names it, or the folder or Hub id of a sequence-classification model with one
            output. A function is called as function(question, chains) and returns one number for each chain.

    Returns:
        The scorer, and a text that identifies it in the cache: its name with the content of its file.

    Raises:
        UsageError: there is no such scorer, or it cannot be loaded.
    """
    if Path(spec).is_dir() or not (is_spec(spec) or spec in installed(GROUP)):
        return reward_model(spec), f"{spec}\0{_weights_stamp(Path(spec))}"
    loaded = load_object(spec, option="--scorer", group=GROUP)
    return loaded.object, f"{spec}\0{loaded.source_sha256}"


def _weights_stamp(folder: Path) -> str:
    """Names, sizes and times of a local model's weights, which change if it is trained again; empty for a Hub id."""
    files = sorted(folder.glob("*.safetensors")) + sorted(folder.glob("*.bin"))
    return "\0".join(f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files)


def reward_model(name: str) -> Score:
    """Loads a sequence-classification model with one output as a scorer.

    The model reads question and chain in its chat format if it has one, else as a pair of texts.

    Args:
        name: folder or Hub id of the model.

    Raises:
        UsageError: it cannot be loaded, or has several outputs.
    """
    import torch

    from scaling.models.hardware import pick_device

    device = pick_device("auto")
    tokenizer, model = _loaded(name, device)
    encoded = _encoder(tokenizer)

    @torch.inference_mode()
    def score(question: str, chains: list[str]) -> list[float]:
        rows = [encoded(question, chain) for chain in chains]
        scores = [0.0] * len(rows)
        for batch in _batches(rows):
            inputs = tokenizer.pad({"input_ids": [rows[i] for i in batch]}, padding_side="right", return_tensors="pt")
            logits = model(**inputs.to(device)).logits[:, 0].float().tolist()
            for i, value in zip(batch, logits, strict=True):
                scores[i] = value
        return scores

    return score


def _loaded(name: str, device: str) -> tuple[Any, Any]:
    """Tokenizer and model of `reward_model`, which raises as this does."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from scaling.models.hardware import pick_dtype
    from scaling.models.model_files import with_revision

    place, revision = (name, "main") if Path(name).exists() else with_revision(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, revision=revision, trust_remote_code=False)
        model = AutoModelForSequenceClassification.from_pretrained(
            place, revision=revision, dtype=pick_dtype("auto", device), trust_remote_code=False
        )
    except (OSError, ValueError, ImportError) as error:
        raise UsageError(
            f"`--scorer` {name} is neither `module:function` nor a sequence-classification model that can be loaded "
            f"({one_line(error)})"
        ) from None
    if model.config.num_labels != 1:
        raise UsageError(
            f"`--scorer` {name} has {model.config.num_labels} outputs, and a reward model has one; give another model, or "
            f"write `module:function` that makes one number of them"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id
    return tokenizer, model.to(device).eval()


def _encoder(tokenizer: Any) -> Callable[[str, str], list[int]]:
    """Turns a question and a chain into token ids: in the model's chat format, or as a pair of texts."""
    from scaling.control_tokens import DataEncoder

    data = DataEncoder(tokenizer)

    def conversation(parts: list[str]) -> str:
        turns = [{"role": role, "content": part} for role, part in zip(("user", "assistant"), parts, strict=True)]
        return str(tokenizer.apply_chat_template(turns, tokenize=False))

    def encoded(question: str, chain: str) -> list[int]:
        if tokenizer.chat_template:
            return data.encode([question, chain], conversation)[0]
        plain = not any(map(data.holds_control, (question, chain)))
        return list(tokenizer(question, chain, **({} if plain else {"split_special_tokens": True}))["input_ids"])

    return encoded


def _batches(rows: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Groups rows of token ids into batches, longest first, so that rows of a batch have about the same length.

    Yields:
        The indices of the rows of each batch. With padding it has at most `_TOKENS` tokens, unless it is a single row.
    """
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    start = 0
    while start < len(order):
        stop = start + max(1, _TOKENS // max(1, len(rows[order[start]])))
        yield order[start:stop]
        start = stop


def main() -> None:
    """Runs the command that the module describes."""
    parser = argparse.ArgumentParser(prog="scaling.scoring", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--scorer", required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    from rich.console import Console
    from rich.progress import Progress

    from scaling.cache import cache_folder

    try:
        with Progress(console=Console(stderr=True)) as progress, arguments.out.open("w") as file:
            bar = progress.add_task(f"scoring {arguments.folder}", total=None)
            tell = lambda done, total: progress.update(bar, completed=done, total=total)  # noqa: E731
            for line in score_run(arguments.folder, arguments.scorer, cache_folder() / "scores", tell):
                file.write(json.dumps(line) + "\n")
    except UsageError as error:
        print(error)  # to stdout: stderr belongs to the progress bar and to the scorer
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
