"""Whole trainings of a tiny pair: schedule, what changes, resume after a kill, early stopping, two processes as one."""

from __future__ import annotations

import json
import math
import os
import random
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from contrastive.assistant_thinker import AssistantThinker
from contrastive.health import Accuracy
from contrastive.objective import Objective
from contrastive.prefix import can_extend
from contrastive.projection import new_projection
from contrastive.target_loss import Reader
from contrastive.train import METRICS_FILE, STATE_FILE, ModelChanged, Schedule, Trainer, digest

OBJECTIVE = Objective(num_slots=2, weight=0.1, question_weight=0.1)
ROOM = 1 << 30  # bytes, more than all prompts take
SCHEDULE = Schedule(max_steps=7, batch_size=2, lr=0.02, warmup=2, validate_every=3)


class RecordingObserver:
    """Records what it is told, and raises KeyboardInterrupt at step `die_at`."""

    def __init__(self, *, die_at=None):
        self.rows, self.healths, self._die_at = [], [], die_at

    def started(self, progress, schedule):
        self.first, self.last = progress.step, schedule.max_steps

    def stepped(self, progress, row):
        self.rows.append(row)
        if progress.step == self._die_at:
            raise KeyboardInterrupt

    def examined(self, progress, health):
        self.healths.append((progress.step, health))


@pytest.fixture
def trainer(make_model, new_thinker, some_examples, tmp_path):
    """`trainer(folder, schedule=..., watcher=..., **changes)`: the same thinker and questions every time."""

    def make(folder="out", *, schedule=SCHEDULE, watcher=None, thinker=None, **changes):
        (tmp_path / folder).mkdir(exist_ok=True)
        assistant, backbone = (make_model("llama", seed=seed).requires_grad_(False) for seed in (0, 1))
        examples = some_examples(7)
        settings = {
            "thinker": thinker or new_thinker(),
            "assistant": assistant,
            "reader": Reader(backbone),
            "train": examples[:5],
            "validation": examples[5:],
            "schedule": schedule,
            "objective": OBJECTIVE,
            "folder": tmp_path / folder,
            "keep": lambda *_: None,
            "watcher": watcher or RecordingObserver(),
        }
        return Trainer(**(settings | changes))

    return make


def metrics(folder: Path):
    rows = [json.loads(line) for line in (folder / METRICS_FILE).read_text().splitlines()]
    timed = ("seconds", "tokens_per_second")
    return [{key: value for key, value in row.items() if key not in timed} for row in rows]


def test_the_learning_rate_rises_and_falls_linearly():
    schedule = Schedule(max_steps=10, lr=1.0, warmup=2)
    assert [schedule.lr_at(step) for step in range(10)] == pytest.approx(
        [0.5, 1, 1, *[(10 - s) / 8 for s in range(3, 10)]]
    )
    assert Schedule(max_steps=4, lr=1.0).lr_at(0) == 1.0
    assert Schedule(max_steps=4, lr=1.0).lr_at(3) == 0.25


@pytest.mark.parametrize("batch_size", [1, 2, 5, 9])
def test_an_epoch_has_every_example_once_in_an_order_of_its_own(batch_size):
    schedule, examples = Schedule(max_steps=1, batch_size=batch_size), list("abcdefg")
    per_epoch = math.ceil(len(examples) / batch_size)
    steps = range(per_epoch)
    epochs = [[x for s in steps for x in schedule.batch(examples, e * per_epoch + s)] for e in range(3)]
    assert all(sorted(epoch) == examples for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert schedule.batch(examples, 1) == schedule.batch(examples, 1)
    other = replace(schedule, seed=1)
    assert [other.batch(examples, s) for s in range(per_epoch)] != [
        schedule.batch(examples, s) for s in range(per_epoch)
    ]


def test_examples_are_shuffled_once_an_epoch(monkeypatch):
    """A small model's step takes less time than shuffling many thousand examples."""
    begun = []

    class Counted(random.Random):
        def shuffle(self, order):
            begun.append(len(order))
            super().shuffle(order)

    monkeypatch.setattr(random, "Random", Counted)
    schedule, examples = Schedule(max_steps=1, batch_size=2, seed=712), list("abcdefghi")
    for step in range(10):  # an epoch has 5
        schedule.batch(examples, step)
    assert begun == [9, 9]


def test_training_lowers_the_loss_and_changes_what_is_trained_and_nothing_else(trainer, new_thinker):
    thinker = new_thinker(offset=True)
    before = {name: tensor.clone() for name, tensor in thinker.state_dict().items()}
    observer = RecordingObserver()
    training = trainer(thinker=thinker, watcher=observer, schedule=replace(SCHEDULE, max_steps=30, validate_every=10))
    frozen = [digest(training.assistant), digest(training.reader.backbone)]
    progress = training.run()
    assert (progress.step, progress.stopped_early) == (30, False)
    assert observer.rows[-1]["language"] < observer.rows[0]["language"] - 0.05
    assert all(not torch.equal(tensor, before[name]) for name, tensor in thinker.state_dict().items())
    assert all((t != before["token_sets.vectors"][k]).all() for k, t in enumerate(thinker.token_sets.vectors))
    assert [digest(training.assistant), digest(training.reader.backbone)] == frozen


def test_a_frozen_model_that_changes_is_a_bug_that_is_told(trainer):
    observer = RecordingObserver()
    training = trainer(watcher=observer)

    def spoil(*_):
        with torch.no_grad():
            training.reader.backbone.lm_head.weight[0, 0] += 1e-6

    observer.stepped = spoil
    with pytest.raises(ModelChanged):
        training.run()


def test_a_digest_tells_a_single_bit(make_model):
    model = make_model("llama")
    before = digest(model)
    assert digest(model) == before
    with torch.no_grad():
        weight = model.lm_head.weight
        weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(9.0))
    assert digest(model) != before


@pytest.mark.parametrize(("die_at", "memory"), [(1, None), (4, None), (6, None), (4, ROOM), (6, 20_000)])
def test_a_resumed_training_ends_with_the_same_parameters(trainer, tmp_path, die_at, memory):
    """Also where prompts are kept: the training that goes on keeps others, and has less room for them."""
    whole = trainer("whole", prompt_memory=memory)
    whole.run()
    with pytest.raises(KeyboardInterrupt):
        trainer("cut", watcher=RecordingObserver(die_at=die_at), prompt_memory=memory).run()
    observer = RecordingObserver()
    again = trainer("cut", watcher=observer, prompt_memory=memory and memory - 9_000)
    progress = again.run()
    assert observer.first == (die_at - 1) // 3 * 3  # the last validation; step 6 dies before its own
    for name, tensor in whole.thinker.state_dict().items():
        assert torch.equal(again.thinker.state_dict()[name], tensor), name
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")
    assert progress.step == 7


@pytest.mark.parametrize("max_steps", [7, 3])
def test_prompts_that_come_again_are_read_once(trainer, max_steps):
    """Three epochs of five questions and four validations of two; in a single epoch only the latter come again."""
    pooled = AssistantThinker.pooled("mean", new_projection(32, 32, scale=0.3), num_paths=3, num_slots=2)
    schedule = replace(SCHEDULE, max_steps=max_steps)
    training = trainer(thinker=pooled, prompt_memory=ROOM, schedule=schedule)
    examples, read = [*training.train, *training.validation], []
    assert can_extend(training.assistant)  # tries it out, which also reads

    def count(_, __, given):
        read.extend(ids.tolist() for ids in given["inputs_embeds"][:, 0])

    training.assistant.base_model.register_forward_pre_hook(count, with_kwargs=True)
    training.run()
    embed = training.assistant.get_input_embeddings().weight
    times = [read.count(embed[example.assistant[0]].tolist()) for example in examples]
    assert times == [1] * 7


def test_what_is_kept_changes_nothing_but_the_last_digits(trainer, tmp_path):
    for folder, memory in (("anew", None), ("kept", ROOM)):
        trainer(folder, prompt_memory=memory).run()
    anew, kept = (metrics(tmp_path / folder) for folder in ("anew", "kept"))
    assert len(anew) == len(kept)
    for one, other in zip(anew, kept, strict=True):
        if "language" in one:
            assert one["language"] == pytest.approx(other["language"], rel=1e-4)


def test_a_torn_line_of_metrics_is_forgotten(trainer, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        trainer("cut", watcher=RecordingObserver(die_at=4)).run()
    with (tmp_path / "cut" / METRICS_FILE).open("a") as file:
        file.write('{"step": 5, "langu')
    trainer("cut").run()
    trainer("whole").run()
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")


def test_a_finished_training_is_not_trained_again(trainer):
    first = trainer()
    first.run()
    observer = RecordingObserver()
    again = trainer(watcher=observer)
    assert again.run().step == 7
    assert observer.rows == observer.healths == []
    assert torch.equal(again.thinker.projection.weight, first.thinker.projection.weight)


def test_the_state_is_no_pickle_and_holds_no_frozen_model(trainer, tmp_path):
    training = trainer()
    training.run()
    size = (tmp_path / "out" / STATE_FILE).stat().st_size
    trained = sum(parameter.numel() for parameter in training.thinker.parameters())
    assert size < 4 * 3 * trained + 5000  # parameters and two moments
    assert (tmp_path / "out" / STATE_FILE).read_bytes()[8:9] == b"{"


def test_early_stopping_and_the_best_thinker(trainer):
    """Where nothing moves, nothing gets better than it was before the first step."""
    kept = []
    schedule = replace(SCHEDULE, lr=1e-30, max_steps=20, validate_every=1, patience=2)
    observer = RecordingObserver()
    progress = trainer(schedule=schedule, watcher=observer, keep=lambda *one: kept.append(one)).run()
    assert progress.stopped_early
    assert (progress.step, progress.best_step, progress.waited) == (2, 0, 2)
    assert len({health.loss for _, health in observer.healths}) == 1
    assert [(health.loss, step, better) for health, step, better in kept] == [
        (progress.best, step, step == 0) for step in range(3)
    ]


def test_the_best_thinker_is_kept(trainer):
    kept, observer = [], RecordingObserver()
    schedule = replace(SCHEDULE, validate_every=1)
    progress = trainer(schedule=schedule, watcher=observer, keep=lambda *one: kept.append(one)).run()
    losses = [health.loss for _, health in observer.healths]
    assert [(step, health) for health, step, _ in kept] == observer.healths
    best = [health.loss for health, _, better in kept if better]
    assert progress.best == min(losses) == best[-1]
    assert losses[progress.best_step] == progress.best
    assert best == sorted(best, reverse=True)


def scored(shares):
    """An accuracy that is measured as these shares, one after the other."""
    given = iter(shares)

    def measure():
        share = next(given)
        return Accuracy(value=share, low=None, high=None, chains=10, questions=5)

    return measure


@pytest.mark.parametrize(
    "shares", [(0.2, 0.5, 0.4, 0.1), (0.5, 0.2, 0.4, 0.1), (0.3, 0.3, 0.3, 0.3), (0.1, 0.6, 0.6, 0)]
)
def test_the_highest_accuracy_is_the_best_whatever_the_loss_and_between_equals_the_lower_loss(trainer, shares):
    kept, observer = [], RecordingObserver()
    training = trainer(
        schedule=replace(SCHEDULE, max_steps=3, validate_every=1),
        watcher=observer,
        keep=lambda *one: kept.append(one),
        accuracy=scored(shares),
    )
    progress = training.run()
    losses = [health.loss for _, health in observer.healths]
    assert [health.accuracy.value for _, health in observer.healths] == list(shares)
    assert min(losses) == losses[-1], "the loss alone would keep the last one"
    best = max(range(4), key=lambda step: (shares[step], -losses[step]))
    assert (progress.best_step, progress.best_accuracy, progress.best) == (best, shares[best], losses[best])
    assert [step for _, step, better in kept if better][-1] == best


def test_patience_counts_validations_without_a_better_accuracy(trainer):
    observer = RecordingObserver()
    schedule = replace(SCHEDULE, max_steps=7, validate_every=1, patience=3)
    progress = trainer(schedule=schedule, watcher=observer, accuracy=scored([0.4, 0.5, 0.3, 0.2, 0.1])).run()
    losses = [health.loss for _, health in observer.healths]
    assert min(losses[2:]) < losses[1], "by its loss a later one is better"
    assert (progress.stopped_early, progress.step, progress.best_step) == (True, 4, 1)


@pytest.mark.parametrize("die_at", [1, 3, 4, 6])
def test_a_resumed_training_keeps_the_best_accuracy(trainer, tmp_path, die_at):
    shares = {0: 0.2, 2: 0.6, 4: 0.3, 6: 0.5, 7: 0.1}

    def by_step(folder, **changes):
        observer = RecordingObserver(**changes)
        schedule = replace(SCHEDULE, validate_every=2)
        training = trainer(folder, schedule=schedule, watcher=observer)

        def measure():
            step = observer.rows[-1]["step"] if observer.rows else observer.first
            return scored([shares[step]])()

        training.accuracy = measure
        return training

    whole = by_step("whole").run()
    with pytest.raises(KeyboardInterrupt):
        by_step("cut", die_at=die_at).run()
    again = by_step("cut").run()
    assert replace(again, seconds=0) == replace(whole, seconds=0)
    assert (again.best_step, again.best_accuracy) == (2, 0.6)
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")


def test_a_state_from_before_accuracies_is_continued(trainer, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        trainer("cut", watcher=RecordingObserver(die_at=4)).run()
    path = tmp_path / "cut" / STATE_FILE
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    progress = json.loads(metadata["progress"])
    assert progress.pop("best_accuracy") is None
    save_file(load_file(path), path, metadata={**metadata, "progress": json.dumps(progress)})
    again, whole = trainer("cut").run(), trainer("whole").run()
    assert replace(again, seconds=0) == replace(whole, seconds=0)


def test_what_validation_says(trainer, plain, some_examples):
    """Losses against the plain loop; of two questions, each is the only partner of the other, and the mean of the others."""
    observer = RecordingObserver()
    training = trainer(watcher=observer)
    training.run()
    step, health = observer.healths[-1]
    examples = some_examples(7)[5:]
    tokens = sum(len(example.target) for example in examples)
    with torch.no_grad():
        models = training.thinker, training.assistant, training.reader.backbone
        own = sum(plain(*models, example) for example in examples) / tokens
        swapped = [replace(e, assistant=o.assistant) for e, o in zip(examples, examples[::-1], strict=True)]
        another = sum(plain(*models, example).mean() for example in swapped) / tokens
    assert step == 7
    assert health.per_path == pytest.approx(own.tolist(), rel=1e-4)
    assert health.loss == pytest.approx(own.mean().item(), rel=1e-4)
    assert health.another == pytest.approx(another.item(), rel=1e-4)
    assert health.mean == pytest.approx(health.another, abs=1e-5)
    assert health.information.value == pytest.approx(health.another - health.loss, abs=1e-6)


PROCESS = """
import sys
from pathlib import Path
import pytest
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "--import-mode=importlib", "-W", "ignore",
    "{file}::test_one_of_the_processes", "--basetemp={temp}"]))
"""


@pytest.mark.skipif("TWO_PROCESSES_OUT" not in os.environ, reason="is started by the test of two processes")
def test_one_of_the_processes(trainer):
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    training = trainer(f"rank{accelerator.process_index}")
    assert training.processes.count == 2
    training.run()
    out = Path(os.environ["TWO_PROCESSES_OUT"]) / f"{accelerator.process_index}.safetensors"
    save_file(training.thinker.state_dict(), out)
    accelerator.end_training()


def test_two_processes_end_with_the_parameters_of_one(trainer, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    shared |= {"TWO_PROCESSES_OUT": str(tmp_path), "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    running = []
    for rank in ("0", "1"):
        code = PROCESS.format(file=__file__, temp=tmp_path / f"temp{rank}")
        environment = os.environ | shared | {"RANK": rank, "LOCAL_RANK": rank}
        command = [sys.executable, "-c", code]
        running.append(
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        )
    for process in running:
        output, _ = process.communicate(timeout=240)
        assert process.returncode == 0, output
    alone = trainer("alone")
    alone.run()
    checkpoints = [load_file(tmp_path / f"{rank}.safetensors") for rank in (0, 1)]
    for name, tensor in alone.thinker.state_dict().items():
        assert torch.equal(checkpoints[0][name], checkpoints[1][name]), name
        torch.testing.assert_close(checkpoints[0][name], tensor, atol=2e-5, rtol=1e-4)
