"""`--engine-args` as text: pairs whose values are YAML, hence also JSON."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling.engines import engine_args

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-99, 99) | st.text(st.characters(codec="ascii", exclude_characters="\x7f")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab =-{}[]'", max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(values=st.dictionaries(st.sampled_from("abc"), st.dictionaries(st.text("xy z", max_size=3), JSON, max_size=3)))
def test_json_values_are_read_as_they_are(values):
    for gap in (None, (",", ":")):
        text = " ".join(f"{key}={json.dumps(value, separators=gap)}" for key, value in values.items())
        assert engine_args.pairs(text) == values


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ('a={"b":4}', {"a": {"b": 4}}),
        ("""a='{"b": 4}' c=[1, 2]""", {"a": {"b": 4}, "c": [1, 2]}),
        ("""'a={"b c": 4}'  d=5""", {"a": {"b c": 4}, "d": 5}),
        (r'"a={\"b c\": 4}"', {"a": {"b c": 4}}),
        (r'a="{\"b c\": 4}"', {"a": {"b c": 4}}),
        ("a={b: 1, c: [d, e]} f=g=h", {"a": {"b": 1, "c": ["d", "e"]}, "f": "g=h"}),
        ("a='b c' d=\"e\"", {"a": "b c", "d": "e"}),
        ("", {}),
    ],
)
def test_engine_arguments_are_split_outside_quotes_and_brackets(text, wanted):
    assert engine_args.pairs(text) == wanted


@pytest.mark.parametrize(
    ("text", "changes"),
    [
        ("nnodes=2 node_rank=1 master_addr=10.0.0.1 master_port=29501 data_parallel_rpc_port=1 device_ids=[1]", None),
        ("nnodes=2 quantization=fp8", {"quantization": "fp8"}),
        ("load_format=dummy", {"load_format": "dummy"}),
        ("", None),
    ],
)
def test_what_says_only_where_changes_no_run(text, changes):
    assert engine_args.engine_changes(engine_args.pairs(text)) == changes


@pytest.mark.parametrize("text", ["a={b: 1", "a='b", 'a="b', "a=[1, 2", "a=}]{", "'a=b"])
def test_engine_arguments_that_are_not_closed_are_refused(text):
    with pytest.raises(ValueError, match="give `key=value` pairs"):
        engine_args.pairs(text)


@pytest.mark.parametrize("text", ["a=1 a=2", "max-num-seqs=1 max_num_seqs=1"])
def test_a_key_is_given_once(text):
    with pytest.raises(ValueError, match=r"give `(a|max_num_seqs)` once"):
        engine_args.pairs(text)
