"""Blocks that are compiled with the deltas inside them: as few graphs as there are forms, and equal gradients."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter, CompileCounterWithBackend
from torch._dynamo.utils import counters

from vispeft.models import build_model
from vispeft.models.layers.activation_checkpointing import run_layer
from vispeft.peft import IA3, Adapter, DoRA, LoRA, Method, Plan, ScaleShift, inject, train_mode
from vispeft.training import compilation
from vispeft.training.arguments import LoopSettings
from vispeft.training.compilation import (
    CompilationError,
    check_compiler,
    compile_blocks,
    not_compiled,
    repeated_blocks,
)

PLAN: dict[str, Method | Sequence[Method]] = {
    "blocks.*.norm1": ScaleShift(),
    "blocks.*.attn.qkv": [LoRA(rank=2, parts="qv"), IA3(parts="kv")],
    "blocks.*.attn.proj": Adapter(width=4, count=2),
    "blocks.*.mlp.fc1": DoRA(rank=2),
}


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    with torch._dynamo.config.patch(cache_size_limit=8, optimize_ddp=True):
        yield
    torch._dynamo.reset()


def encoder(deltas: dict[str, Method | Sequence[Method]]) -> nn.Module:
    """Return a plain ViT of three blocks with trained deltas, in train mode."""
    torch.manual_seed(0)
    options: dict[str, Any] = {"depth": 3, "embed_dim": 24, "num_heads": 2, "dynamic_img_size": True}
    model: nn.Module = timm.create_model("vit_tiny_patch16_224", num_classes=3, img_size=32, **options)
    inject(model, Plan(deltas, ["head"]))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    train_mode(model)
    return model


def images(height: int = 32, width: int = 32, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


def step(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Return the outputs and the gradients of everything that is trained."""
    model.zero_grad()
    output = model(x)
    output.square().sum().backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {"output": output.detach(), **grads}


def assert_close(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: name + text)


def test_compile_blocks__compiles_each_form_once_without_a_break_and_keeps_gradients() -> None:
    model = encoder(PLAN)
    keys, wanted = list(model.state_dict()), step(model, images())
    counter = CompileCounter()
    assert compile_blocks(model, backend=counter) == 3
    assert_close(step(model, images()), wanted)
    # the first block, whose input has no gradient, and all others
    assert (counter.frame_count, dict(counters["graph_break"])) == (2, {})
    assert list(model.state_dict()) == keys


@pytest.mark.parametrize("pattern", ["blocks.*.attn.qkv", "blocks.*"], ids=["inside the blocks", "of the blocks"])
def test_compile_blocks__keeps_gradients_through_autograd_of_compiled_graphs(pattern: str) -> None:
    model = encoder({pattern: [ScaleShift(), Adapter(width=4)]})
    wanted = step(model, images())
    compile_blocks(model, backend="aot_eager")
    assert_close(step(model, images()), wanted)


def test_compile_blocks__compiles_few_forms_for_any_number_of_sizes() -> None:
    model = encoder({"blocks.*.attn.qkv": LoRA(rank=2, parts="qv")})
    sizes = [(32, 32), (32, 48), (48, 32), (64, 48), (80, 64), (64, 96), (32, 32)]
    wanted = [step(model, images(*size)) for size in sizes]
    counter = CompileCounter()
    compile_blocks(model, backend=counter)
    for size, one in zip(sizes, wanted, strict=True):
        assert_close(step(model, images(*size)), one)
    # each of the two forms for the first size, and for all
    assert counter.frame_count == 4


@pytest.mark.slow
def test_compile_blocks__serves_the_layers_of_both_decoders() -> None:
    torch.manual_seed(0)
    model = build_model(
        "mask_dino",
        num_classes=2,
        backbone="resnet10t",
        pretrained=False,
        size="tiny",
        dim=32,
        ffn_dim=32,
        mask_dim=8,
        num_queries=5,
        num_points=1,
        pixel_decoder_layers=2,
        decoder_layers=2,
    )
    deltas = {"@deformable.value_proj": LoRA(rank=2), "@decoder.linear2": Adapter(width=4)}
    inject(model, Plan(deltas, ["@heads"]), model.roles())
    train_mode(model)
    blocks = [name for name, module in model.named_modules() if any(module is each for each in repeated_blocks(model))]
    assert blocks == [f"{decoder}.layers.{i}" for decoder in ("pixel_decoder", "decoder") for i in range(2)]

    def losses(height: int, width: int) -> dict[str, Tensor]:
        model.zero_grad()
        predictions = model(images(height, width))
        parts = [predictions.final.class_logits, predictions.final.predicted_boxes, predictions.mask_features]
        torch.stack([part.square().mean() for part in parts]).sum().backward()
        grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        return {**dict(zip("abc", [part.detach() for part in parts], strict=True)), **grads}

    # sides of 1 or 2 cells on a level would be forms of their own
    sizes = [(192, 192), (256, 320), (320, 256), (384, 192)]
    wanted = [losses(*size) for size in sizes]
    counter = CompileCounter()
    compile_blocks(model, backend=counter)
    counts = []
    for size, one in zip(sizes, wanted, strict=True):
        assert_close(losses(*size), one)
        counts.append(counter.frame_count)
    # in each decoder the first layer, whose input has no gradient, and the other: for the first size, and for all
    assert counts == [4, 8, 8, 8]
    assert not counters["graph_break"]


@pytest.mark.slow
def test_compile_blocks__keeps_gradients_where_activations_are_recomputed() -> None:
    model = encoder({"blocks.*.attn.qkv": LoRA(rank=2)})
    wanted = step(model, images())
    compile_blocks(model, backend="aot_eager")
    blocks = list(repeated_blocks(model))

    def forward(x: Tensor) -> Tensor:
        for block in blocks:
            x = run_layer(block, x, recompute=True)
        return x

    model.blocks.forward = forward
    assert_close(step(model, images()), wanted)


def test_not_compiled__gives_the_bits_of_a_model_that_was_never_compiled() -> None:
    model = encoder({"blocks.*.attn.qkv": [LoRA(rank=2, parts="qv"), Adapter(width=4)]})
    wanted = step(model, images())
    counter = CompileCounter()
    compile_blocks(model, backend=counter)
    with not_compiled():
        found = step(model, images())
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
    assert counter.frame_count == 0


def test_compile_blocks__leaves_copies_alone() -> None:
    model = encoder({"blocks.*.attn.qkv": LoRA(rank=2)})
    counter = CompileCounter()
    compile_blocks(model, backend=counter)
    step(copy.deepcopy(model), images())
    assert counter.frame_count == 0


def test_repeated_blocks__leaves_out_modules_of_torch_and_of_deltas() -> None:
    class Own(nn.Linear):
        pass

    plain = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    single, mixed = nn.ModuleList([Own(2, 2)]), nn.Sequential(Own(2, 2), nn.ReLU())
    inner = nn.ModuleList([Own(2, 2), Own(2, 2)])
    model = nn.ModuleDict({"plain": plain, "single": single, "mixed": mixed, "inner": nn.Sequential(inner)})
    assert list(repeated_blocks(model)) == list(inner)


def test_compile_blocks__refuses_a_model_without_blocks() -> None:
    with pytest.raises(CompilationError, match="needs repeated blocks"):
        compile_blocks(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))


def test_fit__refuses_a_model_without_blocks(make_run: Callable[..., Any]) -> None:
    with pytest.raises(CompilationError, match="needs repeated blocks"):
        make_run(settings=LoopSettings(steps=1, compiles=True)).fit()


def test_check_compiler__names_the_reason_and_the_remedy() -> None:
    def broken(graph: object, inputs: object) -> Callable[..., Any]:
        raise RuntimeError("no compiler was found")

    with pytest.raises(CompilationError, match=r"(?s)does not work here on device cpu \(.*no compiler.*CXX"):
        check_compiler(torch.device("cpu"), backend=broken)
    check_compiler(torch.device("cpu"), backend="eager")


@pytest.mark.slow
def test_compile_blocks__gives_equal_gradients_by_compiled_code() -> None:
    try:
        check_compiler(torch.device("cpu"))
    except CompilationError as error:
        pytest.skip(str(error))
    model = encoder({"blocks.*.attn.qkv | blocks.*.mlp.fc2": [LoRA(rank=2), Adapter(width=4)]})
    wanted = step(model, images())
    counter = CompileCounterWithBackend(compilation.BACKEND)
    compile_blocks(model, backend=counter)
    assert_close(step(model, images()), wanted)
    assert counter.frame_count == 2


def test_compile_blocks__fixes_the_sizes_of_blocks_with_convolutions() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.conv(x).permute(0, 2, 3, 1).relu().permute(0, 3, 1, 2)
            return out

    given: list[Any] = []

    def backend(graph: torch.fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        given.extend(graph.graph.find_nodes(op="placeholder"))
        return graph.forward

    model = nn.Sequential(Block(), Block())
    compile_blocks(model, backend=backend)
    for side in (8, 12, 16):
        assert model(torch.zeros(1, 4, side, side)).shape == (1, 4, side, side)
    sizes = [node.meta["example_value"].shape for node in given]
    assert {shape[-1] for shape in sizes if len(shape) == 4} >= {8, 12, 16}
    assert not any(isinstance(size, torch.SymInt) for shape in sizes for size in shape)
