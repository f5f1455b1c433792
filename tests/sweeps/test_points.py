"""Every combination is a point once, and its id says what decides its result and nothing else."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling.config import DEFAULT_MODEL
from scaling.records.errors import UsageError
from sweeps.grid import GridFile
from sweeps.labels import Words, axes_of, telling, value_of, varied
from sweeps.plan import config_of, plan_of
from sweeps.points import hashed, points_of


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


OWN = """
from scaling.methods.kinds import Trait


class Mine:
    traits = (Trait.PATHS,)
    latent_paths = 3

    def __init__(self, surroundings, steps=1):
        self.steps = steps

    def thoughts(self, question):
        return None
"""


def test_a_method_of_the_users_own_is_on_an_axis_with_the_options_it_has_a_use_for(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    mine = f"{tmp_path / 'own.py'}:Mine"
    found = points(axes={"method": ["cot", mine], "method_args": ["steps=1", "steps=2"]}, train={})
    assert [point.run.get("method_args") for point in found] == [None, {"steps": 1}, {"steps": 2}]
    assert [point.run["latent_paths"] for point in found] == [1, 3, 3]
    assert [point.training for point in found] == [None] * 3
    for key, values in {"latent_paths": [1, 2], "soft_tokens": [2, 4], "control": ["zero", "mean"]}.items():
        assert len(points(run={"method": mine}, axes={key: values})) == 2, key
    for key, values in {"noise": [0.1, 0.2], "shots": [0, 1], "thinker": ["x", "y"]}.items():
        assert len(points(run={"method": mine}, axes={key: values})) == 1, key


def test_a_method_of_the_users_own_is_another_point_once_its_code_has_changed(tmp_path):
    for place in ("own.py", "moved.py"):
        (tmp_path / place).write_text(OWN)
    before = only(method=f"{tmp_path / 'own.py'}:Mine")
    assert only(method=f"{tmp_path / 'moved.py'}:Mine").id == before.id
    (tmp_path / "own.py").write_text(f"{OWN}# mended\n")
    assert only(method=f"{tmp_path / 'own.py'}:Mine").id != before.id
    with pytest.raises(UsageError, match="cannot be read"):
        only(method=f"{tmp_path / 'gone.py'}:Mine")


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
    ("method", "written"),
    [
        ("cot", {"task": "arithmetic"}),
        ("cot", {"limit": 20}),
        ("cot", {"max_new_tokens": 96}),
        ("softcot-p", {"noise": 0.2}),
        ("softcot", {"thinker": "trained-default"}),
        ("cot", {"engine": "vllm", "engine_seeds": "streams"}),
    ],
)
def test_a_default_that_depends_on_other_settings_changes_no_id_either(method, written):
    given = {key: value for key, value in written.items() if key == "engine"}
    plain, told = only(method=method, **given), only(method=method, **written)
    assert (plain.id, plain.group) == (told.id, told.group)


@pytest.mark.parametrize("written", [{"lr": 2e-3}, {"epochs": 1}, {"latent_paths": 8}])
def test_a_default_of_the_training_that_is_written_down_makes_no_other(written):
    (plain,), (told,) = (points(run={"method": "softcot++"}, train=train) for train in ({}, written))
    assert (plain.training, plain.id) == (told.training, told.id)


def test_a_generated_task_has_twenty_questions_where_no_number_is_said():
    asked = {point.run["limit"] for point in points(run={"method": "cot"}, axes={"limit": [None, 20, 30]})}
    assert asked == {20, 30}
    assert only(method="cot", task="gsm8k").run.get("limit") is None
    assert only(method="cot", data="here.jsonl").run.get("limit") is None


def test_paths_are_those_of_the_thinker_where_no_number_is_said(tmp_path):
    (trained,) = points(run={"method": "softcot++"}, train={"latent_paths": 4})
    assert trained.run["latent_paths"] == 4
    (tmp_path / "config.json").write_text('{"num_paths": 3}')
    assert only(method="softcot++", thinker=str(tmp_path)).run["latent_paths"] == 3
    assert only(method="softcot-p", thinker=str(tmp_path)).run["latent_paths"] == 8, "drawn around one thought"
    with pytest.raises(UsageError, match="add `latent_paths` under `run`"):
        only(method="softcot++", thinker="somebody/elses")


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
    base = {"method": "softcot++", "latent_paths": 8}
    before, after = only(**base), only(**(base | change))
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


@pytest.mark.parametrize(
    "axes",
    [
        {"batch_size": [1, 2]},
        {"how": [{"samples": 1, "batch_size": 8}, {"samples": 8, "batch_size": 1}]},
        {"how": [{"engine": "vllm", "engine_args": {"max_num_seqs": number}} for number in (1, 2)]},
        {"train.gradient_checkpointing": [True, False]},
        {"method": ["softcot", "softcot-p"], "how": [{"train.device": "cpu"}, {"noise": 0.1, "train.device": "cuda"}]},
    ],
)
def test_how_it_is_carried_out_is_no_axis(axes):
    with pytest.raises(UsageError, match=r"`(train\.)?\w+` changes no result, so it is no axis: set it once under"):
        points(run={"method": "softcot"}, axes=axes)


def test_the_batch_of_a_training_decides_and_that_of_a_run_does_not():
    found = points(run={"method": "softcot++"}, axes={"train.batch_size": [2, 4]})
    assert len({point.training for point in found}) == 2


def test_engine_arguments_that_may_change_a_result_are_told_apart():
    how = [
        {"engine": "transformers"},
        *({"engine": "vllm", "engine_args": own} for own in ({}, {"quantization": "fp8"})),
    ]
    found = points(run={"method": "cot"}, axes={"engine": how})
    assert len({point.group for point in found}) == 3
    words = Words(found)
    assert [words.label(point, ["engine", "engine_args"]) for point in found] == [
        "engine transformers",
        "engine vllm, engine_args ",
        "engine vllm, engine_args quantization fp8",
    ]


def test_settings_of_a_training_are_heeded_wherever_they_stand():
    variants = [{"train.lr": 0.01}, {"train.lr": 0.1}]
    assert [p.train["lr"] for p in points(run={"method": "softcot"}, axes={"variant": variants})] == [0.01, 0.1]
    (point,) = points(include=[{"method": "softcot", "train.max_steps": 5}])
    assert point.train["max_steps"] == 5


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


def test_an_exclusion_sees_the_number_of_paths_that_is_not_said():
    rule = [{"latent_paths": 8}]
    assert len(points(run={"method": "softcot++"}, axes={"seed": [0], "latent_paths": [None, 4]}, exclude=rule)) == 1
    (four,) = points(train={"latent_paths": 4}, axes={"latent_paths": [None, 2]}, exclude=[{"latent_paths": 4}])
    assert four.run["latent_paths"] == 2


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


def test_a_backbone_that_was_trained_to_think_is_not_trained_again(tmp_path):
    for name, about in (("plain", None), ("lora", {"method": "lora"}), ("coconut", {"method": "coconut"}), ("odd", [])):
        (tmp_path / name).mkdir()
        if about is not None:
            (tmp_path / name / "train.json").write_text(json.dumps(about))
        (point,) = points(run={"method": "coconut", "backbone": str(tmp_path / name)}, train={"max_steps": 3})
        assert (point.training is None) is (name == "coconut")


@pytest.mark.parametrize(("rank", "takes"), [(None, "backbone"), (8, "adapter")])
def test_latent_steps_are_trained_into_the_backbone_or_beside_it(rank, takes):
    axes = {"control": [None, "mean"], "train.seed": [0, 1], "latent_steps": [None, 2]}
    file = GridFile(name="grid", run={"method": "coconut"}, train={"max_steps": 1, "rank": rank}, axes=axes)
    found = points_of(file)
    assert len(found) == 2 * 2 * 2
    assert len({point.training for point in found}) == 2, "one for each seed"
    jobs = [job for job in plan_of(file, found).jobs if job.kind == "run"]
    (extent,) = jobs[0].extents
    assert {job.takes for job in jobs} == {takes}
    config = config_of(jobs[0], extent, trained="there")
    assert getattr(config, takes) == "there"
    assert (config.backbone == DEFAULT_MODEL) is (takes == "adapter")


def test_a_generated_task_takes_no_data_of_its_name_where_there_are_none(tmp_path):
    (tmp_path / "prosqa").mkdir()
    tasks = ["countdown", "prosqa", "gsm8k"]
    found = points(run={"method": "cot", "data": f"{tmp_path}/{{task}}"}, axes={"task": tasks})
    assert [point.run.get("data") for point in found] == [None, f"{tmp_path}/prosqa", f"{tmp_path}/gsm8k"]


def test_settings_that_follow_from_others_are_not_said_of_a_job():
    tasks = [{"task": "gsm8k", "temperature": 0.8, "train.targets": "self"}, {"task": "aqua", "temperature": 0.5}]
    axes = {"task": tasks, "method": ["cot", "softcot"], "seed": [0, 1]}
    keys = ["task", "temperature", "train.targets", "method", "seed"]
    assert telling(points(train={"max_steps": 1}, axes=axes), keys) == ["task", "method", "seed"]


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


def test_settings_that_a_training_has_no_use_for_are_not_shown():
    axes = {"method": ["softcot", "softcot++", "lora"], "train.contrastive": ["none", "view"]}
    told = {(p.run["method"], value_of(p, "train.contrastive")) for p in points(train={}, axes=axes)}
    assert told == {("softcot", None), ("softcot++", "none"), ("softcot++", "view"), ("lora", None)}


def test_every_thinker_is_trained_as_its_own_kind_and_rounds_are_an_axis():
    axes = {"method": ["softcot++", "softcot", "prompt-tuning", "proposer", "refiner"], "refine_steps": [1, 8]}
    found = points(run={"assistant": "there"}, train={"max_steps": 3, "states": "last"}, axes=axes)
    trained = {point.run["method"]: point.train for point in found}
    assert {name: train.get("method", "softcot++") for name, train in trained.items()} == {
        name: "softcot++" if name == "softcot" else name for name in trained
    }
    assert [name for name, train in trained.items() if {"assistant", "states"} & set(train)] == ["softcot++", "softcot"]
    assert {point.run.get("refine_steps") for point in found if point.run["method"] == "refiner"} == {1, 8}
    assert len(found) == len(axes["method"]) + 1, "only a refiner has rounds"
    assert len({point.training for point in found}) == len(axes["method"]), "rounds of a run need no other training"


def test_paths_are_told_apart_by_their_last_parts_as_many_as_it_takes():
    for paths, words in (
        (["a/x/model", "a/y/model"], ["x/model", "y/model"]),
        (["a/one", "b/two/"], ["one", "two"]),
        (["name", "there/name"], ["name", "there/name"]),
    ):
        found = points(run={"method": "cot"}, axes={"backbone": paths})
        told = Words(found)
        assert [told.of("backbone", point.run["backbone"]) for point in found] == words


@pytest.mark.parametrize(
    ("rule", "left"),
    [
        ({"latent_paths": 8, "samples": 8}, ["cot"]),
        ({"latent_paths": 8}, ["cot"]),
        ({"train.contrastive": "view"}, ["cot", "softcot++"]),
        ({"samples": 1}, ["cot", "softcot++"]),
    ],
    ids=str,
)
def test_an_exclusion_does_not_see_what_a_point_has_no_use_for(rule, left):
    axes = {"method": ["cot", "softcot++"], "latent_paths": [8], "samples": [8], "seed": [0]}
    assert [point.run["method"] for point in points(axes=axes, exclude=[rule])] == left


def test_an_exclusion_of_the_generated_task_spares_files(tmp_path):
    axes = {"method": ["cot"], "data": [str(tmp_path / "mine.jsonl"), None]}
    (kept,) = points(axes=axes, exclude=[{"task": "arithmetic"}])
    assert kept.run["data"] == str(tmp_path / "mine.jsonl")


def test_greedy_decoding_is_excluded_as_one_sample():
    axes = {"method": ["cot"], "temperature": [0.0, 1.0], "samples": [4]}
    (kept,) = points(axes=axes, exclude=[{"samples": 1}])
    assert kept.run["temperature"] == 1.0


def test_no_training_learns_from_the_file_that_is_tested(tmp_path):
    file, other, folder = tmp_path / "mine.jsonl", tmp_path / "other.jsonl", tmp_path / "folder"
    file.touch()
    other.touch()
    folder.mkdir()
    with pytest.raises(UsageError, match=r"mine\.jsonl is a file, which trainings would learn from"):
        points(run={"method": "softcot", "data": str(file)}, train={})
    with pytest.raises(UsageError, match="give a folder with"):
        points(run={"method": "softcot", "data": str(file)}, train={"data": str(file)})
    assert points(run={"method": "softcot", "data": str(file)}, train={"data": str(other)})
    assert points(run={"method": "softcot", "data": str(folder)}, train={})
    assert points(run={"method": "cot", "data": str(file)}, train={})


def test_a_tested_file_is_known_under_another_name_and_what_is_trained_on_may_be_left_out(tmp_path):
    file, link = tmp_path / "mine.jsonl", tmp_path / "link.jsonl"
    file.touch()
    link.symlink_to(file)
    run = {"method": "softcot", "data": str(file)}
    for refused in ({}, {"overlap": "refuse"}):
        with pytest.raises(UsageError, match="or add `overlap: drop` under `run`"):
            points(run=run | refused, train={"data": str(link)})
    assert points(run=run | {"overlap": "drop"}, train={})
    (kept,) = {point.group for point in points(axes={"overlap": [None, "warn"]}, run={"method": "softcot"})}
    assert kept != only(method="softcot", overlap="drop").group


def test_a_thinker_with_too_few_paths_is_known_before_anything_runs(tmp_path):
    with pytest.raises(UsageError, match=r"`latent_paths` 16 needs .* the thinker trained-default has 8"):
        points(axes={"latent_paths": [1, 16]})
    (tmp_path / "config.json").write_text('{"num_paths": 3}')
    own = {"method": "softcot++", "thinker": str(tmp_path)}
    assert only(**own, latent_paths=3)
    with pytest.raises(UsageError, match="has 3"):
        only(**own, latent_paths=4)
    assert only(latent_paths=16, thinker="untrained")
    assert only(latent_paths=16, backbone="another/model"), "without a trained thinker, it is untrained"
    assert only(latent_paths=16, method="softcot-p"), "drawn around one thought"


# ---- files of users


OWN_TASK = """
from scaling.tasks.task import Task


class Own(Task):
    request = "{}"
"""
REQUEST = '{{% extends "plain" %}}{{% block request %}}{}{{% endblock %}}'
FILES = {
    "assistant_prompt": ("think.jinja", REQUEST),
    "prompt": ("own.jinja", REQUEST),
    "task": ("own.py", OWN_TASK),
    "yaml": ("own.yaml", "data: own.jsonl\nkind: number\ninstruction: {}\n"),
    "method": ("method.py", OWN.replace("latent_paths = 3", "latent_paths = 3\n    note = '{}'")),
}


@pytest.mark.parametrize("option", FILES)
def test_an_edited_file_makes_another_point_and_training(tmp_path, option):
    name, text = FILES[option]
    file = tmp_path / name

    def of(words):
        file.write_text(text.format(words))
        key = "task" if option == "yaml" else option
        run = {"method": "softcot", "latent_paths": 1} | {key: str(file)}
        (point,) = points(run=run, train=None if option == "method" else {})
        return point

    before, after, again = of("Say it."), of("Say that."), of("Say it.")
    assert (before.id, before.group, before.training) == (again.id, again.group, again.training)
    assert before.id != after.id
    assert before.group != after.group
    assert option == "method" or before.training != after.training


def test_an_assistants_template_decides_nothing_where_no_assistant_takes_part(tmp_path):
    def of(words):
        (tmp_path / "think.jinja").write_text(REQUEST.format(words))
        return only(method="cot", assistant_prompt=str(tmp_path / "think.jinja")).id

    assert of("Say it.") == of("Say that.") == only(method="cot").id


def test_trained_constants_are_known_by_their_tensors_and_not_by_their_place(tmp_path, monkeypatch):
    def training(folder):
        (point,) = points(run={"method": "softcot++"}, train={"constant": str(folder)})
        return point.training, point.id

    (tmp_path / "constants").mkdir()
    tensors = tmp_path / "constants" / "thinker.safetensors"
    tensors.write_bytes(b"one")
    before = training(tmp_path / "constants")
    monkeypatch.chdir(tmp_path)
    assert training("constants") == before
    tensors.write_bytes(b"another")
    trained_again = training("constants")
    assert not set(trained_again) & set(before)
    tensors.write_bytes(b"one")
    assert training("constants") == before
    tensors.unlink()
    with pytest.raises(UsageError, match="`--constant`"):
        training("constants")


def test_a_value_that_is_not_given_is_called_default():
    found = points(run={"method": "cot"}, axes={"instruction": [None, "Go."]})
    words = Words(found)
    assert words.values("instruction") == ["default", "Go."]
    assert [words.label(point, ["instruction"]) for point in found] == ["instruction default", "instruction Go."]
    assert [words.cell(point, "noise") for point in found] == ["-", "-"], "cot has no use for it"


def test_latent_steps_are_an_axis_of_coconut_alone():
    fixed = {"backbone": "there", "noise": 0.2, "limit": 3}
    axes = {"method": ["cot", "coconut"], "latent_steps": [0, 3, 6], "latent_paths": [1, 8]}
    file = GridFile(name="x", run=fixed, axes=axes)
    found = points_of(file)
    assert [point.run["latent_steps"] for point in found if "latent_steps" in point.run] == [0, 0, 3, 3, 6, 6]
    assert len(found) == 1 + 2 * 3, "chain of thought has neither"
    of_coconut = [point for point in found if point.run["method"] == "coconut"]
    assert len({point.group for point in of_coconut}) == 3, "paths of the same steps are one run"
    labels = {Words(found).label(point, axes_of(file, found)) for point in found}
    assert "coconut, latent_steps 6, latent_paths 8" in labels
    assert [label for label in labels if "latent_steps" not in label] == ["cot, latent_paths 1"]


def test_trainings_of_slots_at_once_keep_the_ids_that_they_had_before_there_were_others():
    """Those knew neither `states` nor `stage`: all else that is not at its default made their ids."""

    def training(**train):
        (point,) = points(run={"method": "softcot++"}, train={"max_steps": 3, **train}, axes={"seed": [0]})
        return point.training

    formerly = {"states": "slots", "stage": "at-once"}
    assert training(**formerly) == hashed({"max_steps": 3, "limit": 24, "task": "arithmetic", "lr": 2e-3})
    assert len({training(**formerly), training(), training(states="slots"), training(stage="at-once")}) == 4
