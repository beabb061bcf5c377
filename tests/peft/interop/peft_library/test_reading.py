"""Directories that the peft library writes are the same function when read here."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from vispeft.errors import CheckpointError
from vispeft.peft import load_peft
from vispeft.peft.inject import attached

Build = Callable[[], nn.Module]
Shake = Callable[[nn.Module], None]
Make = Callable[[ModuleType], Any]

QKV = ["qkv", "fc1"]

CONFIGS: dict[str, Make] = {
    "lora": lambda peft: peft.LoraConfig(r=2, lora_alpha=6, target_modules=[*QKV, "conv", "self_attn"]),
    "lora patterns": lambda peft: peft.LoraConfig(
        r=2,
        target_modules=QKV,
        rank_pattern={"fc1": 3, r"blocks\.1\..*qkv": 1},
        alpha_pattern={"^net.blocks.0.attn.qkv": 5},
        use_rslora=True,
    ),
    "lora regex": lambda peft: peft.LoraConfig(r=2, target_modules=r".*blocks\.1\.(attn\.qkv|mlp\.fc.)"),
    "lora all-linear": lambda peft: peft.LoraConfig(
        r=2, target_modules="all-linear", exclude_modules=r"listed\..*|.*self_attn.*"
    ),
    "lora layers": lambda peft: peft.LoraConfig(
        r=2, target_modules=QKV, layers_to_transform=[1], layers_pattern="blocks"
    ),
    "lora dropout": lambda peft: peft.LoraConfig(r=2, target_modules=QKV, lora_dropout=0.5),
    "lora saved": lambda peft: peft.LoraConfig(r=2, target_modules=QKV, modules_to_save=["head", "bn"]),
    "lora bias all": lambda peft: peft.LoraConfig(r=2, target_modules=QKV, bias="all", modules_to_save=["bn"]),
    "lora bias only": lambda peft: peft.LoraConfig(r=2, target_modules=["qkv", "self_attn"], bias="lora_only"),
    "lora_bias": lambda peft: peft.LoraConfig(r=2, target_modules=["qkv", "conv"], lora_bias=True, bias="all"),
    "lora embedding": lambda peft: peft.LoraConfig(r=2, target_modules=["tokens"], lora_alpha=3),
    "lora tokens": lambda peft: peft.LoraConfig(
        r=2, target_modules=["qkv"], trainable_token_indices={"tokens": [2, 0]}
    ),
    "tokens": lambda peft: peft.TrainableTokensConfig(token_indices=[2, 0], target_modules=["tokens"]),
    "lora parameters": lambda peft: peft.LoraConfig(
        r=2, target_modules=["inner"], target_parameters=["weights.p", "weights.q", "fc1.weight"], rank_pattern={"q": 3}
    ),
    "lora pissa": lambda peft: peft.LoraConfig(
        r=2, target_modules=QKV, init_lora_weights="pissa", alpha_pattern={"qkv": 5}, modules_to_save=["bn"]
    ),
    "lora pissa of all ranks": lambda peft: peft.LoraConfig(r=64, target_modules=QKV, init_lora_weights="pissa"),
    "lora olora": lambda peft: peft.LoraConfig(r=2, target_modules=QKV, init_lora_weights="olora", use_rslora=True),
    "lora gaussian": lambda peft: peft.LoraConfig(r=2, target_modules=QKV, init_lora_weights="gaussian"),
    "lora orthogonal": lambda peft: peft.LoraConfig(r=2, target_modules=QKV, init_lora_weights="orthogonal"),
    "dora": lambda peft: peft.LoraConfig(r=2, target_modules=[*QKV, "conv"], use_dora=True, use_rslora=True),
    "dora pissa": lambda peft: peft.LoraConfig(
        r=2, target_modules=QKV, use_dora=True, init_lora_weights="pissa", lora_alpha=3
    ),
    "adalora": lambda peft: peft.AdaLoraConfig(
        init_r=3, target_r=2, target_modules=["qkv", "conv"], total_step=9, lora_alpha=5, bias="all"
    ),
    "vera": lambda peft: peft.VeraConfig(r=3, target_modules=QKV, bias="vera_only"),
    "vera seed": lambda peft: peft.VeraConfig(r=3, target_modules=QKV, save_projection=False, projection_prng_key=5),
    "loha": lambda peft: peft.LoHaConfig(
        r=3, alpha=5, target_modules=["qkv", "conv", "grouped"], rank_pattern={"conv": 2}, modules_to_save=["net.head"]
    ),
    "loha kernels": lambda peft: peft.LoHaConfig(r=3, target_modules=["conv", "grouped"], use_effective_conv2d=True),
    "lokr": lambda peft: peft.LoKrConfig(r=1, target_modules=[*QKV, "conv"], alpha=3),
    "lokr both": lambda peft: peft.LoKrConfig(r=1, target_modules=QKV, decompose_both=True, decompose_factor=4),
    "lokr whole": lambda peft: peft.LoKrConfig(r=8, target_modules=QKV, decompose_factor=5),
    "lokr kernels": lambda peft: peft.LoKrConfig(
        r=1, target_modules=["conv", "plain"], use_effective_conv2d=True, rank_pattern={"plain": 2}
    ),
    "fourierft": lambda peft: peft.FourierFTConfig(
        n_frequency=9,
        scaling=20.0,
        target_modules=QKV,
        n_frequency_pattern={"qkv": 4},
        random_loc_seed=3,
        bias="fourier_only",
    ),
    "ia3": lambda peft: peft.IA3Config(
        target_modules=["qkv", "conv", "grouped"], feedforward_modules=[], modules_to_save=["bn"]
    ),
    "ia3 inputs": lambda peft: peft.IA3Config(
        target_modules=["qkv", "fc2", "conv", "grouped"], feedforward_modules=["fc2", "conv", "grouped"]
    ),
    "oft": lambda peft: peft.OFTConfig(
        oft_block_size=4, target_modules=QKV, use_cayley_neumann=False, bias="oft_only", modules_to_save=["bn"]
    ),
    "oft shared": lambda peft: peft.OFTConfig(
        oft_block_size=4, target_modules=QKV, use_cayley_neumann=False, block_share=True
    ),
    "ln_tuning": lambda peft: peft.LNTuningConfig(target_modules=["norm1", "bn"], modules_to_save=["net.head"]),
}


@pytest.fixture
def peft() -> ModuleType:
    found: ModuleType = pytest.importorskip("peft", reason="the peft library is an extra")
    return found


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", CONFIGS.values(), ids=CONFIGS)
def test_load_peft__is_the_same_function_as_in_the_library(
    make: Make, peft: ModuleType, build: Build, images: Tensor, shake: Shake, tmp_path: Path
) -> None:
    theirs = peft.get_peft_model(build(), make(peft)).eval()
    shake(theirs)
    theirs.save_pretrained(str(tmp_path))
    ours = build()
    assert not torch.equal(ours(images), theirs(images))
    load_peft(ours, tmp_path)
    torch.testing.assert_close(ours(images), theirs(images))


@pytest.mark.filterwarnings("ignore")
def test_load_peft__leaves_out_the_triplets_that_adalora_has_given_up(
    peft: ModuleType, build: Build, images: Tensor, tmp_path: Path
) -> None:
    config = peft.AdaLoraConfig(init_r=4, target_r=1, target_modules=["qkv", "fc1"], total_step=9, tinit=1, tfinal=3)
    theirs = peft.get_peft_model(build(), config).eval()
    optimizer = torch.optim.AdamW([each for each in theirs.parameters() if each.requires_grad], lr=0.02)
    for step in range(9):
        optimizer.zero_grad()
        (theirs(images) - 1).square().sum().backward()
        optimizer.step()
        theirs.base_model.update_and_allocate(step)
    theirs.save_pretrained(str(tmp_path))
    ours = build()
    load_peft(ours, tmp_path)
    torch.testing.assert_close(ours(images), theirs(images))
    kept = json.loads((tmp_path / "adapter_config.json").read_text())["rank_pattern"].values()
    assert sorted(item.delta.method.rank for item in attached(ours)) == sorted(sum(each) for each in kept if any(each))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda peft: peft.LoraConfig(r=2, target_modules=QKV, init_lora_weights="pissa_niter_4"), "drawn at random"),
        (lambda peft: peft.LoraConfig(r=2, target_modules=QKV, alora_invocation_tokens=[1]), "alora_invocation_tokens"),
        (lambda peft: peft.LoraConfig(r=2, target_modules=["qkv"], use_qalora=True, qalora_group_size=4), "use_qalora"),
        (lambda peft: peft.LoraConfig(r=2, target_modules=["reader"], lora_bias=True), "`lora_bias` at a map without"),
        (lambda peft: peft.LoraConfig(r=4, target_modules=["grouped"]), "mix the channels"),
        (lambda peft: peft.LoraConfig(r=2, target_modules=["listed.0"]), "holds it in an attribute outside"),
        (lambda peft: peft.LoraConfig(r=2, target_modules=["tokens"], use_dora=True), "DoRA at `tokens`"),
        (lambda peft: peft.LoKrConfig(r=2, target_modules=["net.conv"], decompose_factor=8), "no `factor` of `lokr`"),
        (lambda peft: peft.OFTConfig(oft_block_size=4, target_modules=["qkv"]), "`use_cayley_neumann`: its series"),
        (lambda peft: peft.OFTConfig(oft_block_size=4, target_modules=["qkv"], coft=True), "`coft` set to True"),
        (lambda peft: peft.HRAConfig(r=2, target_modules=["qkv"]), "peft_type 'HRA', which has no counterpart"),
        (lambda peft: peft.ShiraConfig(r=2, target_modules=["qkv"]), "peft_type 'SHIRA'"),
    ],
)
def test_load_peft__refuses_what_has_no_counterpart(
    make: Make, message: str, peft: ModuleType, build: Build, shake: Shake, tmp_path: Path
) -> None:
    theirs = peft.get_peft_model(build(), make(peft))
    shake(theirs)
    theirs.save_pretrained(str(tmp_path))
    ours = build()
    keys = list(ours.state_dict())
    with pytest.raises(CheckpointError, match=message):
        load_peft(ours, tmp_path)
    assert list(ours.state_dict()) == keys
    assert not attached(ours)


@pytest.mark.filterwarnings("ignore")
def test_load_peft__accepts_untrained_factors_at_a_map_that_the_library_does_not_replace(
    peft: ModuleType, build: Build, images: Tensor, tmp_path: Path
) -> None:
    theirs = peft.get_peft_model(build(), peft.LoraConfig(r=2, target_modules=["listed.0", "qkv"]))
    theirs.save_pretrained(str(tmp_path))
    ours = build()
    load_peft(ours, tmp_path)
    torch.testing.assert_close(ours(images), build()(images))


@pytest.mark.filterwarnings("ignore")
def test_load_peft__reads_pickled_tensors(
    peft: ModuleType, build: Build, images: Tensor, shake: Shake, tmp_path: Path
) -> None:
    theirs = peft.get_peft_model(build(), peft.LoraConfig(r=2, target_modules=QKV)).eval()
    shake(theirs)
    theirs.save_pretrained(str(tmp_path))
    safe = tmp_path / "adapter_model.safetensors"
    torch.save(load_file(safe), tmp_path / "adapter_model.bin")
    safe.unlink()
    ours = build()
    load_peft(ours, tmp_path)
    torch.testing.assert_close(ours(images), theirs(images))


@pytest.mark.filterwarnings("ignore")
def test_load_peft__knows_all_options_of_the_library(peft: ModuleType, build: Build, tmp_path: Path) -> None:
    # a new option of a later version would be refused only where it is set
    for index, make in enumerate(CONFIGS.values()):
        path = tmp_path / str(index)
        peft.get_peft_model(build(), make(peft)).save_pretrained(str(path))
        config = json.loads((path / "adapter_config.json").read_text())
        (path / "adapter_config.json").write_text(json.dumps({**config, "new_option": None}))
        load_peft(build(), path)
        (path / "adapter_config.json").write_text(json.dumps({**config, "new_option": 1}))
        with pytest.raises(CheckpointError, match="`new_option` set to 1, which is an option that this version"):
            load_peft(build(), path)
