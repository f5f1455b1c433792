"""What this machine can do: the device and number type that suit it, its free memory, its processor. Loads no model."""

from __future__ import annotations

import platform
import resource
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Protocol, Self, TypeVar

import psutil
import torch

from scaling.records.errors import UsageError


class Placeable(Protocol):
    """Settings that say where models are, and of what type."""

    @property
    def device(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    def model_copy(self, *, update: Mapping[str, Any]) -> Self: ...


Config = TypeVar("Config", bound=Placeable)


def pick_device(device: str, *, option: str = "--device") -> str:
    """`auto` is CUDA where there is one, otherwise the CPU. Raises UsageError, which names the option, for a device this
    machine lacks."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"`{option}` {device} is not usable here ({str(error).splitlines()[0]}); try cpu.") from None
    return device


def pick_dtype(dtype: str, device: str) -> torch.dtype:
    """`auto` is bfloat16 where the hardware multiplies it faster, otherwise float32."""
    if dtype != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[dtype]
    if device.startswith("cuda"):
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return torch.bfloat16 if device == "cpu" and multiplies_bfloat16() else torch.float32


def placed(config: Config) -> tuple[Config, torch.dtype]:
    """With device and type of the models chosen. Raises UsageError for a device that this machine lacks."""
    device = pick_device(config.device)
    if apart := getattr(config, "assistant_device", None):  # of settings that know one
        pick_device(apart, option="--assistant-device")
    dtype = pick_dtype(config.dtype, device)
    return config.model_copy(update={"device": device, "dtype": str(dtype).removeprefix("torch.")}), dtype


def multiplies_bfloat16() -> bool:
    """Whether this CPU is faster at products of bfloat16 than of float32.

    It is with matrix units (AMX), and with AVX-512's instructions on AMD's (EPYC, two cores: 395 against 166 GFLOP/s). On an
    Intel Xeon whose matrix units the virtual machine hides, these instructions have half the speed (64 x 576 x 1536, two
    cores: 130 against 222 GFLOP/s), and without any, bfloat16 products run at a third of it.
    """
    abilities = torch.cpu.get_capabilities()
    intel = "intel" in str(abilities.get("cpu_name", "")).lower()
    return bool(abilities.get("amx_bf16") or (abilities.get("avx512_bf16") and not intel))


def available_memory(root: Path = Path("/")) -> int:
    """Bytes that this process may still take: what is free on the machine, and no more than its own limits (`ulimit -v` and
    `-d`) and those of its control groups, a container's or a batch job's, leave. root: where /proc and /sys lie."""
    free = int(psutil.virtual_memory().available)
    return max(0, min([free, *_left_by_limits(root), *_left_by_groups(root)]))


def _left_by_limits(root: Path) -> Iterator[int]:
    used = _fields(root / "proc/self/status")  # in kB; none on macOS
    for limit, key in ((resource.RLIMIT_AS, "VmSize:"), (resource.RLIMIT_DATA, "VmData:")):
        soft, _ = resource.getrlimit(limit)
        if soft != resource.RLIM_INFINITY and key in used:
            yield soft - 1024 * used[key]


def _left_by_groups(root: Path) -> Iterator[int]:
    """Of every control group that this process is in, versions 1 and 2, and of those around it."""
    for hierarchy in _lines(root / "proc/self/cgroup"):
        _, controllers, group = [*hierarchy.split(":", 2), "", ""][:3]
        if controllers and "memory" not in controllers.split(","):
            continue
        files, mounted = (_GROUP_1, "sys/fs/cgroup/memory") if controllers else (_GROUP_2, "sys/fs/cgroup")
        inside = PurePosixPath(group.lstrip("/"))
        # in a container the path may be the host's, and only the mounted root is there to be read: it is among the parents
        for folder in (root / mounted / part for part in (inside, *inside.parents)):
            limit, used = (_number(folder / name) for name in files[:2])
            if limit is not None and used is not None:
                # files that were read are kept as long as nobody needs the memory
                yield limit - used + _fields(folder / "memory.stat").get(files[2], 0)


# limit, use, and what of that can be given back
_GROUP_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_GROUP_2 = ("memory.max", "memory.current", "inactive_file")


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return []


def _number(file: Path) -> int | None:
    """None where there is no such file, or it says `max`."""
    text = "".join(_lines(file))
    return int(text) if text.isdecimal() else None


def _fields(file: Path) -> dict[str, int]:
    """Lines of a name and a number."""
    words = (line.split() for line in _lines(file))
    return {line[0]: int(line[1]) for line in words if len(line) > 1 and line[1].isdecimal()}


def peak_memory(device: torch.device) -> int:
    """Bytes at their peak in this process: what torch held on a GPU, else all of the process, its models included."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def cpu_name() -> str:
    return str(torch.cpu.get_capabilities().get("cpu_name") or platform.machine())
