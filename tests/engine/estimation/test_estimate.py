"""Estimates compared with real passes of the smallest configuration, and proposals."""

import importlib.util
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from vispeft import peft
from vispeft.config import load_config
from vispeft.engine import Estimate, Limits, estimate, propose
from vispeft.engine.attach import attach
from vispeft.engine.estimation.base_model import base_without_weights
from vispeft.engine.estimation.propose import NothingFitsError
from vispeft.engine.estimation.simulated_step import make_batch
from vispeft.engine.settings import criterion_of
from vispeft.training.step import LossModule, SealedBatch

ROOT = Path(__file__).parents[3]
CONFIG = ROOT / "configs" / "bundled_lora.yaml"
SMALL = ["model.image_size=64", "train.batch_size=2", "train.device=cpu"]


@pytest.fixture(scope="module")
def small() -> Estimate:
    """The estimate of the smallest configuration."""
    return estimate(load_config(CONFIG, SMALL))


def test_estimate__has_the_flops_of_a_real_step(small: Estimate) -> None:
    base = base_without_weights(load_config(CONFIG, SMALL))
    attach(base.model, base.config)
    peft.train_mode(base.model)
    step = LossModule(base.model, criterion_of(base.config, base.model))
    with FlopCounterMode(display=False) as counter:
        loss = torch.stack(list(step(SealedBatch(make_batch(base.config, base.model, base.num_objects))).values()))
        forward = counter.get_total_flops()
        loss.sum().backward()
    assert small.step_forward_flops == pytest.approx(forward, rel=0.02)
    assert small.step_flops == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_estimate__adds_up(small: Estimate) -> None:
    assert sum(region.total for region in small.regions) == small.total_params
    assert sum(sum(region.trained.values()) for region in small.regions) == small.trainable_params
    assert small.gradient_bytes == 4 * small.trainable_params
    assert small.optimizer_bytes == 8 * small.trainable_params
    assert small.weight_bytes + small.optimizer_bytes + small.activation_bytes <= small.peak_bytes
    assert small.first_block == "backbone.body.model.patch_embed.proj"


def test_recomputation__keeps_less_and_computes_more(small: Estimate) -> None:
    recomputed = estimate(load_config(CONFIG, [*SMALL, "model.activation_checkpointing=true"]))
    assert recomputed.activation_bytes < small.activation_bytes
    assert recomputed.peak_bytes < small.peak_bytes
    assert recomputed.step_backward_flops > small.step_backward_flops


def test_later_blocks__need_no_gradient_before_them() -> None:
    words = [*SMALL, 'peft.deltas={"@encoder.qkv[2:]": {method: lora, rank: 2}}', 'peft.train=["@heads"]']
    assert estimate(load_config(CONFIG, words)).first_block.endswith("blocks.2")


@pytest.mark.slow
def test_proposals__fit_the_budget_and_train() -> None:
    found = propose(load_config(CONFIG, SMALL), Limits(share=0.03, text="--budget 3%")).found
    assert found
    for proposal in found:
        again = estimate(load_config(CONFIG, [*SMALL, *proposal.overrides]))
        assert again.trainable_params == proposal.estimate.trainable_params <= 0.03 * again.total_params
    assert "docs/study/" in found[0].reason


@pytest.mark.slow
def test_proposals__leave_out_what_a_backbone_of_another_kind_cannot_have() -> None:
    words = ["model.image_size=64", "model.weights=mask2former_r50", "train.batch_size=1", "train.steps=10"]
    config = load_config(ROOT / "configs" / "mask2former_r50_adapter.yaml", words)
    found = propose(config, Limits(share=0.05, text="--budget 5%")).found
    assert [proposal.name for proposal in found if "prompts" in proposal.name] == []
    assert "1 adapter after every attention of the decoders" in [proposal.name for proposal in found]
    assert all("train.methods" not in word for proposal in found for word in proposal.overrides)
    assert "base of this configuration is another" in found[0].reason


def test_nothing_fits__names_the_smallest() -> None:
    with pytest.raises(
        NothingFitsError,
        match="smallest is class head, norms, and LoRA in backbone and deformable attention, rank 4 with 84,944",
    ):
        propose(load_config(CONFIG, SMALL), Limits(count=10, text="--budget 10"))


def test_evidence__is_that_of_the_raw_files() -> None:
    spec = importlib.util.spec_from_file_location("study_evidence", ROOT / "tools" / "study_evidence.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.TABLE.read_text() == module.text()
