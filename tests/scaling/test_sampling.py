"""Random numbers that know no batch, and tokens drawn in proportion to their probabilities."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from scaling.engines.base import Decoding
from scaling.engines.local.sampling import confidences, keep_top, sample_tokens, uniforms
from scaling.records.seeds import stream_seed

LAST = 1 - 2.0**-53  # the largest number that `uniforms` can give
UNIT_ODDS = 1e-4  # a fixed seed fails by chance in one of 10,000 choices of the seed


def decoding(*, temperature=1.0, top_p=1.0, top_k=0):
    return Decoding(temperature=temperature, top_p=top_p, top_k=top_k, max_new_tokens=1)


def streams(count):
    return torch.tensor([stream_seed(0, f"q{number}", 0, 0) for number in range(count)])


def numbers(seed, count):
    return uniforms(torch.full((count,), seed), torch.arange(count))


def even_uniforms(count):
    """Midpoints of `count` equal parts of [0, 1): inverting them gives every probability to within one part."""
    return (torch.arange(count, dtype=torch.float64) + 0.5) / count


# ---- uniforms


def test_range_and_type():
    seeds = torch.cat([streams(200), torch.tensor([0, 1, 2**63 - 1])])
    for step in (0, 1, 1023, 2**40):
        values = uniforms(seeds, torch.full_like(seeds, step))
        assert values.dtype == torch.float64
        assert values.shape == seeds.shape
        assert values.min() >= 0
        assert values.max() <= LAST


def test_no_order_and_no_batch():
    seeds, steps = streams(50), torch.arange(50) * 7
    together = uniforms(seeds, steps)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    assert torch.equal(uniforms(seeds[order], steps[order]), together[order])
    assert torch.equal(torch.cat([uniforms(seeds[:13], steps[:13]), uniforms(seeds[13:], steps[13:])]), together)
    alone = torch.stack([uniforms(seeds[row : row + 1], steps[row : row + 1])[0] for row in range(50)])
    assert torch.equal(alone, together)


def test_splitmix_by_hand():
    """The definition again with Python's unbounded integers, which need no tricks with signs."""
    mask = 2**64 - 1

    def mix(x):
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
        return x ^ (x >> 31)

    for seed in (0, 1, stream_seed(0, "q", 1, 2), 2**63 - 1):
        for step in (0, 1, 999):
            bits = mix(mix((step + 1) * 0x9E3779B97F4A7C15 & mask) ^ mix(seed))
            assert uniforms(torch.tensor([seed]), torch.tensor([step])).item() == (bits >> 11) / 2**53


def test_streams_are_never_shifted_copies():
    """Plain splitmix64 fails here: seeds two increments apart are the same sequence, two steps later."""
    two_increments = 2 * 0x9E3779B97F4A7C15 % 2**64
    seeds = [0, 1, 2, 12345, 2**61, stream_seed(0, "q", 0, 0) // 4]
    seeds += [seed + two_increments for seed in seeds]
    assert max(seeds) < 2**63
    sequences = torch.stack([numbers(seed, 400) for seed in seeds])
    assert sequences.unique().numel() == sequences.numel()


def test_one_stream_is_uniform_and_uncorrelated():
    values = numbers(stream_seed(3, "q", 0, 0), 20_000)
    counts = torch.histc(values, bins=100, min=0, max=1)
    assert stats.chisquare(counts.numpy()).pvalue > UNIT_ODDS
    assert stats.pearsonr(values[:-1], values[1:]).pvalue > UNIT_ODDS


def test_many_streams_are_uniform_at_one_step():
    seeds = torch.tensor([stream_seed(0, "q", path, sample) for path in range(100) for sample in range(100)])
    for step in (0, 1, 100):
        counts = torch.histc(uniforms(seeds, torch.full_like(seeds, step)), bins=50, min=0, max=1)
        assert stats.chisquare(counts.numpy()).pvalue > UNIT_ODDS


def test_neighbouring_seeds_are_independent():
    seeds = torch.arange(20_000)
    values = uniforms(seeds, torch.zeros_like(seeds))
    assert stats.chisquare(torch.histc(values, bins=100, min=0, max=1).numpy()).pvalue > UNIT_ODDS
    assert stats.pearsonr(values[:-1], values[1:]).pvalue > UNIT_ODDS


# ---- sample_tokens


@pytest.mark.parametrize("vocabulary", [2, 255, 256, 257, 700])
@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_every_token_gets_its_share(vocabulary, temperature):
    logits = torch.randn(vocabulary, generator=torch.Generator().manual_seed(vocabulary))
    parts = 20_000
    drawn = sample_tokens(logits.expand(parts, -1), even_uniforms(parts), decoding(temperature=temperature))
    share = torch.bincount(drawn, minlength=vocabulary) / parts
    expected = (logits.double() / temperature).softmax(-1)
    assert len(share) == vocabulary
    assert (share - expected).abs().max() <= 1.01 / parts + 1e-6  # 1e-6: the softmax is in float32


def test_frequencies_match_probabilities():
    """Uniforms and inversion together, as the engine uses them."""
    logits = torch.randn(12, generator=torch.Generator().manual_seed(4))
    draws = 20_000
    uniform = numbers(stream_seed(9, "q", 0, 0), draws)
    drawn = sample_tokens(logits.expand(draws, -1), uniform, decoding())
    counts = torch.bincount(drawn, minlength=12).double()
    expected = logits.double().softmax(-1) * draws
    assert expected.min() > 5, "chi-square needs it"
    assert stats.chisquare(counts.numpy(), (expected * draws / expected.sum()).numpy()).pvalue > UNIT_ODDS


def test_greedy_takes_the_largest_whatever_the_uniform():
    logits = torch.randn(20, 300, generator=torch.Generator().manual_seed(0))
    winners = torch.arange(20) * 15
    logits[torch.arange(20), winners] = 50.0
    for uniform in (0.0, 0.5, LAST):
        row = torch.full((20,), uniform, dtype=torch.float64)
        assert torch.equal(sample_tokens(logits, row, decoding(temperature=0.0)), winners)


def test_a_row_does_not_depend_on_the_other_rows():
    logits = torch.randn(40, 1000, generator=torch.Generator().manual_seed(1)) * 3
    uniform = uniforms(streams(40), torch.zeros(40, dtype=torch.int64))
    for choice in (decoding(), decoding(temperature=0.8, top_p=0.9), decoding(top_k=20)):
        together = sample_tokens(logits, uniform, choice)
        alone = [sample_tokens(logits[r : r + 1], uniform[r : r + 1], choice)[0] for r in range(40)]
        assert together.unique().numel() > 20, "rows do differ"
        assert torch.equal(together, torch.stack(alone))
        assert torch.equal(sample_tokens(logits.flip(0), uniform.flip(0), choice).flip(0), together)


@pytest.mark.parametrize("vocabulary", [3, 256, 257, 512, 1000])
def test_tokens_of_no_probability_are_never_drawn(vocabulary):
    """Also at both ends of the uniforms, where rounding would first show."""
    edges = torch.tensor([0.0, 2.0**-53, 1e-12, 0.5, 1 - 1e-12, LAST], dtype=torch.float64)
    possible = {
        "one at each end": [0, vocabulary - 1],
        "the first": [0],
        "the last": [vocabulary - 1],
        "one in the middle": [vocabulary // 2],
        "all but the ends": list(range(1, vocabulary - 1)),
    }
    for where, tokens in possible.items():
        logits = torch.full((vocabulary,), -torch.inf)
        logits[tokens] = torch.randn(len(tokens), generator=torch.Generator().manual_seed(vocabulary))
        uniform = torch.cat([edges, even_uniforms(500)])
        drawn = sample_tokens(logits.expand(len(uniform), -1), uniform, decoding())
        assert set(drawn.tolist()) <= set(tokens), where
        assert drawn[0] == tokens[0], f"{where}: 0 is the first possible token"
        assert drawn[5] == tokens[-1], f"{where}: the largest uniform is the last possible token"


def test_many_random_rows_at_the_ends():
    """Sums of float32 probabilities are rarely exactly 1: no row may step outside of its vocabulary."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(300, 777, generator=generator) * torch.rand(300, 1, generator=generator) * 40
    logits = logits.masked_fill(torch.rand(300, 777, generator=generator) < 0.5, -torch.inf)
    for uniform in (0.0, LAST):
        drawn = sample_tokens(logits, torch.full((300,), uniform, dtype=torch.float64), decoding())
        assert logits.softmax(-1).gather(1, drawn[:, None]).min() > 0


def test_half_precision_logits():
    logits = torch.tensor([[1.0, 3.0, 2.0]], dtype=torch.bfloat16)  # all three are exact in bfloat16
    parts = 10_000
    drawn = sample_tokens(logits.expand(parts, -1), even_uniforms(parts), decoding())
    share = torch.bincount(drawn, minlength=3) / parts
    torch.testing.assert_close(share.double(), logits[0].double().softmax(-1), atol=2e-4, rtol=0)


# ---- keep_top


def support(logits, choice):
    parts = 2_000
    return set(sample_tokens(logits.expand(parts, -1), even_uniforms(parts), choice).tolist())


# probabilities 0.1, 0.4, 0.05, 0.25, 0.2
LOGITS = torch.tensor([0.1, 0.4, 0.05, 0.25, 0.2]).log()


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({"top_k": 1}, {1}),
        ({"top_k": 3}, {1, 3, 4}),
        ({"top_k": 5}, {0, 1, 2, 3, 4}),
        ({"top_k": 99}, {0, 1, 2, 3, 4}),
        ({"top_k": 0}, {0, 1, 2, 3, 4}),
        ({"top_p": 1e-9}, {1}),
        ({"top_p": 0.39}, {1}),
        ({"top_p": 0.41}, {1, 3}),
        ({"top_p": 0.64}, {1, 3}),
        ({"top_p": 0.66}, {1, 3, 4}),
        ({"top_p": 0.96}, {0, 1, 2, 3, 4}),
        # after top-k 2 the masses are 0.615 and 0.385
        ({"top_k": 2, "top_p": 0.60}, {1}),
        ({"top_k": 2, "top_p": 0.63}, {1, 3}),
    ],
)
def test_supports(choice, expected):
    assert support(LOGITS, decoding(**choice)) == expected


def test_temperature_comes_before_the_nucleus():
    """At temperature 0.5 the probabilities are squared: 0.16 of 0.275 is 0.58, so one token reaches 0.5."""
    assert support(LOGITS, decoding(top_p=0.5)) == {1, 3}
    assert support(LOGITS, decoding(top_p=0.5, temperature=0.5)) == {1}


def test_what_is_kept_keeps_its_proportions():
    kept = keep_top(LOGITS[None], decoding(top_k=3)).softmax(-1)[0]
    expected = torch.tensor([0, 0.4, 0, 0.25, 0.2]) / 0.85
    torch.testing.assert_close(kept, expected)


def test_rows_have_their_own_nucleus():
    flat = torch.zeros(5)
    kept = keep_top(torch.stack([LOGITS, flat]), decoding(top_p=0.39)).isfinite().sum(-1)
    assert kept.tolist() == [1, 2]


# ---- logits that are not numbers, and log-probabilities


@pytest.mark.parametrize("choice", [decoding(temperature=0), decoding(), decoding(top_p=0.9), decoding(top_k=3)])
@pytest.mark.parametrize("place", [0, 300, 511])
def test_a_row_with_a_nan_gives_no_token_and_harms_no_other(choice, place):
    logits = torch.zeros(3, 512)
    logits[:, 7] = 50.0
    logits[1, place] = torch.nan
    assert sample_tokens(logits, torch.full((3,), 0.5, dtype=torch.float64), choice).tolist() == [7, -1, 7]


def test_confidences_are_those_of_temperature_one():
    logits = torch.log(torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]])) + 3.0
    log_prob, certainty = confidences(logits, torch.tensor([1, 2]))
    torch.testing.assert_close(log_prob.exp(), torch.tensor([0.25, 0.8]))
    # KL(U || p) = sum over j of (1/3) log((1/3) / p_j)
    by_hand = [sum(math.log(1 / 3 / p) / 3 for p in row) for row in ((0.5, 0.25, 0.25), (0.1, 0.1, 0.8))]
    torch.testing.assert_close(certainty, torch.tensor(by_hand))


def test_a_model_that_knows_nothing_has_no_certainty():
    assert float(confidences(torch.full((1, 1000), 7.0), torch.tensor([3]))[1]) == pytest.approx(0.0, abs=1e-5)
