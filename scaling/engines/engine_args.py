"""Reads and checks the settings of engines outside this process: `--engine-args`, `--base-url`. Imports no engine."""

from __future__ import annotations

import importlib.util
import re
import shlex
import sys
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import yaml

from scaling.engines.kinds import KINDS
from scaling.records.errors import UsageError, install, one_line

_SECRET = re.compile("token$|hf_?tok|api_?key|secret|password|^watermark_config$", re.IGNORECASE)  # also misspelt
_VALUE_OF_SECRET = re.compile(
    r"""((?:token|hf_?tok|key|secret|password|passwd|auth)["']?\s*[=:]\s*["']?)[^\s&"',;}]+""", re.IGNORECASE
)
_LOGIN = re.compile(r"//[^/\s@]*@")
_QUOTES = ("'", '"')
_CLOSING = {"{": "}", "[": "]"}
# quoted text, spaces, or a sign
_PARTS = re.compile(r""" "(?:\\.|[^"\\])*" | '[^']*' | \s+ | . """, re.VERBOSE | re.DOTALL)
_INSTEAD = "and set HF_TOKEN in the environment if it is needed"
# Engine arguments that say where and how fast, not what: those that a continued run may change. Not load_format, of which
# some draw with other weights ("dummy").
_HARMLESS = frozenset(
    (
        *(
            "tensor_parallel_size",
            "pipeline_parallel_size",
            "distributed_executor_backend",
            "disable_custom_all_reduce",
        ),
        *("nnodes", "node_rank", "master_addr", "master_port", "device_ids", "numa_bind", "numa_bind_nodes"),
        *("data_parallel_size", "data_parallel_size_local", "data_parallel_rank", "data_parallel_start_rank"),
        *("data_parallel_address", "data_parallel_rpc_port", "data_parallel_backend", "data_parallel_hybrid_lb"),
        *("data_parallel_external_lb", "numa_bind_cpus", "distributed_timeout_seconds", "shutdown_timeout"),
        *("cpu_distributed_timeout_seconds", "gpu_memory_utilization", "kv_cache_memory_bytes", "cpu_offload_gb"),
        *("max_num_seqs", "max_num_batched_tokens", "max_num_scheduled_tokens", "max_model_len", "block_size"),
        *("enforce_eager", "enable_prefix_caching", "enable_chunked_prefill", "async_scheduling", "download_dir"),
        *("safetensors_load_strategy", "max_parallel_loading_workers", "use_tqdm_on_load", "ray_workers_use_nsight"),
        *("disable_log_stats", "enable_log_requests", "aggregate_engine_logging"),
    )
)


def engine_changes(engine_args: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Those arguments of an engine that may change which tokens are drawn, such as a quantisation; None without any."""
    return {key: value for key, value in (engine_args or {}).items() if key not in _HARMLESS} or None


def pairs(given: Any) -> Any:
    """Reads `key=value key=value` as a mapping. Values are YAML, and so may be JSON. In keys `-` becomes `_`.

    A mapping, as a YAML file may give it, is returned with such keys; any other type is returned as it is. Raises ValueError
    for a text that is not of this form.
    """
    if isinstance(given, Mapping):
        return {_named(key): value for key, value in given.items()}
    if not isinstance(given, str):
        return given
    try:
        pairs = [(_named(key), _read(value)) for key, value in (pair.split("=", 1) for pair in _words(given))]
    except (ValueError, yaml.YAMLError):
        raise ValueError("give `key=value` pairs, as in `tensor_parallel_size=2 gpu_memory_utilization=0.8`") from None
    if repeated := next((key for number, (key, _) in enumerate(pairs) if key in dict(pairs[:number])), None):
        raise ValueError(f"give `{repeated}` once")
    return dict(pairs)


def _words(text: str) -> list[str]:
    """Splits a text at spaces that are outside quotes and brackets. Raises ValueError where one of these is not closed."""
    words, closing = [""], list[str]()  # closing: what ends each bracket that is open
    for part in _PARTS.findall(text):
        if part.isspace() and not closing:
            words.append("")
            continue
        words[-1] += part
        if part in _CLOSING:
            closing.append(_CLOSING[part])
        elif closing and part == closing[-1]:
            closing.pop()
        elif part in _QUOTES:
            raise ValueError(f"there is only one {part}")
    if closing:
        raise ValueError(f"{closing[-1]} is missing")
    # a pair in quotes of its own is as it would be in a shell
    return ["".join(shlex.split(word)) if word[0] in _QUOTES else word for word in words if word]


def _read(value: str) -> Any:
    """Reads a value as YAML. A mapping or a list may stand in quotes, as it would in a shell."""
    read = yaml.safe_load(value)
    return yaml.safe_load(read) if isinstance(read, str) and read[:1] in ("{", "[") else read


def _named(key: Any) -> Any:
    return key.lstrip("-").replace("-", "_") if isinstance(key, str) else key


def refuse_unfit(given: Mapping[str, Any], *, batch_size: int | str) -> None:
    """Raises UsageError for engine arguments that must not be written down, or that are not what they must be."""
    for key in filter(_SECRET.search, given):
        instead = "as it also changes how tokens are chosen" if key.lower() == "watermark_config" else _INSTEAD
        raise UsageError(
            f"`--engine-args` {key} holds a secret, which would be written to disk: leave it out, {instead}."
        )
    length = given.get("max_model_len", 1)
    if type(length) is not int or length < 1:
        raise UsageError(
            f"`--engine-args` max_model_len must be a whole number of tokens from 1, and is {length!r}: give one, as "
            f"in `max_model_len=8192`, or leave it out, and it is as long as the run needs."
        )
    if "max_num_seqs" in given and batch_size != "auto":
        raise UsageError(
            f"`--batch-size` {batch_size} sets vLLM's max_num_seqs, which `--engine-args` sets to "
            f"{given['max_num_seqs']}: leave one of them out."
        )


def refuse_missing(engine: str) -> None:
    """Raises UsageError where the package of this engine is not installed. Imports nothing, so it can be asked first."""
    package = KINDS[engine].package
    if package is None or package in sys.modules or importlib.util.find_spec(package):
        return
    raise UsageError(f"`--engine {engine}` needs a package that is not installed here: {_how_to_install(engine)}")


def cannot_be_imported(engine: str, error: ImportError) -> UsageError:
    """Returns the error for an engine's package that is installed but cannot be imported.

    Raises UsageError where the package is not installed at all.
    """
    refuse_missing(engine)
    return UsageError(
        f"`--engine {engine}`: its package is installed and cannot be imported ({one_line(error)}): install it anew, with "
        f"{_how_to_install(engine)}"
    )


def _how_to_install(engine: str) -> str:
    return f"{install(engine)}{KINDS[engine].install_note}."


def without_secrets(text: str) -> str:
    """Puts *** in the place of keys, tokens and passwords, as far as the words before them show what they are."""
    return _LOGIN.sub("//***@", _VALUE_OF_SECRET.sub(r"\1***", text))


def refuse_unfit_address(url: str) -> None:
    """Raises UsageError for a `--base-url` that is no address of a server, or that may hold a secret.

    Addresses are written to disk, so they must not hold any.
    """
    if more := next((sign for sign in "@?#;" if sign in url), None):
        part = {"@": "a name or password", "?": "a query", "#": "a fragment", ";": "parameters"}[more]
        raise UsageError(
            f"`--base-url` holds {part}, which may be a secret and would be written to disk: give the address alone, as "
            f"`http://localhost:8000/v1` is, and set OPENAI_API_KEY to the key."
        )
    if not is_address(url):
        raise UsageError(
            f"`--base-url` must be an address, as `http://localhost:8000/v1` is, and is {without_secrets(url)}: give one."
        )


def is_address(url: str) -> bool:
    """Whether a text is the address of a server: http or https, and a host."""
    try:
        parts = urlsplit(url)
        _ = parts.port  # is checked as it is read
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname) and not any(map(str.isspace, url))
