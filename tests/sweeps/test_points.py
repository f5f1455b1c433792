"""Every combination is a point once, and its id says what decides its result and nothing else."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sweeps.grid import GridFile
from sweeps.points import axes_of, points_of, value_of, varied


def points(**parts):
    return points_of(GridFile(name="grid", **parts))


def only(**run):
    (point,) = points(run=run)
    return point


def ids(**parts):
    return {point.id for point in points(**parts)}


AXES = {"method": ["cot", "softcot++"], "samples": [1, 4], "seed": [0, 1], "latent_paths": [1, 2, 8]}


def test_one_path_methods_have_no_axis_of_paths():
    found = points(axes=AXES)
    assert len(found) == 2 * 2 + 2 * 2 * 3  # cot: samples x seeds; softcot++: and paths
    assert {point.run["latent_paths"] for point in found if point.run["method"] == "cot"} == {1}


def test_options_that_a_method_has_no_use_for_make_no_points():
    for key, values in {"soft_tokens": [2, 4], "noise": [0.1, 0.2], "control": ["zero", "mean"]}.items():
        assert len(points(run={"method": "cot"}, axes={key: values})) == 1, key
        used = "softcot-p" if key == "noise" else "softcot"
        assert len(points(run={"method": used}, axes={key: values})) == 2, key


def test_greedy_decoding_has_one_sample():
    found = points(run={"method": "softcot"}, axes={"temperature": [0, 0.8], "samples": [1, 2, 3]})
    assert len(found) == 1 + 3


@settings(deadline=None)
@given(st.permutations(list(AXES)), st.permutations([0, 1]))
def test_ids_do_not_depend_on_the_order_in_which_they_are_written(order, seeds):
    axes = {**AXES, "seed": seeds}
    assert ids(axes={key: axes[key] for key in order}) == ids(axes=AXES)


def test_ids_are_the_same_in_every_process():
    code = (
        "from sweeps.grid import GridFile; from sweeps.points import points_of;"
        f"print(sorted(p.id for p in points_of(GridFile(name='other', axes={AXES!r}))))"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told.strip() == str(sorted(ids(axes=AXES)))


def test_a_default_that_is_written_down_changes_no_id():
    defaults = {"seed": 0, "dtype": "auto", "top_k": 0, "samples": 4, "latent_paths": 8}
    plain, written = only(method="softcot++"), only(method="softcot++", **defaults)
    assert (plain.id, plain.group) == (written.id, written.group)


@pytest.mark.parametrize(
    "change",
    [
        *(
            {"seed": 1},
            {"temperature": 0.3},
            {"top_p": 0.5},
            {"soft_tokens": 7},
            {"dtype": "float32"},
            {"difficulty": 2},
        ),
        *({"max_new_tokens": 5}, {"backbone": "x"}, {"thinker": "x"}, {"control": "zero"}, {"method": "softcot"}),
    ],
)
def test_what_decides_a_result_changes_id_and_group(change):
    before, after = only(method="softcot++"), only(**{"method": "softcot++", **change})
    assert before.id != after.id
    assert before.group != after.group


@pytest.mark.parametrize("change", [{"limit": 3}, {"latent_paths": 2}, {"samples": 2}])
def test_size_changes_the_id_and_not_the_group(change):
    before, after = only(method="softcot++"), only(method="softcot++", **change)
    assert before.id != after.id
    assert before.group == after.group


@pytest.mark.parametrize("change", [{"device": "cpu"}, {"batch_size": 3}, {"max_batch_tokens": 999}])
def test_how_it_is_carried_out_changes_no_id(change):
    assert only(method="softcot++").id == only(method="softcot++", **change).id


def test_a_growing_axis_keeps_the_points_it_had():
    assert ids(axes=AXES) < ids(axes={**AXES, "seed": [0, 1, 2]})
    assert ids(axes=AXES) < ids(axes={**AXES, "temperature": [1.0, 0.5]}), "0.5 is what it was"


def test_include_adds_and_exclude_takes_away():
    base = ids(axes=AXES)
    beside = {"method": "assist-cot", "samples": [1, 2]}
    assert len(ids(axes=AXES, include=[beside])) == len(base) + 2
    kept = points(axes=AXES, exclude=[{"method": "softcot++", "latent_paths": [1, 2]}, {"seed": 1, "samples": 4}])
    expected = {
        (m, s, seed, n)
        for m in AXES["method"]
        for s in AXES["samples"]
        for seed in AXES["seed"]
        for n in AXES["latent_paths"]
        if not (m == "softcot++" and n in (1, 2)) and not (seed == 1 and s == 4)
    }
    expected = {(m, s, seed, n if m == "softcot++" else 1) for m, s, seed, n in expected}
    assert {(p.run["method"], p.run["samples"], p.run.get("seed", 0), p.run["latent_paths"]) for p in kept} == expected


def test_an_exclusion_sees_defaults():
    assert len(points(axes={"seed": [0, 1], "method": ["cot"]}, exclude=[{"temperature": 0.7}])) == 2
    default = value_of(only(method="cot"), "temperature")
    with pytest.raises(Exception, match="has no points"):
        points(axes={"method": ["cot"]}, exclude=[{"temperature": default}])


def test_an_axis_of_mappings_sets_several_settings_at_once():
    pairs = [{"backbone": "a", "assistant": "b"}, {"backbone": "c", "assistant": "d", "train.lr": 0.5}]
    found = points(run={"method": "softcot"}, train={}, axes={"models": pairs})
    assert [(p.run["backbone"], p.run["assistant"]) for p in found] == [("a", "b"), ("c", "d")]
    assert [p.train.get("lr") for p in found] == [None, 0.5]
    assert {(p.train["backbone"], p.train["assistant"]) for p in found} == {("a", "b"), ("c", "d")}


def test_runs_share_a_training_where_it_is_the_same():
    found = points(train={"max_steps": 3}, axes={"method": ["cot", "softcot", "softcot++"], "seed": [0, 1, 2]})
    by_method = {}
    for point in found:
        by_method.setdefault(point.run["method"], set()).add(point.training)
    assert by_method["cot"] == {None}
    assert len(by_method["softcot"]) == len(by_method["softcot++"]) == 1
    assert by_method["softcot"] != by_method["softcot++"], "one path and eight are two trainings"


def test_a_setting_of_the_training_makes_trainings_and_one_of_decoding_does_not():
    base = {"run": {"method": "softcot++"}, "train": {"max_steps": 3}}
    assert len({p.training for p in points(**base, axes={"train.contrastive": ["none", "view"]})}) == 2
    assert len({p.training for p in points(**base, axes={"temperature": [0.5, 0.8]})}) == 1
    assert len({p.training for p in points(**base, axes={"soft_tokens": [2, 4]})}) == 2, "L is of both"


def test_a_method_with_nothing_to_contrast_is_trained_once():
    axes = {"method": ["softcot"], "train.contrastive": ["none", "view"], "train.contrastive_weight": [0.5, 1.0]}
    assert len(points(train={}, axes=axes)) == 1


def test_without_contrast_its_weight_makes_no_training():
    weights = {"train.contrastive": ["none", "view"], "train.contrastive_weight": [0.1, 1.0]}
    assert len({p.training for p in points(run={"method": "softcot++"}, train={}, axes=weights)}) == 1 + 2


def test_a_checkpoint_that_is_given_is_not_trained():
    (point,) = points(run={"method": "softcot", "thinker": "there"}, train={"max_steps": 3})
    assert point.training is None


def test_the_task_stands_in_the_path_of_its_data():
    found = points(run={"method": "cot", "data": "there/{task}"}, axes={"task": ["gsm8k", "aqua"]})
    assert [point.run["data"] for point in found] == ["there/gsm8k", "there/aqua"]


def test_varied_settings_are_those_in_which_points_differ():
    found = points(train={"max_steps": 3}, axes={"method": ["cot", "softcot"], "samples": [1, 2]})
    assert {"method", "samples"} <= set(varied(found))
    assert "limit" not in varied(found)


def test_a_table_shows_the_axes_with_their_defaults():
    file = GridFile(
        name="x", run={"limit": 3}, train={"max_steps": 2}, axes={"method": ["cot", "softcot"], "seed": [0, 1]}
    )
    found = points_of(file)
    assert axes_of(file, found) == ["method", "seed"]
    assert {value_of(point, "seed") for point in found} == {0, 1}
    assert {value_of(point, "train.max_steps") for point in found} == {None, 2}
    assert value_of(only(method="cot"), "soft_tokens") is None, "of no use to it"
