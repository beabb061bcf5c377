"""Measurements of `bench_kernels.py`: cases, implementations, time with and without CUDA graphs, memory, ceilings.

On a CUDA device, several calls are timed between two events and divided by their number. This includes launches, except
in `graph_ms`, for which one captured call is replayed. On the CPU, the time is the process time of one thread. Every
round measures all implementations, so that a slow phase of the machine affects all of them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

Tensors = dict[str, Tensor]
PASSES = ("forward", "forward + backward")


@dataclass(frozen=True)
class Bound:
    """An implementation with its inputs.

    call: function that returns the outputs
    leaves: inputs that get gradients
    frozen: other inputs; they exist anyway and do not count as kept for backward
    """

    call: Callable[[], list[Tensor]]
    leaves: list[Tensor]
    frozen: list[Tensor] = field(default_factory=list)


@dataclass(frozen=True)
class Entry:
    """One implementation of a case.

    bind: function that binds the inputs; raises ImportError if a library is missing, which the table shows
    is_limit: a lower bound of the time that does less work than the others, such as the frozen product alone
    is_ours: an implementation of this project
    is_random: results are random, so that they are not compared with the reference
    is_captured: try to capture a CUDA graph
    """

    bind: Callable[[Tensors], Bound]
    is_limit: bool = False
    is_ours: bool = False
    is_random: bool = False
    is_captured: bool = True


@dataclass(frozen=True)
class Case:
    """One operation at one size.

    draw: function that returns the tensors, in float32 on the CPU
    reference: name of the implementation that is run in float64 for comparison
    baseline: name of the implementation to which ratios refer
    min_work: minimum of elements moved and of operations, for each of PASSES
    exact: names of tensors that stay in float32 for every dtype
    """

    kernel: str
    name: str
    draw: Callable[[], Tensors]
    entries: Mapping[str, Entry]
    reference: str
    baseline: str
    min_work: Mapping[str, tuple[float, float]]
    exact: tuple[str, ...] = ()


@dataclass(frozen=True)
class Measurement:
    """Time and memory (MiB) of one implementation. error: relative to the largest entry of output or gradient"""

    kernel: str
    case: str
    entry: str
    passes: str
    dtype: str
    is_ours: bool = False
    is_limit: bool = False
    median_ms: float | None = None
    quartiles_ms: tuple[float, float] | None = None
    graph_ms: float | None = None
    ratio: float | None = None
    graph_ratio: float | None = None
    peak_mb: float | None = None
    kept_mb: float | None = None
    bandwidth_share: float | None = None
    rate_share: float | None = None
    error: float | None = None
    failure: str = ""


@dataclass(frozen=True)
class Settings:
    device: torch.device
    dtype: torch.dtype
    rounds: int
    round_ms: float  # duration of the calls of one round, on a CUDA device
    graphs: bool
    skip: frozenset[str] = field(default_factory=frozenset)


@dataclass(frozen=True)
class Ceilings:
    """Measured peak throughput of the machine: bytes read and written by a copy, and operations of a large product."""

    gigabytes_per_s: float
    teraflops: float


def vit_sizes(scale: str) -> list[tuple[str, int, str, int]]:
    """Return model, width, image and batch as text, and tokens of the batch. Patches have 16 pixels."""
    if scale == "cpu":
        return [("ViT-B", 768, "640 px, batch 1", 40 * 40)]
    batches = ("640 px, batch 5", 5 * 40 * 40), ("1024 px, batch 8", 8 * 64 * 64)
    return [(model, width, *batch) for model, width in (("ViT-B", 768), ("ViT-L", 1024)) for batch in batches]


def plain(function: Callable[..., list[Tensor]], *trained: str) -> Callable[[Tensors], Bound]:
    """Return a `bind` for a function that takes the tensors of a case by name. trained: tensors with gradients"""

    def bind(tensors: Tensors) -> Bound:
        frozen = [tensor for name, tensor in tensors.items() if name not in trained]
        return Bound(lambda: function(**tensors), [tensors[name] for name in trained], frozen)

    return bind


def compiled(function: Callable[..., list[Tensor]], *trained: str) -> Callable[[Tensors], Bound]:
    """Return a `bind` like `plain`, with the function compiled anew for each case."""
    return lambda tensors: plain(torch.compile(function, dynamic=False), *trained)(tensors)


def measure_ceilings(settings: Settings) -> Ceilings:
    """Measure a copy and a product of a large size."""
    is_cuda = settings.device.type == "cuda"
    count, side = (2**29, 8192) if is_cuda else (2**23, 1536)
    source = torch.zeros(count, dtype=settings.dtype, device=settings.device)
    into = torch.empty_like(source)
    a, b = torch.randn(2, side, side, device=settings.device).to(settings.dtype)
    copy_ms = min(time_rounds({"copy": lambda: into.copy_(source)}, settings)["copy"])
    product_ms = min(time_rounds({"product": lambda: a @ b}, settings)["product"])
    return Ceilings(2 * source.nbytes / copy_ms / 1e6, 2 * side**3 / product_ms / 1e9)


def time_rounds(runs: Mapping[str, Callable[[], object]], settings: Settings) -> dict[str, list[float]]:
    """Return the milliseconds of one call of each implementation, by round."""
    calls = {}
    for name, run in runs.items():
        for _ in range(3 if settings.device.type == "cuda" else 1):
            run()
        calls[name] = max(1, int(settings.round_ms / max(1e-3, _time(run, 2, settings.device))))
        if settings.device.type != "cuda":
            calls[name] = 1
    found: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(settings.rounds):
        for name, run in runs.items():
            found[name].append(_time(run, calls[name], settings.device))
    return found


def _time(run: Callable[[], object], calls: int, device: torch.device) -> float:
    """Return the milliseconds of one call, averaged over `calls`."""
    if device.type != "cuda":
        started = time.process_time()
        for _ in range(calls):
            run()
        return (time.process_time() - started) * 1e3 / calls
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    begin.record()
    for _ in range(calls):
        run()
    end.record()
    torch.cuda.synchronize()
    return float(begin.elapsed_time(end)) / calls


def measure_case(case: Case, settings: Settings, ceilings: Ceilings) -> list[Measurement]:
    """Measure a case. An implementation that fails has a reason instead of measurements."""
    inputs = {
        name: tensor.to(settings.device, torch.float32 if name in case.exact else settings.dtype)
        for name, tensor in case.draw().items()
    }
    dtype = str(settings.dtype).removeprefix("torch.")
    grads, reference = _reference(case, inputs, settings.dtype)
    bound: dict[str, Bound] = {}
    errors: dict[str, float] = {}
    measurements: list[Measurement] = []
    for name, entry in case.entries.items():
        if settings.skip & {name, name.split(", ")[-1]}:
            continue
        try:
            one = entry.bind(_leaves(inputs))
            found = _results(one, grads)
        except Exception as failure:  # a library may raise anything; the table shows it
            reason = f"{type(failure).__name__}: {failure}".splitlines()[0][:160]
            measurements.append(Measurement(case.kernel, case.name, name, "", dtype, entry.is_ours, failure=reason))
            continue
        bound[name] = one
        if not entry.is_limit and not entry.is_random:
            errors[name] = _error(found, reference)
        del found
    del reference
    for passes in PASSES:
        runs = {name: _run_of(one, grads, passes) for name, one in bound.items()}
        times = time_rounds(runs, settings)
        graphs = {
            name: _time_graph(run, settings) if case.entries[name].is_captured else None for name, run in runs.items()
        }
        base = statistics.median(times[case.baseline]) if case.baseline in times else None
        for name, run in runs.items():
            median = statistics.median(times[name])
            best = min(median, graphs[name] or median)
            elements, flops = case.min_work[passes]
            measurements.append(
                Measurement(
                    case.kernel,
                    case.name,
                    name,
                    passes,
                    dtype,
                    case.entries[name].is_ours,
                    case.entries[name].is_limit,
                    median,
                    _quartiles(times[name]),
                    graphs[name],
                    _ratio(median, base),
                    _ratio(graphs[name], graphs.get(case.baseline)),
                    _peak_mb(run, settings.device),
                    _kept_mb(bound[name]) if passes == PASSES[1] else None,
                    elements * settings.dtype.itemsize / best / 1e6 / ceilings.gigabytes_per_s,
                    flops / best / 1e9 / ceilings.teraflops,
                    errors.get(name),
                )
            )
    return measurements


def _reference(case: Case, inputs: Tensors, dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
    """Return an output gradient for each output, and the outputs and input gradients in float64."""
    one = case.entries[case.reference].bind(_leaves({name: tensor.double() for name, tensor in inputs.items()}))
    generator = torch.Generator().manual_seed(1)
    grads = [torch.randn(out.shape, generator=generator).to(out.device, dtype) for out in one.call()]
    return grads, _results(one, [grad.double() for grad in grads])


def _ratio(time: float | None, base: float | None) -> float | None:
    return time / base if time and base else None


def _leaves(tensors: Tensors) -> Tensors:
    return {name: tensor.detach().requires_grad_() for name, tensor in tensors.items()}


def _results(bound: Bound, grads: list[Tensor]) -> list[Tensor]:
    """Return the outputs and gradients."""
    outs = bound.call()
    return [*(out.detach() for out in outs), *torch.autograd.grad(outs, bound.leaves, grads)]


def _error(ours: list[Tensor], reference: list[Tensor]) -> float:
    return max(
        float((one.double() - two).abs().max() / two.abs().max().clamp(min=1e-30))
        for one, two in zip(ours, reference, strict=True)
    )


def _run_of(bound: Bound, grads: list[Tensor], passes: str) -> Callable[[], object]:
    if passes == PASSES[0]:

        def forward() -> object:
            with torch.no_grad():
                return bound.call()

        return forward
    return lambda: torch.autograd.grad(bound.call(), bound.leaves, grads)


def _quartiles(times: list[float]) -> tuple[float, float]:
    if len(times) < 2:
        return times[0], times[0]
    low, _, high = statistics.quantiles(times, n=4, method="inclusive")
    return low, high


def _time_graph(run: Callable[[], object], settings: Settings) -> float | None:
    """Return the milliseconds of one replay of a captured call; None without graphs or if the capture fails."""
    if settings.device.type != "cuda" or not settings.graphs:
        return None
    try:
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
    except RuntimeError:
        torch.cuda.synchronize()
        return None
    return statistics.median(time_rounds({"graph": graph.replay}, settings)["graph"])


def _peak_mb(run: Callable[[], object], device: torch.device) -> float | None:
    """Return the peak MiB above the memory before the call, on a CUDA device; None on others."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return float(torch.cuda.max_memory_allocated() - before) / 2**20


def _kept_mb(bound: Bound) -> float:
    """Return the MiB of distinct storages that a forward pass keeps for backward, without its inputs."""
    known = {leaf.untyped_storage().data_ptr() for leaf in [*bound.leaves, *bound.frozen]}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outs = bound.call()
    del outs
    return sum(kept.values()) / 2**20
