"""Measures how many greedy chains of a thinker are right while it is trained, for `scale-train --select accuracy`.

The loss of a target is computed after the target's own tokens. A run reads the backbone's own tokens instead, so a lower
loss need not come with more right answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from transformers import PreTrainedModel

from contrastive.health import Accuracy
from contrastive.parallel import Processes
from contrastive.thinker import Thinker
from scaling.engines.base import Decoding
from scaling.engines.local.engine import TransformersEngine, fitted_engine
from scaling.engines.stops import stops_for
from scaling.methods.base import Method
from scaling.methods.softcot import SoftCoT
from scaling.methods.thoughts import Thinking
from scaling.models.loading import LanguageModel
from scaling.prompts import stop_strings
from scaling.reading import equality, reader
from scaling.records.errors import UsageError
from scaling.records.intervals import wilson_of_chains
from scaling.sampler import Grid, sample
from scaling.tasks.equality import AnswerChecker
from scaling.tasks.task import LoadedTask
from scaling.training.config import TrainConfig
from scaling.training.targets import Split
from scaling.wording import Wording, wording_of

Tell = Callable[[int, int, int], None]  # is called with the numbers of right, of finished and of all chains


def accuracy_of(
    config: TrainConfig,
    split: Split,
    thinker: Thinker,
    backbone: LanguageModel,
    assistant: LanguageModel | None,
    tell: Tell,
    processes: Processes,
) -> GreedyAccuracy:
    """What measures the accuracy of a thinker while it is trained.

    Args:
        config: the resolved settings of the training.
        split: its questions; those to validate on are asked.
        thinker: is used as it is whenever the accuracy is measured.
        backbone: decodes.
        assistant: the model that the thinker reads questions with; None where it needs none.
        tell: is told how far a measurement is.
        processes: those that train together.
    """
    task, size, wording = split.task.definition, config.soft_tokens, wording_of(config)

    def method() -> Method:
        used = thinker.first_slots(size)  # may be a copy, so it has to be made whenever the accuracy is measured
        thinking = Thinking(assistant, backbone, used, task=task, num_tokens=size, wording=wording)
        return SoftCoT(backbone, thinking, task=task, num_slots=size, wording=wording)

    return GreedyAccuracy(
        method,
        replace(split.task, questions=split.validation),
        num_paths=config.latent_paths,
        wording=wording,
        tell=tell,
        processes=processes,
    )


class GreedyAccuracy:
    """The accuracy of one greedy chain for each latent path of each question, as a method answers when it is called.

    The chains are those of `scale-run --samples 1 --temperature 0`, on the engine in this process.
    """

    def __init__(
        self,
        method: Callable[[], Method],
        task: LoadedTask,
        *,
        num_paths: int,
        wording: Wording,
        tell: Tell,
        processes: Processes,
    ) -> None:
        """Prepares the sampling.

        Args:
            method: returns the method as it is now, which makes the prompts.
            task: the questions, and how answers are read and judged. Chains are as long as its default allows.
            num_paths: N, the latent paths.
            wording: how the backbone is asked.
            tell: is told how far a measurement is, of the share of this process.
            processes: share the questions.

        Raises:
            UsageError: where a question fills the backbone's context.
        """
        self._method, self._task, self._num_paths, self._wording = method, task, num_paths, wording
        self._tell, self._processes = tell, processes
        now = method()
        self._backbone = now.backbone
        self._longest = max(now.asked(question).prompt_tokens for question in task.questions)
        # where a question is long, all chains get a lower token limit; a run would be refused
        self._new_tokens = min(task.definition.max_new_tokens, now.backbone.context - self._longest)
        if self._new_tokens < 1:
            raise UsageError(
                f"a question to validate on fills the backbone's context of {now.backbone.context} tokens, so that "
                f"`--select accuracy` can sample no chain: leave it out of the data, or use `--select loss`."
            )

    def __call__(self) -> Accuracy:
        """The accuracy of the method as it is now. With several processes, each samples a share, and all get the result."""
        places = self._processes.share(range(len(self._task.questions)))
        right = list(self._processes.collect(self._right(places)).values())
        low, high = wilson_of_chains(right, self._num_paths)
        chains = len(right) * self._num_paths
        return Accuracy(value=sum(right) / chains, low=low, high=high, chains=chains, questions=len(right))

    def _right(self, places: range) -> dict[int, int]:
        """The number of right chains of each question, by its place in the task. places: of the questions that are asked."""
        place_of = {self._task.questions[place].id: place for place in places}
        right = dict.fromkeys(places, 0)
        grid = Grid([self._task.questions[place] for place in places], self._num_paths, num_samples=1, seed=0)
        total = len(places) * self._num_paths
        backbone, definition = self._backbone, self._task.definition
        stop = stops_for(stop_strings(backbone.tokenizer), backbone.tokenizer)
        self._tell(0, 0, total)
        with AnswerChecker() as checker, _attention_put_back(backbone.model):
            equal = equality(checker, definition)
            completions = sample(
                grid,
                (),
                method=self._method(),
                engine=self._engine(),
                decoding=Decoding(0.0, 1.0, 0, self._new_tokens, stop=stop),
                read=reader(backbone.tokenizer, definition, equal=equal, wording=self._wording),
            )
            for done, completion in enumerate(completions, start=1):
                right[place_of[completion.question_id]] += completion.correct
                self._tell(sum(right.values()), done, total)
        return right

    def _engine(self) -> TransformersEngine:
        """An engine within the memory that is free now. Its packed weights are freed with it, before training goes on."""
        backbone = self._backbone
        tokens = self._longest + self._new_tokens
        return fitted_engine(backbone.model, end_tokens=backbone.end_tokens, tokens_per_row=tokens)


@contextmanager
def _attention_put_back(model: PreTrainedModel) -> Iterator[None]:
    """Gives a model back the attention that it has now, as an engine may give it another one.

    A training must take the same steps whether or not a validation came before them in the same process.
    """
    before = model.config._attn_implementation
    try:
        yield
    finally:
        if model.config._attn_implementation != before:
            model.set_attn_implementation(before)
