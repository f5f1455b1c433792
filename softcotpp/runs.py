"""`sc.run` and `sc.load`: make or read a run, as an object with completions, thoughts, votes and estimates."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from dataclasses import asdict
from functools import cached_property
from html import escape
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from rich.console import Console

from analysis.clusters import clusters_of
from analysis.differences import mean_share
from analysis.estimators import vote as voted
from analysis.load import Run as Figures
from analysis.load import load as read_figures
from analysis.statistics import Interval
from analysis.voters import Outside, rule
from scaling.config import RunConfig
from scaling.records.errors import UsageError, counted, nearest
from scaling.records.journal import load as read_journal
from scaling.records.journal import load_questions, load_run, load_summary
from scaling.records.records import Completion, PromptedQuestion, Question
from scaling.records.summary import right_answers
from scaling.records.voters import Voter, Weigh, voter_of
from softcotpp.options import folder_of, interruptible, settings_from, with_options_of

if TYPE_CHECKING:
    from torch import Tensor

    from scaling.run import Setup


@with_options_of(RunConfig)
def run(*, quiet: bool = False, **options: Any) -> Run:
    """Samples N latent paths x M completions for every question and votes, as `scale-run` does.

    The same call with the same `out` continues the run. More paths, samples or questions extend it.

    Args:
        quiet: whether to show no progress.
        options: options of `scale-run`, with `_` for `-`. `config` is a YAML file with options. Without `out` the run is in
            a temporary folder, which is deleted together with the returned object.

    Raises:
        UsageError: where the command would print an error.
        KeyboardInterrupt: after Ctrl-C. Completions that were finished stay in `out`.
    """
    settings = settings_from(options, RunConfig, call="sc.run")
    from scaling.display import RunProgress
    from scaling.run import carry_out, prepare

    _LATEST.clear()  # so that two runs' models are not in memory at once
    temporary = Path(tempfile.mkdtemp(prefix="softcotpp-")) if settings.out is None else None
    settings = settings.model_copy(update={"out": temporary}) if temporary else settings
    try:
        with (
            interruptible(kept=not temporary),
            RunProgress(Console(stderr=True, quiet=quiet), voter=settings.voter) as watch,
        ):
            setup = prepare(settings, watch)
            carry_out(setup, watch)
    except BaseException:
        if temporary:
            shutil.rmtree(temporary, ignore_errors=True)
        raise
    result = Run(settings.out or Path())
    if temporary:
        weakref.finalize(result, shutil.rmtree, temporary, ignore_errors=True)
    _LATEST[result.folder] = setup
    return result


def load(folder: str | Path) -> Run:
    """The run in a directory that `scale-run` or `sc.run` wrote. Raises UsageError where there is none."""
    place = folder_of(folder, what="the folder of `sc.load`")
    load_run(place)
    return Run(place)


class Run:
    """A run of N latent paths x M samples, from `sc.run` or `sc.load`.

    Attributes:
        folder: its directory, as an absolute path; see docs/files.md.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The settings of the run, with fingerprints of its data and models, from run.json."""
        config: dict[str, Any] = load_run(self.folder)["config"]
        return config

    @cached_property
    def summary(self) -> pd.DataFrame:
        """The figures of summary.json in one row.

        Nested figures have names like `tokens.generated`. `pandas.concat` puts the rows of several runs together.
        """
        return pd.json_normalize(self._summary).rename(index={0: self._called})

    @cached_property
    def completions(self) -> pd.DataFrame:
        """A row for each completion, in the order of questions, paths and samples.

        The columns are those of samples.jsonl: question_id, path, sample, text, answer, correct and others.
        """
        rows = pd.DataFrame([asdict(one) for one in self._completions], columns=list(Completion.__dataclass_fields__))
        return rows.reset_index(drop=True)

    @cached_property
    def questions(self) -> pd.DataFrame:
        """A row for each question: id, text, gold answer, the prompt, and its lengths in tokens."""
        return pd.DataFrame([asdict(one) for one in self._asked])

    def thoughts(self, question: str | int) -> Tensor:
        """The soft thoughts of a question, [N, L, D] float32. Loads the models where they are not in memory.

        Args:
            question: its id, or its place among `questions`, from 0.

        Raises:
            UsageError: the question is unknown, the method has no soft thoughts, or the models, the checkpoint or the
                method's code have changed since the run.
        """
        import torch

        asked = self._question(question)
        setup = self._setup()
        # as the run read it, with the rationale that questions.jsonl leaves out
        asked = next((known for known in setup.task.questions if known.id == asked.id), asked)
        prompts = setup.method.prompts(asked, range(setup.config.num_paths))
        thoughts = torch.stack([prompt.thoughts for prompt in prompts])
        if not thoughts.numel() and setup.config.control == "none":
            raise UsageError(
                "this run has no `thoughts`, as its `--control none` leaves the slots empty: ask another run."
            )
        if not thoughts.numel():
            raise UsageError(
                f"`thoughts` are those of methods with soft thoughts, and this run's is `{setup.config.method}`."
            )
        return thoughts

    def vote(self, voter: str | Weigh = "flat") -> pd.DataFrame:
        """The vote over all N x M completions of each question.

        Args:
            voter: as for `scale-run --voter`, or a function of a question and its completions that returns a weight for
                each of them.

        Returns:
            A row for each question: question_id, answer, votes for this answer, whether it was tied with another, the gold
            answer, and whether the answer is correct.
        """
        chosen = _voter(voter)
        by_question: dict[str, list[Completion]] = {asked.id: [] for asked in self._asked}
        for one in self._completions:
            by_question[one.question_id].append(one)
        rows = []
        for asked in self._asked:
            chains = by_question[asked.id]
            vote = chosen.vote(asked, chains)
            columns = {"answer": vote.answer, "votes": vote.counts.get(vote.answer or "", 0), "tied": vote.tied}
            correct = vote.answer in right_answers(chains)
            rows.append({"question_id": asked.id, **columns, "gold": asked.answer, "correct": correct})
        return pd.DataFrame(rows)

    def estimate(self, n: int | None = None, m: int | None = None, voter: str | Weigh = "flat") -> Interval:
        """The accuracy that a run of n paths x m samples would have, with its 95 % interval over questions.

        It is the mean over all choices of n paths and m samples from this run.

        Args:
            n: number of paths, up to N; None for N.
            m: samples of each path, up to M; None for M.
            voter: as in `vote`. A function is called for each question, with all its completions.
        """
        figures = self._figures
        most = {"n": figures.num_paths, "m": figures.num_samples}
        for name, value in (("n", n), ("m", m)):
            if value is not None and not (isinstance(value, Integral) and 1 <= value <= most[name]):
                raise UsageError(
                    f"`{name}` is {value!s:.60}, and the run has {most[name]}: give a whole number from 1 to that."
                )
        values = voted(figures.lenient, rule(_voter(voter), figures, Outside())).values
        chosen = values[:, (n or most["n"]) - 1, (m or most["m"]) - 1]
        return mean_share([chosen], clusters=clusters_of([figures.questions]))

    def __repr__(self) -> str:
        return f"<Run {self._called} in {shown(self.folder)}>"

    def _repr_html_(self) -> str:
        """The main figures, as notebooks show them."""
        summary = self._summary
        interval = [
            f"{100 * summary[key]:.1f}" for key in ("accuracy_low", "accuracy_high") if summary[key] is not None
        ]
        rows = {
            "accuracy, %": _percent(summary["accuracy"]) + (f" ({' to '.join(interval)})" if interval else ""),
            "accuracy, hierarchical vote, %": _percent(summary["accuracy_hierarchical"]),
            "pass@1, %": _percent(summary["pass_at_1"]),
            "coverage, %": _percent(summary["coverage"]),
            "questions": summary["num_questions"],
            "completions": summary["num_completions"],
            "seconds": f"{summary['seconds']:.1f}",
        }
        cells = "".join(
            f"<tr><th>{escape(name)}</th><td>{escape(str(value))}</td></tr>" for name, value in rows.items()
        )
        return f"<table><caption>{escape(self._called)}</caption>{cells}</table>"

    @cached_property
    def _summary(self) -> dict[str, Any]:
        """The content of summary.json. Raises UsageError where there is none, as the run is not complete."""
        summary = load_summary(self.folder)
        if summary is None:
            raise UsageError(
                f"{self.folder} has no summary yet: the same `scale-run` command or call continues the run."
            )
        return summary

    @cached_property
    def _asked(self) -> list[PromptedQuestion]:
        return load_questions(self.folder)

    @cached_property
    def _completions(self) -> list[Completion]:
        """The completions of this run's questions, paths and samples, in this order.

        The journal may hold further ones, which an earlier and larger run drew.
        """
        place = {asked.id: number for number, asked in enumerate(self._asked)}
        paths, samples = self.settings["latent_paths"] or 1, self.settings["samples"]
        completions = [
            one
            for one in read_journal(self.folder)[1]
            if one.question_id in place and one.path < paths and one.sample < samples
        ]
        return sorted(completions, key=lambda one: (place[one.question_id], one.path, one.sample))

    @cached_property
    def _figures(self) -> Figures:
        return read_figures(self.folder)

    def _question(self, wanted: str | int) -> Question:
        """A question by its id or its place. Raises UsageError where there is none."""
        ids = [asked.id for asked in self._asked]
        if isinstance(wanted, str) and wanted not in ids:
            raise UsageError(f"the run has no question `{wanted}`.{nearest(wanted, ids)}")
        if not isinstance(wanted, str) and not (isinstance(wanted, Integral) and 0 <= wanted < len(ids)):
            raise UsageError(
                f"`thoughts` of question {wanted!s:.60}, and the run has {counted(len(ids), 'question')}: give an id, or a "
                f"whole number from 0."
            )
        asked = self._asked[ids.index(wanted) if isinstance(wanted, str) else wanted]
        return Question(asked.id, asked.text, asked.answer, asked.choices)

    @property
    def _called(self) -> str:
        config = self.settings
        size = f"{config['latent_paths']} x {config['samples']}"
        return f"{config['method']} on {config['task'] or config['data']}, {size}"

    def _setup(self) -> Setup:
        """Models, method and questions of this run. Those of one run at a time stay in memory."""
        if self.folder not in _LATEST:
            _LATEST.clear()
            _LATEST[self.folder] = _prepared(self.folder, self.settings)
        return _LATEST[self.folder]


_LATEST: dict[Path, Setup] = {}  # at most one: the run that was last made, or last asked for thoughts


def _prepared(folder: Path, recorded: dict[str, Any]) -> Setup:
    """Loads the models and questions of a run again. Raises UsageError where they have changed.

    Args:
        folder: the run directory, for messages.
        recorded: the settings in its run.json.
    """
    from scaling.display import RunProgress
    from scaling.run import prepare

    known = {key: value for key, value in recorded.items() if key in RunConfig.model_fields and value is not None}
    with RunProgress(Console(stderr=True), voter="flat") as watch:
        setup = prepare(settings_from(known, RunConfig, call="sc.load"), watch)
    for key, value in setup.method.identity().items():
        if recorded.get(key) != value and value is not None:
            raise UsageError(
                f"the run in {folder} was made with another `{key}` ({recorded.get(key)}, now {value}), so its thoughts "
                f"cannot be made again: bring back the models, the checkpoint and the code of `--method` that it was made "
                f"with."
            )
    return setup


def shown(folder: Path) -> Path:
    """The folder as messages and reports call it: from the current folder on, where it is inside it."""
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder


def _voter(given: str | Weigh) -> Voter:
    """The voter. Raises UsageError where it needs more than the run itself."""
    voter = voter_of(given, option="voter")
    if voter.needs:
        raise UsageError(
            f"`voter` {voter.name} needs `{voter.needs.removeprefix('--')}`: give both to `sc.report`, or use another."
        )
    return voter


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
