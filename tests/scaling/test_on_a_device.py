"""The engine on a device that is only pretended: how often the host waits for it, and what its kernels are given.

Tensors say that they are on `cuda:0` and are computed on the CPU. What would make the host wait for a GPU is counted, and
operators that a GPU refuses are refused. Nothing here says how fast a GPU is, or that its kernels are right: that is what
tests/gpu is for.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from transformers import PreTrainedModel

from scaling.engines.base import Decoding, Generated, Request
from scaling.engines.local import kernels
from scaling.engines.local.engine import TransformersEngine

MakeModel = Callable[..., PreTrainedModel]
SomeRequests = Callable[..., list[Request]]
aten = torch.ops.aten
DEVICE = torch.device("cuda:0")
ROWS_OF_A_LOG_SUM_EXP = 32
# operators whose result has a size that only the values tell
SIZED_BY_VALUES = (
    aten.nonzero,
    aten._unique2,
    aten.unique_dim,
    aten.unique_consecutive,
    aten.masked_select,
    aten.bincount,
)

# what gives the host values
TOLD = (Tensor.tolist, Tensor.item, Tensor.__bool__, Tensor.__int__, Tensor.__float__, Tensor.__index__)


class OnDevice(Tensor):
    """A tensor that says it is on DEVICE. inner: the same on the CPU."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> OnDevice:
        made = Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=DEVICE,
        )
        made.inner = inner
        return made

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """What does not go through the dispatcher as it is, or asks for the device before."""
        if func in TOLD:
            Pretended.wait(func.__name__)
            return func(args[0].inner)
        if func is Tensor.nonzero:
            Pretended.wait("nonzero")
        if func in (Tensor.contiguous, Tensor.__invert__, Tensor.nonzero):
            return OnDevice(func(args[0].inner))
        if func is Tensor.__getitem__:
            return OnDevice(inner_of(args[0])[index_on_host(args[1])])
        if func is Tensor.__setitem__:
            if isinstance(args[2], Tensor) and not isinstance(args[2], OnDevice) and args[2].ndim:
                Pretended.wait("assignment from the host")
            args[0].inner[index_on_host(args[1])] = inner_of(args[2])
            return None
        return super().__torch_function__(func, types, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        return run_on_device(func, args, kwargs or {})


class Pretended(TorchDispatchMode):
    """While entered, there is a DEVICE. waits: why the host had to wait for it, in order. kernels: calls of each."""

    waits: ClassVar[list[str]] = []
    kernels: ClassVar[Counter[str]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run_on_device(func, args, kwargs or {})

    @classmethod
    def wait(cls, why: str) -> None:
        cls.waits.append(why)


def inner_of(value: Any) -> Any:
    return value.inner if isinstance(value, OnDevice) else value


def index_on_host(index: Any) -> Any:
    """An index for the inner tensor. Lists and masks would make the host wait."""
    for part in index if isinstance(index, tuple) else (index,):
        on_device = isinstance(part, OnDevice)
        if isinstance(part, list) or (isinstance(part, Tensor) and (not on_device or part.dtype == torch.bool)):
            Pretended.wait("index from the host, or by a mask")
    return tree_map(inner_of, index)


def run_on_device(func: Any, args: Any, kwargs: Any) -> Any:
    """Runs an operator on the CPU, as if on the device where its tensors are."""
    with Pretended():  # operators made of others are seen as a whole in inference mode
        if (made := func.decompose(*args, **kwargs)) is not NotImplemented:
            return made
    packet = func.overloadpacket
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    on_device = any(isinstance(tensor, OnDevice) for tensor in tensors)
    target = kwargs.get("device")
    to_device = on_device if target is None else torch.device(target).type == DEVICE.type
    moves = packet in (aten._to_copy, aten.copy_)
    sides = {to_device, *(isinstance(tensor, OnDevice) for tensor in tensors)}
    if moves and len(sides) > 1 and not kwargs.get("non_blocking"):
        Pretended.wait(f"copy to the {'device' if to_device else 'host'}")
    if on_device and (packet is aten._local_scalar_dense or packet in SIZED_BY_VALUES):
        Pretended.wait(str(packet))
    if on_device and not moves:
        strangers = [tensor for tensor in tensors if not isinstance(tensor, OnDevice) and tensor.ndim]
        assert not strangers, f"{func} takes tensors on the device and on the host at once"
    inner_args, inner_kwargs = tree_map(inner_of, (args, kwargs))
    if target is not None:
        inner_kwargs["device"] = torch.device("cpu")
    found = KERNELS.get(packet, func)(*inner_args, **inner_kwargs)
    if packet is aten.copy_:
        return args[0]
    return tree_map(lambda leaf: OnDevice(leaf) if isinstance(leaf, Tensor) else leaf, found) if to_device else found


def flash(
    query: Tensor, key: Tensor, value: Tensor, dropout: float = 0.0, causal: bool = False, *_: Any, scale: float
) -> Any:
    """As torch's FlashAttention: half precision, no mask."""
    Pretended.kernels["flash"] += 1
    assert query.dtype in (torch.bfloat16, torch.float16)
    assert query.shape[:2] == key.shape[:2] == value.shape[:2]
    assert dropout == 0
    return *kernels.in_blocks(query, key, value, None, scale, causal), None


def efficient(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    logs: bool,
    dropout: float = 0.0,
    causal: bool = False,
    *,
    scale: float,
) -> Any:
    """As torch's memory-efficient attention: an aligned bias of its type and all its axes, a padded log-sum-exp."""
    Pretended.kernels["efficient"] += 1
    assert logs
    assert dropout == 0
    assert query.dtype != torch.float64
    assert query.shape[:2] == key.shape[:2] == value.shape[:2]
    if bias is not None:
        assert not causal
        assert bias.dtype == query.dtype
        assert bias.shape == (*query.shape[:3], key.shape[2])
        assert bias.stride(-1) == 1
        assert bias.storage_offset() % 8 == 0
        assert all(stride % 8 == 0 for stride, size in zip(bias.stride()[:-1], bias.shape, strict=False) if size > 1)
    out, lse = kernels.in_blocks(query, key, value, bias, scale, causal)
    missing = -lse.shape[-1] % ROWS_OF_A_LOG_SUM_EXP
    return out, torch.nn.functional.pad(lse, (0, missing), value=torch.inf), None


KERNELS: dict[Any, Callable[..., Any]] = {
    aten._scaled_dot_product_flash_attention: flash,
    aten._scaled_dot_product_efficient_attention: efficient,
}


@pytest.fixture(autouse=True)
def pretended(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Pretended]]:
    halves = (torch.bfloat16, torch.float16)
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: None)
    monkeypatch.setattr(kernels, "can_use_flash_attention", lambda given: given.query.dtype in halves)
    monkeypatch.setattr(kernels, "can_use_efficient_attention", lambda given: given.query.dtype != torch.float64)
    before = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)  # tensors of lists are made on the host and then moved, as without a GPU
    Pretended.waits, Pretended.kernels = [], Counter()
    with Pretended():
        yield Pretended
    torch._C._set_only_lift_cpu_tensors(before)


def moved(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    model.to(dtype).requires_grad_(False)
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # else parameters would stay of their old class
    try:
        return model.to(DEVICE)
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)


def decoded(
    model: PreTrainedModel, requests: Sequence[Request], decoding: Decoding, *, end: Sequence[int] = (), **options: Any
) -> list[Generated]:
    engine = TransformersEngine(model, end_tokens=end, **{"batch_size": 8, "max_batch_tokens": 4096, **options})
    assert engine.plain_because is None, engine.plain_because
    found = {id(done.request): done for done in engine.generate(requests, decoding)}
    return [found[id(request)] for request in requests]


GREEDY = Decoding(temperature=0.0, top_p=1.0, top_k=0, max_new_tokens=6)
SAMPLED = Decoding(temperature=0.9, top_p=0.9, top_k=30, max_new_tokens=6, log_probs=True)


@pytest.mark.parametrize(
    ("family", "dtype"), [("llama", torch.float32), ("gemma3", torch.float32), ("llama", torch.float64)]
)
def test_tokens_are_those_of_the_cpu(
    make_model: MakeModel, some_requests: SomeRequests, family: str, dtype: torch.dtype
) -> None:
    """Whatever rows are refilled, moved and given up on the way."""
    requests = some_requests(make_model(family), questions=2, paths=2, samples=2)
    expected = decoded(make_model(family).to(dtype), requests, SAMPLED, end=(5, 6, 7), batch_size=3)
    found = decoded(moved(make_model(family), dtype), requests, SAMPLED, end=(5, 6, 7), batch_size=3)
    assert [(one.tokens, one.stop_reason) for one in found] == [(one.tokens, one.stop_reason) for one in expected]
    assert set(Pretended.kernels) == ({"efficient"} if dtype == torch.float32 else set())


def test_half_precision_takes_flash_attention_where_there_is_no_mask(
    make_model: MakeModel, some_requests: SomeRequests
) -> None:
    model = make_model("llama")
    found = decoded(moved(model, torch.bfloat16), some_requests(model, questions=1), GREEDY)
    assert all(len(one.tokens) == GREEDY.max_new_tokens for one in found)
    assert min(Pretended.kernels["flash"], Pretended.kernels["efficient"]) > 0


@pytest.mark.parametrize(("family", "decoding"), [("llama", SAMPLED), ("gemma3", GREEDY)])
def test_the_host_waits_once_a_token(
    make_model: MakeModel, some_requests: SomeRequests, family: str, decoding: Decoding
) -> None:
    """Also where rows end, at different times, and others move into their places."""
    model = moved(make_model(family), torch.float32)
    waits_before: list[int] = []
    requests = some_requests(model, questions=2, paths=2, samples=2)
    engine = TransformersEngine(model, end_tokens=(), batch_size=8, max_batch_tokens=4096)
    first = {id(done.request): done.tokens for done in engine.generate(requests, decoding)}
    some = (first[id(requests[0])][2], first[id(requests[5])][3])
    engine = TransformersEngine(model, end_tokens=some, batch_size=8, max_batch_tokens=4096)
    hook = model.register_forward_pre_hook(lambda *_: waits_before.append(len(Pretended.waits)))
    lengths = {len(done.tokens) for done in engine.generate(requests, decoding)}
    hook.remove()
    steps = waits_before[-engine.counters.decode_steps :]
    assert len(lengths) > 1, "rows end at different times"
    assert len(steps) > 3
    assert {after - before for before, after in itertools.pairwise(steps)} == {1}


def test_an_exact_step_waits_once_too(make_model: MakeModel, some_requests: SomeRequests) -> None:
    model = moved(make_model("llama"), torch.float64)
    engine = TransformersEngine(model, end_tokens=(), batch_size=8, max_batch_tokens=4096, exact=True)
    assert (engine.block or 0) > 1
    waits_before: list[int] = []
    model.register_forward_pre_hook(lambda *_: waits_before.append(len(Pretended.waits)))
    assert len(list(engine.generate(some_requests(model, questions=1), GREEDY))) == 6
    steps = waits_before[-engine.counters.decode_steps :]
    assert {after - before for before, after in itertools.pairwise(steps)} == {1}


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: int(x.max()),
        lambda x: x.tolist(),
        lambda x: bool((x > 1).any()),
        lambda x: x[x > 1],
        lambda x: x[[0, 1]],
        lambda x: x.nonzero(),
        lambda x: torch.unique(x),
        lambda x: x.cpu(),
        lambda x: torch.tensor([1, 2], device=x.device),
    ],
)
@pytest.mark.parametrize("inference", [False, True])
def test_what_makes_a_host_wait_is_counted(wait: Callable[[Tensor], Any], inference: bool) -> None:
    """The measure itself: each of these synchronises a host with its GPU."""
    with torch.inference_mode(inference):
        values = torch.arange(4, device=DEVICE)
        before = len(Pretended.waits)
        wait(values)
        assert len(Pretended.waits) == before + 1


def test_what_a_device_does_by_itself_is_not_counted() -> None:
    values = torch.arange(4, device=DEVICE)
    values[1:3] = values[torch.tensor([0, 1]).to(DEVICE, non_blocking=True)] * 2
    values.masked_fill_(values > 1, -1)
    assert Pretended.waits == []
    assert values.tolist() == [0, 0, -1, -1]
