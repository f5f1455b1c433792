"""Streams: stable for ever, distinct, within a signed 64-bit integer."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaling.records.seeds import engine_seed, stream_seed


@pytest.mark.parametrize(("run", "question", "path", "sample"), [(0, "gsm8k-17", 2, 5), (41, "Größe", 0, 0)])
def test_the_stream_is_a_hash_of_the_four_names(run, question, path, sample):
    """Published runs can be repeated only while this stays as it is: 8 bytes, little end first, top bit dropped."""
    name = "\x1f".join([str(run), question, str(path), str(sample)]).encode("utf-8")
    digest = hashlib.blake2b(name, digest_size=8).digest()
    expected = sum(byte << (8 * place) for place, byte in enumerate(digest)) // 2
    assert stream_seed(run, question, path, sample) == expected


def test_all_distinct_and_in_range():
    seeds = [
        stream_seed(run, f"q{question}", path, sample)
        for run in (0, 1, 11)
        for question in (*range(12), 111)
        for path in (*range(12), 111)
        for sample in (*range(12), 111)
    ]
    assert len(set(seeds)) == len(seeds) == 3 * 13**3
    assert min(seeds) >= 0
    assert max(seeds) < 2**63
    assert max(seeds) > 2**62, "the whole range is used"


@given(seed=st.integers(-(2**70), 2**70), number=st.integers(0, 10**6))
def test_engines_take_their_seeds(seed, number):
    """32 bits are what vLLM takes."""
    assert 0 <= engine_seed(seed, number) < 2**32


def test_an_engine_has_another_seed_for_every_run_seed_and_number():
    seeds = {engine_seed(seed, number) for seed in range(5) for number in range(200)}
    assert len(seeds) == 1000


def test_names_do_not_run_into_each_other():
    assert stream_seed(1, "1", 11, 1) != stream_seed(11, "1", 1, 1)
    assert stream_seed(0, "q1", 1, 0) != stream_seed(0, "q", 11, 0)
