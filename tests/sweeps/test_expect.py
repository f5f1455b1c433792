"""What a plan says it will cost is what its runs can cost."""

from __future__ import annotations

import pytest

from sweeps.cost_estimate import expected, training_key
from sweeps.display import cost_rows
from sweeps.plan import config_of


def test_the_most_tokens_are_those_that_the_runs_allow(planned):
    axes = {"method": ["cot", "softcot"], "max_new_tokens": [None, 7], "task": ["arithmetic", "gsm8k"]}
    plan = planned(run={"limit": 3, "samples": 2}, train={}, axes=axes).plan
    runs = [job for job in plan.jobs if job.kind == "run"]
    configs = [config_of(job, job.extents[-1], trained="t" if job.needs else None).resolved() for job in runs]
    assert {config.max_new_tokens for config in configs} == {7, 96, 512}
    cost = expected(plan, done=(), entries=(), rates={}, training={})
    assert cost.tokens_at_most == sum(3 * 2 * config.max_new_tokens for config in configs)


def test_what_one_training_seed_costs_is_told(planned):
    """Two methods and two losses of one of them, three seeds each: 3 trainings a seed, of 10 steps of 36 seconds."""
    file = {"run": {"limit": 3, "samples": 2, "latent_paths": 2}, "train": {"max_steps": 10}}
    axes = {"method": ["softcot", "softcot++"], "train.contrastive": ["view", "none"], "train.seed": [0, 1, 2]}
    plan = planned(**file, axes=axes).plan
    trainings = [job for job in plan.jobs if job.kind == "train"]
    assert len(trainings) == 9
    seconds = {training_key(job): 36.0 for job in trainings}
    cost = expected(plan, done=(), entries=(), rates={}, training=seconds)
    assert (cost.trainings, cost.seed_trainings) == (9, 3)
    assert (cost.training_hours, cost.seed_hours) == (pytest.approx(0.9), pytest.approx(0.3))
    assert ("one training seed", "3 trainings, 0.30 h") in cost_rows(cost)
    unknown = expected(plan, done=[trainings[0].id], entries=(), rates={}, training={})
    assert (unknown.trainings, unknown.seed_trainings, unknown.seed_hours) == (8, 3, None)
    assert ("one training seed", "3 trainings") in cost_rows(unknown)
