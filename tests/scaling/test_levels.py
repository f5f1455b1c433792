"""The buffers of keys and values against plain lists: slots, lengths, growth, rows that move."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from contrastive.forward import CaptureCache
from scaling.engines.local.levels import OwnKeys, Store

LAYERS, HEADS, WIDTH = 2, 3, 4
CPU = torch.device("cpu")


def some(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def filled(pieces: int, tokens: int, *, seed: int, dtype: torch.dtype = torch.float32) -> CaptureCache:
    caught = CaptureCache()
    for layer in range(LAYERS):
        keys, values = some(2, pieces, HEADS, tokens, WIDTH, seed=100 * seed + layer).to(dtype)
        caught.update(keys, values, layer)
    return caught


def same(found: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


# ---- Caught


def test_caught_hands_on_and_keeps_what_passes() -> None:
    caught = CaptureCache()
    for layer in range(LAYERS):
        keys, values = some(2, 1, HEADS, 5, WIDTH, seed=layer)
        handed = caught.update(keys, values, layer)
        assert handed[0] is keys
        assert handed[1] is values
        assert caught.keys[layer] is keys
        assert caught.values[layer] is values
    assert caught.get_seq_length() == 0


def test_caught_layers_must_come_in_order() -> None:
    keys, values = some(2, 1, HEADS, 5, WIDTH, seed=0)
    with pytest.raises(AssertionError):
        CaptureCache().update(keys, values, 1)


# ---- Store


def contents(store: Store, slot: int) -> list[Tensor]:
    keys, values = store.view()
    return [states[slot, :, : store.lengths[slot]] for states in [*keys, *values]]


def piece(caught: CaptureCache, number: int, length: int) -> list[Tensor]:
    return [states[number, :, :length] for states in caught.keys + caught.values]


def test_an_empty_store() -> None:
    store = Store(CPU)
    assert (store.num_groups, store.longest, store.even, store.bytes_per_token) == (0, 0, True, 0)


def test_pieces_get_slots_lengths_and_starts() -> None:
    store = Store(CPU)
    caught = filled(3, 5, seed=0)
    assert store.add(caught, [5, 2, 4], start=[0, 7, 1]) == [0, 1, 2]
    assert store.lengths[:3].tolist() == [5, 2, 4]
    assert store.starts[:3].tolist() == [0, 7, 1]
    assert (store.num_groups, store.longest, store.even) == (3, 5, False)
    for number, length in enumerate([5, 2, 4]):
        assert same(contents(store, number), piece(caught, number, length))


def test_views_are_cut_to_the_slots_and_the_length_in_use() -> None:
    store = Store(CPU)
    store.add(filled(3, 9, seed=0), [3, 2, 3], start=[0, 0, 0])  # 9 tokens are given, of which 3 count at most
    keys, values = store.view()
    assert [states.shape for states in [*keys, *values]] == [(3, HEADS, 3, WIDTH)] * 2 * LAYERS


def test_the_lowest_free_slot_is_filled_first() -> None:
    store = Store(CPU)
    store.add(filled(4, 2, seed=0), [2] * 4, start=[0] * 4)
    for slot in (2, 0):
        store.remove(slot)
    assert store.num_groups == 4
    assert store.add(filled(3, 2, seed=1), [2] * 3, start=[0] * 3) == [0, 2, 4]


def test_slots_after_the_last_one_in_use_are_not_shown() -> None:
    store = Store(CPU)
    store.add(filled(4, 2, seed=0), [1, 2, 1, 1], start=[0] * 4)
    store.remove(3)
    assert store.num_groups == 3
    store.remove(1)
    assert (store.num_groups, store.longest, store.even) == (3, 1, True)
    store.remove(2)
    store.remove(0)
    assert (store.num_groups, store.longest) == (0, 0)


def test_empty_pieces_take_a_slot_and_no_tokens() -> None:
    store = Store(CPU)
    store.add(filled(2, 3, seed=0), [0, 0], start=[0, 0])
    assert (store.num_groups, store.longest, store.even) == (2, 0, True)


@pytest.mark.parametrize("tokens", [200, 3])
def test_growth_keeps_contents(tokens: int) -> None:
    """First more slots than are allocated at once, then longer pieces too."""
    store = Store(CPU)
    first, second = filled(5, 3, seed=0), filled(40, tokens, seed=1)
    store.add(first, [3, 2, 1, 3, 3], start=[1, 2, 3, 4, 5])
    store.add(second, [tokens] * 40, start=[6] * 40)
    for number, length in enumerate([3, 2, 1, 3, 3]):
        assert same(contents(store, number), piece(first, number, length))
    for number in range(40):
        assert same(contents(store, 5 + number), piece(second, number, tokens))
    assert store.lengths[:45].tolist() == [3, 2, 1, 3, 3] + [tokens] * 40
    assert store.starts[:45].tolist() == [1, 2, 3, 4, 5] + [6] * 40


@settings(max_examples=40, deadline=None)
@given(st.lists(st.one_of(st.integers(1, 12), st.floats(0, 1, exclude_max=True)), max_size=25))
def test_a_store_is_a_dictionary_of_pieces(actions: list[int | float]) -> None:
    """An integer adds a piece of that length, a fraction removes the slot so far along those in use."""
    store = Store(CPU)
    held: dict[int, tuple[list[Tensor], int]] = {}
    for seed, action in enumerate(actions):
        if isinstance(action, int):
            caught = filled(1, action, seed=seed)
            (slot,) = store.add(caught, [action], start=[seed])
            assert slot not in held
            held[slot] = piece(caught, 0, action), seed
        elif held:
            slot = sorted(held)[int(action * len(held))]
            del held[slot]
            store.remove(slot)
        lengths = {slot: expected[0].shape[1] for slot, (expected, _) in held.items()}
        assert store.num_groups == max(held, default=-1) + 1
        assert store.longest == max(lengths.values(), default=0)
        assert store.even is (len(set(lengths.values())) <= 1)
        for slot, (expected, start) in held.items():
            assert same(contents(store, slot), expected)
            assert store.starts[slot] == start


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_per_token_count_every_layers_elements(dtype: torch.dtype) -> None:
    store = Store(CPU)
    caught = filled(2, 5, seed=0, dtype=dtype)
    store.add(caught, [5, 5], start=[0, 0])
    elements = sum(states.numel() for states in caught.keys + caught.values)
    assert store.bytes_per_token == elements * dtype.itemsize / (2 * 5)


# ---- OwnKeys


class Rows:
    """OwnKeys next to plain lists: rows[r][t] is the number that fills everything of row r's token t."""

    def __init__(self, num_rows: int, capacity: int) -> None:
        self.own = OwnKeys(num_rows, capacity, CPU)
        self.rows: list[list[float]] = [[] for _ in range(num_rows)]
        self.next = 0.0

    def step(self) -> None:
        """One token more in every row in use, through all layers, as a forward pass does it."""
        used = self.own.used
        news = [self.fresh() for _ in range(used)]
        longest = self.own.extend()
        for row, new in enumerate(news):
            self.rows[row].append(new)
        assert longest == max(map(len, self.rows[:used]))
        for layer in range(LAYERS):
            states = torch.tensor(news).view(used, 1, 1, 1).expand(used, HEADS, 1, WIDTH) + layer / 4
            keys, values = self.own.update(states, -states, layer)
            assert keys.shape == values.shape == (used, HEADS, longest, WIDTH)
            for row, expected in enumerate(self.rows[:used]):
                wanted = (torch.tensor(expected) + layer / 4).view(1, -1, 1).expand(HEADS, -1, WIDTH)
                assert torch.equal(keys[row, :, : len(expected)], wanted)
                assert torch.equal(values[row, :, : len(expected)], -wanted)
        assert self.own.lengths[:used].tolist() == [len(row) for row in self.rows[:used]]

    def put(self, row: int, tokens: int) -> None:
        self.rows[row] = [self.fresh() for _ in range(tokens)]
        states = torch.tensor(self.rows[row]).view(1, -1, 1).expand(HEADS, -1, WIDTH)
        self.own.put(row, [states + n / 4 for n in range(LAYERS)], [-states - n / 4 for n in range(LAYERS)])

    def move(self, source: int, target: int) -> None:
        self.own.move(source, target)
        self.rows[target] = list(self.rows[source])

    def clear(self, row: int) -> None:
        self.own.clear([row])
        self.rows[row] = []

    def fresh(self) -> float:
        self.next += 1
        return self.next


def test_rows_extend_by_one_token_each() -> None:
    rows = Rows(3, 5)
    rows.own.used = 3
    for _ in range(5):
        rows.step()
    assert rows.own.get_seq_length() == 4  # before the step


def test_only_rows_in_use_extend() -> None:
    rows = Rows(4, 5)
    rows.own.used = 2
    rows.step()
    assert rows.own.lengths.tolist() == [1, 1, 0, 0]


def test_rows_of_different_lengths_after_one_starts_again() -> None:
    rows = Rows(3, 6)
    rows.own.used = 3
    for _ in range(4):
        rows.step()
    rows.clear(1)
    for _ in range(2):
        rows.step()
    assert rows.own.lengths.tolist() == [6, 2, 6]


def test_rows_that_are_put_hold_what_was_computed_elsewhere() -> None:
    rows = Rows(2, 8)
    rows.put(0, 5)
    rows.put(1, 2)
    assert rows.own.lengths.tolist() == [5, 2]
    rows.own.used = 2
    for _ in range(3):
        rows.step()


def test_reserving_keeps_what_is_held_and_never_shrinks() -> None:
    rows = Rows(2, 3)
    rows.put(0, 3)
    rows.put(1, 1)
    rows.own.used = 2
    rows.own.reserve(2)
    rows.own.reserve(9)
    for _ in range(6):
        rows.step()


def test_reserving_before_anything_is_held() -> None:
    rows = Rows(1, 1)
    rows.own.reserve(4)
    rows.own.used = 1
    for _ in range(4):
        rows.step()


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.just(("step",)),
            st.tuples(st.just("put"), st.integers(0, 3), st.integers(1, 6)),
            st.tuples(st.just("move"), st.integers(0, 3), st.integers(0, 3)),
            st.tuples(st.just("clear"), st.integers(0, 3)),
            st.tuples(st.just("use"), st.integers(1, 4)),
        ),
        max_size=20,
    )
)
def test_own_keys_are_a_list_of_lists(actions: list[tuple[str, int, int]]) -> None:
    rows = Rows(4, 40)
    rows.own.used = 4
    rows.step()
    for kind, *numbers in actions:
        if kind == "use":
            rows.own.used = numbers[0]
        elif kind != "move" or numbers[0] != numbers[1]:
            getattr(rows, kind)(*numbers)
        assert rows.own.lengths.tolist() == [len(row) for row in rows.rows]
    rows.own.used = 4
    rows.step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_per_token_of_own_keys(dtype: torch.dtype) -> None:
    own = OwnKeys(5, 7, CPU)
    assert own.bytes_per_token == 0
    states = torch.zeros(HEADS, 2, WIDTH, dtype=dtype)
    own.put(0, [states] * LAYERS, [states] * LAYERS)
    assert own.bytes_per_token == 2 * LAYERS * HEADS * WIDTH * dtype.itemsize  # keys and values
