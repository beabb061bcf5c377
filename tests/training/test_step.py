from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from vispeft.structures import Batch, DenoisingPredictions, LayerPredictions, Predictions, Targets
from vispeft.training.devices import build_fabric
from vispeft.training.step import LossModule, SealedBatch, in_float32


def test_loss_module__under_bf16_the_model_computes_in_bf16_and_the_loss_in_fp32(
    make_run: Callable[..., Any], batch_of: Callable[..., Batch]
) -> None:
    dtypes: dict[str, torch.dtype] = {}

    def criterion(predictions: Predictions, targets: Sequence[Targets]) -> dict[str, Tensor]:
        product = predictions.final.mask_embeddings @ predictions.mask_features.flatten(2)
        dtypes.update(logits=predictions.final.class_logits.dtype, product=product.dtype, boxes=targets[0].boxes.dtype)
        return {"mask": product.mean()}

    fabric = build_fabric("cpu", "bf16")
    model = make_run().make_model()
    seen: list[torch.dtype] = []
    model.class_embed.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    module = fabric.setup(LossModule(model, criterion))
    batch = batch_of(0)
    loss = module(SealedBatch(batch))["mask"]
    assert seen == [torch.bfloat16]
    assert dtypes == {"logits": torch.float32, "product": torch.float32, "boxes": torch.float32}
    assert loss.dtype == torch.float32
    fabric.backward(loss)
    assert model.mask_embed.weight.grad.dtype == torch.float32


def test_in_float32__converts_every_tensor_and_keeps_structure() -> None:
    layer = LayerPredictions(*(torch.ones(1, 2, n, dtype=torch.bfloat16) for n in (3, 4, 5)))
    denoising = DenoisingPredictions((layer, layer), num_groups=2, group_size=1)
    predictions = in_float32(Predictions((layer,), torch.ones(1, 5, 2, 2, dtype=torch.bfloat16), layer, denoising))
    assert predictions.denoising is not None
    assert predictions.proposals is not None
    assert (len(predictions.denoising.layers), predictions.denoising.num_groups) == (2, 2)
    for one in (*predictions.layers, predictions.proposals, *predictions.denoising.layers):
        assert {one.class_logits.dtype, one.boxes.dtype, one.mask_embeddings.dtype} == {torch.float32}
    assert predictions.mask_features.dtype == torch.float32
