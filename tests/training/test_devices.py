from __future__ import annotations

import pytest
import torch

from vispeft.errors import TrainingError
from vispeft.training.devices import (
    build_fabric,
    choose_precision,
    count_processes,
    describe_device,
    leave_cores_to_workers,
    parse_device,
    trains_on_cpu,
    uses_loss_scaling,
)

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")


def test_build_fabric__cpu() -> None:
    fabric = build_fabric("cpu")
    assert (fabric.device.type, fabric.world_size) == ("cpu", 1)
    assert not uses_loss_scaling(fabric)
    assert "thread" in describe_device(fabric)


def test_build_fabric__bf16_computes_in_bf16_on_the_cpu() -> None:
    fabric = build_fabric("cpu", "bf16")
    with fabric.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16


@without_gpu
@pytest.mark.parametrize("device", ["cuda", "cuda:1", "mps"])
def test_build_fabric__refuses_a_device_that_is_not_available(device: str) -> None:
    with pytest.raises(TrainingError, match=r"^`device=\w+.*` was requested, but this machine has no .*`device=cpu`"):
        build_fabric(device)


@without_gpu
def test_parse_device__auto_is_the_cpu_without_a_gpu() -> None:
    assert parse_device("auto") == ("cpu", None)


@pytest.mark.parametrize("device", ["gpu", "cpu:1", "cuda:x", "", "CUDA"])
def test_parse_device__refuses_other_names(device: str) -> None:
    with pytest.raises(TrainingError, match=r"^`device` must be"):
        parse_device(device)


def test_choose_precision__auto_is_fp32_on_the_cpu() -> None:
    assert choose_precision("cpu", "auto") == "fp32"
    assert choose_precision("cpu", "bf16") == "bf16"


def test_choose_precision__fp16_needs_a_gpu() -> None:
    with pytest.raises(TrainingError, match=r"^`precision=fp16` needs a CUDA GPU, but the device is `cpu`"):
        choose_precision("cpu", "fp16")
    with pytest.raises(TrainingError, match=r"^`train\.precision=fp16`"):
        choose_precision("cpu", "fp16", prefix="train.")


def test_build_fabric__uses_the_processes_of_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    monkeypatch.setenv("WORLD_SIZE", "1")
    # a request for four must not start three more beside that of torchrun
    assert build_fabric("cpu", devices=4).world_size == 1


def test_build_fabric__refuses_no_processes() -> None:
    with pytest.raises(TrainingError, match=r"^`devices` must be at least 1, but is 0"):
        build_fabric("cpu", devices=0)


def test_leave_cores_to_workers__only_ever_lowers_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = torch.get_num_threads()
    try:
        for cores, workers in ((64, 2), (2, 5)):
            monkeypatch.setattr("vispeft.training.devices._usable_cores", lambda cores=cores: cores)
            leave_cores_to_workers(workers)
            assert torch.get_num_threads() == (threads if cores == 64 else 1)
    finally:
        torch.set_num_threads(threads)


def test_trains_on_cpu__needs_no_gpu_to_answer() -> None:
    assert trains_on_cpu("cpu")
    assert not trains_on_cpu("cuda:1")
    assert trains_on_cpu("auto") != torch.cuda.is_available()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_build_fabric__gpu() -> None:
    fabric = build_fabric("cuda:0", "fp16")
    assert fabric.device == torch.device("cuda", 0)
    assert uses_loss_scaling(fabric)
    assert describe_device(fabric) == torch.cuda.get_device_name(0)


@without_gpu
def test_build_fabric__names_the_option_that_requested_the_device() -> None:
    with pytest.raises(TrainingError, match=r"^`--device=cuda` was requested, .*`--device=auto` or `--device=cpu`"):
        build_fabric("cuda", prefix="--")


def test_count_processes__counts_those_that_torchrun_started(monkeypatch: pytest.MonkeyPatch) -> None:
    assert count_processes(3) == 3
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert count_processes(1) == 4
