"""What the table of engines says, against what settings accept and what the engines do."""

from __future__ import annotations

import pytest

from scaling.config import RunConfig
from scaling.engines.base import Workload
from scaling.engines.build import build_engine, refuse_unfit
from scaling.engines.kinds import KINDS, takers_of
from scaling.methods.kinds import KINDS as METHODS
from scaling.records.errors import UsageError

NEEDED = {"openai": {"base_url": "http://localhost:1/v1"}}
GIVEN = {
    "device": "cpu",
    "max_batch_tokens": 9,
    "exact": True,
    "engine_args": {"max_num_seqs": 2},
    "engine_seeds": "one",
    "base_url": "http://localhost:1/v1",
    "served_model": "m",
    "assistant_device": "cpu",
    "batch_size": 3,
    "top_k": 5,
}


@pytest.mark.parametrize("setting", GIVEN)
@pytest.mark.parametrize("engine", KINDS)
def test_a_setting_is_refused_by_the_engines_that_do_not_take_it(engine, setting):
    """In the same words as the table's, which name the engines that take it."""
    given = {"engine": engine, **NEEDED.get(engine, {}), setting: GIVEN[setting]}
    why = KINDS[engine].does_not_take(setting)
    if why is None:
        assert RunConfig(**given).resolved().engine == engine
        return
    with pytest.raises(UsageError) as error:
        RunConfig(**given).resolved()
    assert str(error.value) == why
    assert all(f"`{name}`" in why for name in takers_of(setting))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("engine", KINDS)
@pytest.mark.parametrize("more", [{}, {"engine_args": {"speculative_config": {"method": "ngram"}}}], ids=str)
def test_a_method_is_refused_by_the_engines_that_cannot_serve_it(engine, method, more):
    more = {key: value for key, value in more.items() if key in KINDS[engine].settings}
    given = {
        "method": method,
        **({"adapter": "a"} if method in ("lora", "ccot") else {}),
        **NEEDED.get(engine, {}),
        **more,
    }
    why = KINDS[engine].cannot_serve(METHODS[method], given)
    if why is None:
        assert RunConfig(engine=engine, **given).resolved().method == method
    else:
        with pytest.raises(UsageError) as error:
            RunConfig(engine=engine, **given).resolved()
        assert str(error.value) == why


def test_a_server_without_an_address_serves_no_method():
    assert "needs `--base-url`" in KINDS["openai"].cannot_serve(METHODS["cot"], {"base_url": None})


@pytest.mark.parametrize("engine", KINDS)
def test_every_engine_is_built_by_its_own_module(engine, monkeypatch):
    built = []
    for function in ("build", "refuse_unfit"):
        monkeypatch.setattr(f"{KINDS[engine].builder}.{function}", lambda *given: built.append(given))
    config, workload = RunConfig(engine=engine, **NEEDED.get(engine, {})), Workload(7, slots=True)
    build_engine(config, None, workload, print)
    refuse_unfit(config, None, workload)
    assert built == [(config, None, workload, print), (config, None, workload)]
