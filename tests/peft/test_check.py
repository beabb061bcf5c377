"""No delta may sleep."""

import pytest
import torch
from torch import Tensor

from vispeft.errors import PlanError
from vispeft.peft import Adapter, LoRA, Plan, check, inject


@pytest.mark.parametrize("site", ["self_attn.out_proj", "reader"])
def test_check__names_a_delta_whose_module_is_never_called(build, images: Tensor, site: str) -> None:
    model = build()
    inject(model, Plan({site: LoRA(2), "conv": LoRA(2)}))
    with pytest.raises(PlanError, match=rf"never run.*`{site}\.lora`\..*such as `{site}\.weight`"):
        check(model, images)


def test_check__takes_tensors_tuples_and_mappings_and_leaves_the_model_as_it_was(build, images: Tensor) -> None:
    model = build().train()
    inject(model, Plan({"conv": LoRA(2)}))
    state = {key: value.clone() for key, value in model.state_dict().items()}
    for example in (images, (images,), {"images": images}):
        check(model, example)
    assert model.training
    assert model.blocks[0].attn.drop.training
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_check__names_the_site_whose_width_was_guessed_wrong(build, images: Tensor) -> None:
    model = build()
    model.blocks[0].late = torch.nn.Linear(8, 5)
    inject(model, Plan({"blocks.0": Adapter(width=2)}))
    with pytest.raises(PlanError, match=r"`blocks\.0\.adapter` does not fit what its site gives"):
        check(model, images)


def test_check__needs_a_plan(build, images: Tensor) -> None:
    with pytest.raises(PlanError, match=r"no plan\. Call `inject"):
        check(build(), images)
