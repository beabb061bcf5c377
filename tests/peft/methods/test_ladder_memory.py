"""Memory that a ladder keeps for the backward pass."""

import timm
import torch
from torch import Tensor

from vispeft.peft import Ladder, LoRA, Method, Plan, inject, train_mode


def kept_bytes(method: Method, pattern: str) -> int:
    """Bytes that autograd keeps of a small ViT, parameters excluded."""
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=6, embed_dim=48, num_classes=0)
    inject(model, Plan({pattern: method}))
    train_mode(model)
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = model(torch.randn(4, 3, 64, 64))
    del result
    return sum(kept.values())


def test_ladder__keeps_a_fraction_of_what_lora_keeps() -> None:
    ours = kept_bytes(Ladder(12), "blocks.*")
    assert 0 < ours < 0.25 * kept_bytes(LoRA(4), "blocks.*.attn.qkv | blocks.*.mlp.fc1")
