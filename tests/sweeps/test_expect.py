"""What a plan says it will cost is what its runs can cost."""

from __future__ import annotations

from sweeps.cost_estimate import expected
from sweeps.plan import config_of


def test_the_most_tokens_are_those_that_the_runs_allow(planned):
    axes = {"method": ["cot", "softcot"], "max_new_tokens": [None, 7], "task": ["arithmetic", "gsm8k"]}
    plan = planned(run={"limit": 3, "samples": 2}, train={}, axes=axes).plan
    runs = [job for job in plan.jobs if job.kind == "run"]
    configs = [config_of(job, job.extents[-1], trained="t" if job.needs else None).resolved() for job in runs]
    assert {config.max_new_tokens for config in configs} == {7, 96, 512}
    cost = expected(plan, done=(), entries=(), rates={}, training={})
    assert cost.tokens_at_most == sum(3 * 2 * config.max_new_tokens for config in configs)
