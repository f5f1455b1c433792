"""A grid file is read as written, or refused with what to do instead."""

from __future__ import annotations

import pytest

from scaling.records.errors import UsageError
from sweeps.grid import check_value, read_grid
from sweeps.points import points_of

AXES = {"method": ["cot", "softcot"], "samples": [1, 2]}


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"axis": AXES}, "unknown key `axis`.*Did you mean `axes`"),
        ({"axes": {"latent_path": [1]}}, "unknown setting `latent_path`.*Did you mean `latent_paths`"),
        ({"axes": {"train.max_step": [1]}}, "unknown setting `train.max_step`.*Did you mean `train.max_steps`"),
        ({"axes": {"contrastive": ["none"]}}, "Did you mean `train.contrastive`"),
        ({"run": {"sample": 1}}, "unknown setting `sample`.*Did you mean `samples`"),
        ({"train": {"lrr": 1}}, "unknown setting `train.lrr`.*Did you mean `train.lr`"),
        ({"run": {"out": "here"}}, "`out` cannot be set in a grid"),
        ({"run": {"adaptive": 0.9}}, "`adaptive` cannot be set"),
        ({"axes": {"samples": [1, 0]}}, "`samples` in the grid.*0.*greater than or equal to 1"),
        ({"axes": {"method": ["cott"]}}, "`method` in the grid"),
        ({"axes": {"samples": []}}, "the axis `samples`.*has no values"),
        ({"axes": {"samples": 3}}, "`axes.samples`.*list"),
        ({"axes": {"device": ["cpu", "cuda"]}}, "`device` changes no result"),
        ({"retries": -1}, "`retries`"),
        ({"shard": 0}, "`shard`"),
        ({"name": "two words"}, "`name`"),
        ({"axes": AXES, "exclude": [{"method": ["cot", "softcot"]}]}, "has no points"),
        ({"axes": {"task": ["stratgyqa"]}}, "`task` in the grid.*Did you mean `strategyqa`"),
        ({"train": {"method": "lora"}}, "`train.method` cannot be set in a grid: methods with thoughts"),
        ({"small": {"axis": {}}}, "unknown key `small.axis`.*Did you mean `axes`"),
        ({"small": {"run": {"limt": 1}}}, "unknown setting `limt`.*Did you mean `limit`"),
        ({"small": {"train": {"lrr": 1}}}, "unknown setting `train.lrr`.*Did you mean `train.lr`"),
        ({"small": {"axes": {"models": [{"backbon": "a"}]}}}, "unknown setting `backbon`.*Did you mean `backbone`"),
        ({"small": {"axes": {"seed": 1}}}, "`small.axes.seed`.*list"),
        ({"axes": {"x": [{1: 2}]}}, "the key 1 .* is no text.*put it in quotes"),
        ({"axes": {"seed": [1], True: [2]}}, "the key True .* is no text.*put it in quotes"),
        ({"run": {"quantization": "fp8"}}, "goes into `engine_args`, as in `engine_args: quantization=VALUE`"),
        ({"run": ["limit"]}, "`run` in .* must be a mapping"),
        ({"axes": ["seed"]}, "`axes` in .* must be a mapping"),
        ({"axes": {"method": ["softcot++"], "latent_paths": [9]}, "train": {}}, "9 needs a thinker with as many"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_what_can(grid, parts, said):
    with pytest.raises(UsageError, match=said):
        points_of(read_grid(grid(**parts)))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [", "not valid YAML"),
        ("- 1", "must be a mapping"),
        ("", "mapping"),
        ("run: {limit: 3, limit: 4}", "the key `limit` stands there twice"),
        ("run: {<<: {seed: 1}, limit: 3, limit: 4}", "the key `limit` stands there twice"),
        ("axes: {x: &x [*x]}", "unknown setting `x`"),
        ("run: {seed: 2024-02-31}", "not valid YAML: day is out of range"),
    ],
)
def test_a_file_that_is_no_grid_is_named(tmp_path, text, said):
    path = tmp_path / "grid.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=said):
        points_of(read_grid(str(path)))


def test_a_file_that_is_not_there_names_the_nearest_recipe():
    with pytest.raises(UsageError, match=r"no grid file scaling-curv.*Did you mean `scaling-curve`"):
        read_grid("scaling-curv")


def test_small_replaces_settings_and_axes_of_the_same_name_and_keeps_the_rest(grid):
    small = {"run": {"limit": 5}, "axes": {"samples": [2]}, "train": {"max_steps": 1}}
    path = grid(run={"limit": 100, "top_k": 3}, axes=AXES, train={"lr": 0.1}, small=small)
    file = read_grid(path, scale="small")
    assert file.run == {"limit": 5, "top_k": 3}
    assert file.axes == {"method": ["cot", "softcot"], "samples": [2]}
    assert file.train == {"lr": 0.1, "max_steps": 1}
    assert file.name == "grid-small"
    assert read_grid(path, scale="paper") == read_grid(path)
    with pytest.raises(UsageError, match="no part `small`"):
        read_grid(grid(axes=AXES), scale="small")
    with pytest.raises(UsageError, match="choose small, or paper"):
        read_grid(path, scale="tiny")


def test_an_empty_part_of_small_changes_nothing(grid):
    path = grid(run={"limit": 3}, train={"lr": 0.1}, axes=AXES, small={"run": None, "train": None, "axes": None})
    file, small = read_grid(path), read_grid(path, scale="small")
    assert (small.run, small.train, small.axes) == (file.run, file.train, file.axes)


def test_keys_are_merged_as_in_any_yaml_file(tmp_path):
    path = tmp_path / "grid.yaml"
    path.write_text("include: [{a: &one {<<: &other {seed: 1, limit: 2}, seed: 3}}]\nrun: {<<: *one, limit: 4}")
    assert read_grid(str(path)).run == {"seed": 3, "limit": 4}


@pytest.mark.parametrize(("stem", "name"), [("my grid (2)", "my-grid-2-"), ("_x", "x"), ("\u00e9", "grid")])
def test_a_grid_without_a_name_has_that_of_its_file(tmp_path, stem, name):
    path = tmp_path / f"{stem}.yaml"
    path.write_text("name:\naxes: {method: [cot]}")
    assert read_grid(str(path)).name == name


@pytest.mark.parametrize(
    ("text", "title"),
    [("2024", "2024"), ("007", "007"), ("accuracy: x # 1", "accuracy: x # 1"), ('"a: b"', "a: b"), ("", "")],
)
def test_a_title_from_the_command_line_is_its_text(grid, text, title):
    assert read_grid(grid(axes=AXES), changes=[f"title={text}"]).title == title


def test_a_change_sets_a_setting_and_a_list_makes_an_axis(grid):
    changes = ["samples=3", "temperature=[0.5, 1]", "train.max-steps=7", "shard=5", "title=a trial"]
    file = read_grid(grid(axes=AXES, run={"limit": 2}), changes=changes)
    assert file.axes == {"method": ["cot", "softcot"], "temperature": [0.5, 1]}
    assert file.run == {"limit": 2, "samples": 3}
    assert file.train == {"max_steps": 7}
    assert (file.shard, file.title) == (5, "a trial")
    with pytest.raises(UsageError, match="write `--set key=value`"):
        read_grid(grid(axes=AXES), changes=["samples"])
    with pytest.raises(UsageError, match=r"`axes` in .* must be a mapping"):
        read_grid(grid(axes=["seed"]), changes=["samples=3"])


def test_values_become_what_the_settings_hold():
    assert check_value("temperature", 1) == 1.0
    assert check_value("data", "there/x") == "there/x"
    with pytest.raises(UsageError, match="temperature"):
        check_value("temperature", "warm")


def test_a_change_overrules_what_a_mapping_or_a_point_beside_the_grid_says(grid):
    models = [{"backbone": "a", "samples": 2}, {"backbone": "b", "train.lr": 0.1}]
    path = grid(axes={"models": models}, train={}, include=[{"method": "cot", "samples": [8, 16]}])
    file = read_grid(path, changes=["samples=3", "train.lr=0.5"])
    assert {point.run["samples"] for point in points_of(file)} == {3}
    assert {point.train["lr"] for point in points_of(file) if point.train} == {0.5}


def test_a_list_from_the_command_line_is_what_points_beside_the_grid_have_too(grid):
    beside = {"method": "softcot", "seed": [0, 1], "samples": 1}
    path = grid(axes={"method": ["cot"], "seed": [0, 1]}, include=[beside, {"method": "assist-cot"}])
    seeds = {}
    for point in points_of(read_grid(path, changes=["seed=[5, 6]"])):
        seeds.setdefault(point.run["method"], []).append(point.run.get("seed", 0))
    assert seeds == {"cot": [5, 6], "softcot": [5, 6], "assist-cot": [0]}
