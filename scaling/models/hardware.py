"""Asks this machine what it can do: which device and dtype suit it, how much memory is free, which processor it has.

Loads no model.
"""

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
    """Settings that have a device and a dtype for the models."""

    @property
    def device(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    def model_copy(self, *, update: Mapping[str, Any]) -> Self: ...


Config = TypeVar("Config", bound=Placeable)


def pick_device(device: str, *, option: str = "--device") -> str:
    """Chooses the device for `auto`: CUDA where there is a GPU, otherwise the CPU. Any other device is checked.

    Args:
        device: `auto`, or a device by torch's name.
        option: the option that has this value, for messages.

    Raises:
        UsageError: this machine does not have the device.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"`{option}` {device} is not usable here ({str(error).splitlines()[0]}); try cpu.") from None
    return device


def device_type(device: str) -> str:
    """The type of a device: `cuda` for `cuda:1`, and `cpu` for `cpu:0`, as one of several processes calls its CPU."""
    return device.partition(":")[0]


def pick_dtype(dtype: str, device: str) -> torch.dtype:
    """Chooses the dtype for `auto`.

    On a CPU this is bfloat16 where the CPU multiplies it faster, otherwise float32. On a GPU it is bfloat16, or float16
    where the GPU does not support that.
    """
    if dtype != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[dtype]
    kind = device_type(device)
    if kind == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return torch.bfloat16 if kind == "cpu" and multiplies_bfloat16() else torch.float32


def placed(config: Config) -> tuple[Config, torch.dtype]:
    """Replaces `auto` by the device and the dtype that suit this machine.

    Returns:
        The settings with both filled in, and the dtype as torch has it.

    Raises:
        UsageError: this machine does not have the device, or that of the assistant, or cannot do what `--quantize` asks.
    """
    device = pick_device(config.device)
    if assistant_device := getattr(config, "assistant_device", None):  # settings of trainings have none
        pick_device(assistant_device, option="--assistant-device")
    if getattr(config, "quantize", None):
        from scaling.models import int8  # imported here, because it imports transformers

        int8.refuse_unfit(device)
    dtype = pick_dtype(config.dtype, device)
    return config.model_copy(update={"device": device, "dtype": str(dtype).removeprefix("torch.")}), dtype


def multiplies_bfloat16() -> bool:
    """Whether this CPU multiplies matrices of bfloat16 faster than of float32.

    It does so with matrix units (AMX), and on AMD's processors with the bfloat16 instructions of AVX-512 (EPYC, two cores:
    395 against 166 GFLOP/s). On an Intel Xeon whose matrix units a virtual machine hides, these instructions are slower than
    float32 (64 x 576 x 1536, two cores: 130 against 222 GFLOP/s). Without any such instructions, bfloat16 has a third of the
    speed of float32.
    """
    abilities = torch.cpu.get_capabilities()
    intel = "intel" in str(abilities.get("cpu_name", "")).lower()
    return bool(abilities.get("amx_bf16") or (abilities.get("avx512_bf16") and not intel))


def available_memory(root: Path = Path("/")) -> int:
    """Bytes of memory that this process may still take.

    This is the least of: what is free on the machine, what the process's own limits leave (`ulimit -v` and `-d`), and what
    the limits of its control groups leave, as a container or a batch job has them.

    Args:
        root: the folder of /proc and /sys.
    """
    free = int(psutil.virtual_memory().available)
    return max(0, min([free, *_left_by_limits(root), *_left_by_groups(root)]))


def _left_by_limits(root: Path) -> Iterator[int]:
    """Yields the bytes that each limit of the process leaves."""
    used = _fields(root / "proc/self/status")  # in kB; none on macOS
    for limit, key in ((resource.RLIMIT_AS, "VmSize:"), (resource.RLIMIT_DATA, "VmData:")):
        soft, _ = resource.getrlimit(limit)
        if soft != resource.RLIM_INFINITY and key in used:
            yield soft - 1024 * used[key]


def _left_by_groups(root: Path) -> Iterator[int]:
    """Yields the bytes that each control group leaves: those that this process is in, and those around them.

    Both versions of control groups are read.
    """
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


# names of a control group's files for its limit and its use, and the field of what can be given back of the use
_GROUP_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_GROUP_2 = ("memory.max", "memory.current", "inactive_file")


def _lines(file: Path) -> list[str]:
    """The lines of a file, none where it cannot be read."""
    try:
        return file.read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return []


def _number(file: Path) -> int | None:
    """The number in a file; None where there is no such file, or where it says `max`."""
    text = "".join(_lines(file))
    return int(text) if text.isdecimal() else None


def _fields(file: Path) -> dict[str, int]:
    """The numbers in a file whose lines are a name and a number, by name. Other lines are left out."""
    rows = (line.split() for line in _lines(file))
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdecimal()}


def peak_memory(device: torch.device) -> int:
    """Peak memory of this process in bytes: what torch allocated on a GPU, or all memory of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def cpu_name() -> str:
    """The processor's name, or its architecture where the name is not known."""
    return str(torch.cpu.get_capabilities().get("cpu_name") or platform.machine())
