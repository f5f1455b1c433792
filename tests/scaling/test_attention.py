"""Attention in levels against one dense softmax over all keys a query may see, in float64.

Letters as in `attention`: R rows, X queries of a row, S groups, H key heads, G query heads a key head, T keys, d width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from scaling.engines.local import attention
from scaling.engines.local.attention import Groups, Levels, SharedLevel, additive, merge, partial_attention

FAMILIES = ("llama", "qwen2", "qwen3", "mistral", "gemma3", "gpt2", "phi")
HEADS, WIDTH, LAYERS = 2, 8, 2
SCALE = 0.3
WINDOWS = (None, 1, 5, 1000)


# ---- Groups


def random_groups(seed: int) -> tuple[Tensor, int]:
    generator = torch.Generator().manual_seed(seed)
    num_groups = int(torch.randint(1, 9, (), generator=generator))
    rows = int(torch.randint(1, 20, (), generator=generator))
    return torch.randint(num_groups, (rows,), generator=generator), num_groups


@pytest.mark.parametrize("seed", range(30))
def test_groups_name_the_rows_of_each_group(seed: int) -> None:
    group, num_groups = random_groups(seed)
    found = Groups.of(group.tolist(), num_groups=num_groups, device=group.device)
    most = int(group.bincount().max())
    assert found.index.shape == (num_groups, most)
    for number, members in enumerate(found.index.tolist()):
        rows = [row for row, other in enumerate(group.tolist()) if other == number]
        assert members == rows + [0] * (most - len(rows))


@pytest.mark.parametrize("seed", range(30))
def test_places_lead_back_to_the_rows(seed: int) -> None:
    group, num_groups = random_groups(seed)
    found = Groups.of(group.tolist(), num_groups=num_groups, device=group.device)
    assert found.index.flatten()[found.place].tolist() == list(range(len(group)))
    assert torch.equal(found.place // found.index.shape[1], group)


def test_groups_of_no_row_are_only_filled_up() -> None:
    found = Groups.of([2, 0, 2], num_groups=5, device=torch.device("cpu"))
    assert found.index.tolist() == [[1, 0], [0, 0], [0, 2], [0, 0], [0, 0]]


# ---- all levels together


@dataclass(eq=False)
class Case:
    """keys, values: [H, n, d] of each row, all levels in order of position."""

    query: Tensor
    own_key: Tensor
    own_value: Tensor
    levels: Levels
    keys: list[Tensor]
    values: list[Tensor]

    def attend(self, window: int | None) -> Tensor:
        """[R, X, H * G, d] of the last layer, as transformers asks for it."""
        module = torch.nn.Module()
        module.layer_idx = LAYERS - 1
        function = ALL_ATTENTION_FUNCTIONS[attention.NAME]
        out, _ = function(
            module,
            self.query,
            self.own_key,
            self.own_value,
            None,
            scaling=SCALE,
            sliding_window=window,
            levels=self.levels,
        )
        return out

    def dense(self, window: int | None) -> Tensor:
        """The same from one softmax over all keys of a row. A row's last query is its last token."""
        rows, heads, length, _ = self.query.shape
        out = torch.zeros(rows, length, heads, WIDTH, dtype=torch.float64)
        for row, (keys, values) in enumerate(zip(self.keys, self.values, strict=True)):
            behind = torch.arange(keys.shape[1])
            for x in range(length):
                position = keys.shape[1] - length + x
                seen = behind <= position
                if window is not None:
                    seen &= position - behind < window
                for head in range(heads):
                    shared = head // (heads // HEADS)
                    scores = keys[shared, seen].double() @ self.query[row, head, x].double() * SCALE
                    out[row, x, head] = scores.softmax(0) @ values[shared, seen].double()
        return out


def random_case(seed: int, *, group: int = 1, queries: int = 1, even: bool = False, dtype: torch.dtype) -> Case:
    """7 rows on 6 segments of 3 prefixes, some without a row. Segments belong to one prefix; one prefix may be empty."""
    generator = torch.Generator().manual_seed(seed)

    def some(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    def integers(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high + 1, shape, generator=generator)

    rows, num_segments = 7, 6
    prefix_of = integers(0, 2, num_segments)
    segment = integers(0, num_segments - 1, rows)
    prefix = prefix_of[segment]
    prefix_lengths = torch.tensor([6, 6, 6] if even else [9, 0, 4])
    segment_lengths = torch.full((num_segments,), 4) if even else integers(1, 6, num_segments)
    own_lengths = integers(queries, queries + 4, rows)
    starts = (prefix_lengths[prefix_of] + segment_lengths)[segment]
    positions = (starts + own_lengths - queries)[:, None] + torch.arange(queries)

    def level(lengths: Tensor, first: Tensor, of: Tensor) -> SharedLevel:
        shape = (len(lengths), HEADS, int(lengths.max()), WIDTH)
        keys, values = [some(*shape) for _ in range(LAYERS)], [some(*shape) for _ in range(LAYERS)]
        groups = Groups.of(of.tolist(), num_groups=len(lengths), device=of.device)
        return SharedLevel(keys, values, lengths, first, groups, positions, even)

    shared = [
        level(prefix_lengths, torch.zeros_like(prefix_lengths), prefix),
        level(segment_lengths, prefix_lengths[prefix_of], segment),
    ]
    own_key, own_value = (some(rows, HEADS, int(own_lengths.max()), WIDTH) for _ in range(2))

    def seen(own: Tensor, which: str) -> list[Tensor]:
        first, second = (getattr(entry, which)[-1] for entry in shared)
        return [
            torch.cat(
                [
                    first[prefix[row], :, : prefix_lengths[prefix[row]]],
                    second[segment[row], :, : segment_lengths[segment[row]]],
                    own[row, :, : own_lengths[row]],
                ],
                dim=1,
            )
            for row in range(rows)
        ]

    query = some(rows, HEADS * group, queries, WIDTH)
    levels = Levels(shared, positions, starts, own_lengths)
    return Case(query, own_key, own_value, levels, seen(own_key, "keys"), seen(own_value, "values"))


@pytest.mark.parametrize("even", [False, True], ids=["uneven", "even"])
@pytest.mark.parametrize("queries", [1, 3])
@pytest.mark.parametrize("group", [1, 3])
def test_levels_equal_one_dense_softmax(group: int, queries: int, even: bool) -> None:
    """All windows in turn on one object, as layers of several kinds use it."""
    for seed in range(5):
        case = random_case(seed, group=group, queries=queries, even=even, dtype=torch.float64)
        for window in WINDOWS:
            torch.testing.assert_close(case.attend(window), case.dense(window), atol=1e-12, rtol=0)


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_levels_in_lower_precision(dtype: torch.dtype, atol: float) -> None:
    for seed in range(5):
        case = random_case(seed, group=3, queries=2, dtype=dtype)
        for window in WINDOWS:
            found = case.attend(window)
            assert found.dtype == dtype
            torch.testing.assert_close(found.double(), case.dense(window), atol=atol, rtol=0)


def test_a_window_of_one_leaves_a_row_only_its_newest_value() -> None:
    """Every shared level is then out of sight of every row."""
    case = random_case(1, dtype=torch.float64)
    newest = torch.stack([values[:, -1] for values in case.values])
    torch.testing.assert_close(case.attend(1)[:, 0], newest, atol=1e-12, rtol=0)


def test_a_row_does_not_depend_on_other_rows_own_keys() -> None:
    case = random_case(2, dtype=torch.float64)
    before = case.attend(None)
    case.own_key[1:] += 1
    case.own_value[1:] *= -2
    after = case.attend(None)
    assert torch.equal(after[0], before[0])
    assert not torch.isclose(after[1:], before[1:]).all()


def test_what_lies_beyond_the_lengths_is_never_seen() -> None:
    case = random_case(3, dtype=torch.float64)
    expected = case.attend(None)
    for level in case.levels.shared:
        for keys, values in zip(level.keys, level.values, strict=True):
            for slot, length in enumerate(level.lengths.tolist()):
                keys[slot, :, length:] = 1e3
                values[slot, :, length:] = 1e3
    for row, length in enumerate(case.levels.lengths.tolist()):
        case.own_key[row, :, length:] = 1e3
        case.own_value[row, :, length:] = 1e3
    assert torch.equal(case.attend(None), expected)


# ---- parts


def random_part(*, keys: int, seed: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(3, 2, keys, WIDTH, generator=generator, dtype=dtype) for _ in range(2))


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("masked", [False, True])
def test_a_part_is_softmax_attention_and_its_log_sum_exp(dtype: torch.dtype, atol: float, masked: bool) -> None:
    query, _ = random_part(keys=5, seed=0, dtype=dtype)
    key, value = random_part(keys=11, seed=1, dtype=dtype)
    hidden = torch.zeros(3, 1, 5, 11, dtype=torch.bool)
    if masked:
        hidden = torch.rand(hidden.shape, generator=torch.Generator().manual_seed(2)) < 0.4
        hidden[..., 0] = False
    scores = (query.double() @ key.double().transpose(-1, -2) * SCALE).masked_fill(hidden, -torch.inf)
    mask = additive(hidden, dtype) if masked else None
    out, lse = partial_attention(query, key, value, mask, SCALE)
    assert out.dtype == dtype
    assert lse.dtype == torch.float32
    expected = (scores.softmax(-1) @ value.double()).transpose(1, 2)
    torch.testing.assert_close(out.double(), expected, atol=atol, rtol=0)
    expected = scores.logsumexp(-1).transpose(1, 2).unsqueeze(-1)
    torch.testing.assert_close(lse.double(), expected, atol=atol, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_query_that_sees_nothing_gets_finite_numbers_and_no_weight(dtype: torch.dtype) -> None:
    query, _ = random_part(keys=1, seed=0, dtype=dtype)
    parts = []
    for seed, hides in ((1, True), (2, False)):
        key, value = random_part(keys=4, seed=seed, dtype=dtype)
        mask = additive(torch.full((3, 1, 1, 4), hides), dtype)
        parts.append(partial_attention(query, key, value, mask, SCALE))
    assert all(states.isfinite().all() for part in parts for states in part)
    assert torch.equal(merge(parts), parts[1][0])
    assert torch.equal(merge(parts[::-1]), parts[1][0])


def test_parts_of_which_none_sees_anything_merge_to_finite_numbers() -> None:
    query, _ = random_part(keys=1, seed=0, dtype=torch.float32)
    key, value = random_part(keys=4, seed=1, dtype=torch.float32)
    mask = additive(torch.ones(3, 1, 1, 4, dtype=torch.bool), torch.float32)
    part = partial_attention(query, key, value, mask, SCALE)
    assert merge([part, part, part]).isfinite().all()


@pytest.mark.parametrize("sizes", [(7,), (3, 4), (1, 5, 1), (1, 1, 1, 4)])
def test_merged_parts_equal_attention_over_the_union(sizes: tuple[int, ...]) -> None:
    query, _ = random_part(keys=5, seed=0)
    key, value = random_part(keys=7, seed=1)
    key *= 3  # so that parts weigh very differently
    pieces = zip(key.split(sizes, dim=2), value.split(sizes, dim=2), strict=True)
    found = merge([partial_attention(query, some, of, None, SCALE) for some, of in pieces])
    expected = ((query @ key.transpose(-1, -2) * SCALE).softmax(-1) @ value).transpose(1, 2)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_additive_masks_are_finite_even_when_added_twice(dtype: torch.dtype) -> None:
    mask = additive(torch.tensor([True, False]), dtype)
    assert mask.dtype == dtype
    assert mask[1] == 0
    assert mask[0] < 0
    assert (mask + mask).isfinite().all()


# ---- as transformers sees it


@pytest.mark.parametrize("family", FAMILIES)
def test_without_levels_it_is_the_librarys_own_attention(
    make_model: Callable[..., PreTrainedModel], family: str
) -> None:
    model = make_model(family)
    ids = torch.randint(10, 90, (2, 12), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    with torch.inference_mode():
        before = model(input_ids=ids, attention_mask=mask).logits
        assert attention.install(model) == "sdpa"
        assert model.config._attn_implementation == attention.NAME
        assert torch.equal(model(input_ids=ids, attention_mask=mask).logits, before)


@pytest.mark.parametrize("name", ["softcap", "s_aux", "position_bias", "cache"])
def test_what_levels_cannot_do_is_refused(name: str) -> None:
    case = random_case(0, dtype=torch.float32)
    module = torch.nn.Module()
    module.layer_idx = 0
    function = ALL_ATTENTION_FUNCTIONS[attention.NAME]
    with pytest.raises(NotImplementedError, match=name):
        function(module, case.query, case.own_key, case.own_value, None, levels=case.levels, **{name: torch.ones(1)})
