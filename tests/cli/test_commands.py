"""The command line, command by command."""

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from vispeft.cli.terminal import console, guarded, show_table
from vispeft.config import parse_config
from vispeft.engine import RunDirectory, load_run
from vispeft.engine.build import build_base, complete
from vispeft.errors import VispeftError

Command = Callable[..., tuple[int, str, str]]
COMMANDS = [
    *(["quickstart"], ["train"], ["evaluate"], ["predict"], ["plan"], ["sites"], ["inspect"], ["merge"], ["export"]),
    *(["sweep"], ["methods"], ["models"], ["push"], ["schema"], ["doctor"]),
    *(["data", name] for name in ("check", "stats", "show", "split", "shapes")),
    *(["data", "convert", name] for name in ("yolo", "labelme", "masks")),
]


@pytest.fixture
def config_path(tiny: dict[str, Any], tmp_path: Path) -> Path:
    """The tiny configuration as a file."""
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny))
    return path


def test_help__does_not_wait_for_torch() -> None:
    code = "import sys, vispeft.cli; sys.exit('torch' in sys.modules or 'pydantic' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_help__of_every_command_has_an_example(words: list[str], command: Command) -> None:
    status, out, _ = command(*words, "--help")
    assert status == 0
    assert f"Example: vispeft {' '.join(words)}" in " ".join(out.replace("│", " ").split())


def test_main__runs_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "vispeft", "nonsense"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "No such command" in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["train"],
        ["train", "x.yaml", "steps"],
        ["evaluate"],
        ["evaluate", "--predictions", "a"],
        ["evaluate", "run", "--predictions", "a", "--annotations", "b"],
        ["predict", "run", "image", "--out", "o", "--threshold", "2"],
    ],
    ids=" ".join,
)
def test_main__wrong_usage_ends_with_2(words: list[str], command: Command) -> None:
    assert command(*words)[0] == 2


def test_main__an_error_is_one_message(command: Command, tmp_path: Path) -> None:
    status, out, err = command("train", tmp_path / "none.yaml")
    assert (status, out) == (1, "")
    assert err.startswith("error: ")
    assert "none.yaml` does not exist" in err
    assert len(err.splitlines()) == 1


def test_main__debug_shows_the_traceback(command: Command, tmp_path: Path) -> None:
    status, _, err = command("train", tmp_path / "none.yaml", "--debug")
    assert status == 1
    assert "Traceback" in err


def test_console__leaves_brackets_in_names_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    console().print("written to runs/lora [qv]/[/x].png")
    show_table("[b]", ("[a]", "[/a]"), [("[c]", "[/c]")])
    out = capsys.readouterr().out
    assert out.startswith("written to runs/lora [qv]/[/x].png\n")
    assert all(name in out for name in ("[b]", "[a]", "[/a]", "[c]", "[/c]"))


def test_guarded__an_unexpected_error_names_its_type(capsys: pytest.CaptureFixture[str]) -> None:
    assert guarded(lambda: print(1 // 0), is_debug=False) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: Unexpected ZeroDivisionError: integer division or modulo by zero.")
    assert "--debug" in err
    assert len(err.splitlines()) == 1


def test_guarded__a_kernel_error_is_expected(capsys: pytest.CaptureFixture[str]) -> None:
    from vispeft_kernels import KernelError

    def fail() -> None:
        raise KernelError("no such kernel.")

    assert guarded(fail, is_debug=False) == 1
    assert capsys.readouterr().err == "error: no such kernel.\n"


def test_train__makes_a_numbered_run_and_refuses_an_existing_one(
    config_path: Path, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    status, out, err = command("train", config_path, "train.steps=1", "train.batch_size=1")
    assert status == 0, err
    assert "runs/tiny-1" in out
    assert "train 1/1" in err
    assert json.loads((tmp_path / "runs/tiny-1/summary.json").read_text())["steps"] == 1
    status, _, err = command("train", config_path, "--out", "runs/tiny-1")
    assert status == 1
    assert "is there already" in err


def test_train__unknown_key(config_path: Path, command: Command) -> None:
    status, _, err = command("train", config_path, "train.stepz=1")
    assert status == 1
    assert "`train.stepz` is not a configuration key. Did you mean `train.steps`?" in err


def test_evaluate__any_results_file(finished: RunDirectory, command: Command, tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.json"
    words = ("--predictions", finished.predictions, "--annotations", finished.annotations, "--json", metrics)
    status, out, err = command("evaluate", *words)
    assert status == 0, err
    assert "AP50" in out
    summary = json.loads(finished.summary.read_text())
    assert json.loads(metrics.read_text()) == {kind: summary[kind] for kind in ("segm", "bbox", "per_category")}


def test_evaluate__does_not_write_over_what_it_reads(finished: RunDirectory, command: Command, tmp_path: Path) -> None:
    annotations = Path(shutil.copy(finished.annotations, tmp_path))
    words = ("evaluate", "--predictions", finished.predictions, "--annotations", annotations)
    for more in (("--json", annotations), ("--analysis", "--out", annotations)):
        status, _, err = command(*words, *more)
        assert status == 2
        assert "which the command reads" in err
    assert annotations.read_bytes() == finished.annotations.read_bytes()


def test_evaluate__boxes_alone_have_no_row_of_masks(finished: RunDirectory, command: Command, tmp_path: Path) -> None:
    results = json.loads(finished.predictions.read_text())
    boxes = tmp_path / "boxes.json"
    boxes.write_text(json.dumps([{k: v for k, v in result.items() if k != "segmentation"} for result in results]))
    _, out, _ = command("evaluate", "--predictions", str(boxes), "--annotations", str(finished.annotations))
    assert "│ box " in out
    assert "│ mask " not in out


def test_evaluate__a_run_with_overrides(finished: RunDirectory, command: Command, tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.json"
    status, _, err = command("evaluate", finished.root, "eval.max_detections=1", "--json", metrics)
    assert status == 0, err
    found = json.loads(metrics.read_text())["segm"]
    assert found["AR1"] == found["AR100"]


def test_predict__writes_overlays_and_results(
    finished: RunDirectory, shapes_set: Path, command: Command, tmp_path: Path
) -> None:
    out = tmp_path / "predicted"
    one = shapes_set / "images" / "val_00000.png"
    status, _, err = command("predict", finished.root, one, shapes_set / "images", "--out", out, "--threshold", 0)
    assert status == 0, err
    images = json.loads((out / "images.json").read_text())["images"]
    assert len(images) == 9
    assert len(list(out.glob("*.png"))) == 9
    results = json.loads((out / "predictions.json").read_text())
    assert {result["image_id"] for result in results} == {image["id"] for image in images}
    assert all(result["segmentation"]["size"] == [64, 64] for result in results)


def test_predict__names_files_that_are_not_images(finished: RunDirectory, command: Command, tmp_path: Path) -> None:
    status, _, err = command("predict", finished.root, tmp_path / "none.png", "--out", tmp_path / "out")
    assert status == 1
    assert "none.png` must be an image or a folder of images" in err
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    status, _, err = command("predict", finished.root, broken, "--out", tmp_path / "out")
    assert status == 1
    assert "broken.png" in err


def test_merge__gives_a_checkpoint_that_predicts_the_same(
    finished: RunDirectory, command: Command, tmp_path: Path, config_path: Path
) -> None:
    import torch

    from vispeft.engine import load_run
    from vispeft.engine.build import build_base

    path = tmp_path / "merged.safetensors"
    assert command("merge", finished.root, "--out", path)[0] == 0
    run = load_run(finished.root)
    merged = build_base(finished.load_config([f"model.weights={path}"]), len(run.class_names)).eval()
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected, found = run.model(images), merged(images)
    assert not any("lora" in name for name in merged.state_dict())
    torch.testing.assert_close(found.mask_features, expected.mask_features, rtol=1e-4, atol=1e-5)


def test_merge__does_not_write_over_what_the_run_needs(
    finished: RunDirectory, tiny: dict[str, Any], command: Command, tmp_path: Path
) -> None:
    from vispeft.engine import train_run

    base, second = tmp_path / "base.safetensors", RunDirectory(tmp_path / "second")
    assert command("merge", finished.root, "--out", base)[0] == 0
    train_run(parse_config({**tiny, "model": {"weights": str(base), "image_size": 64}}, ["train.steps=1"]), second)
    for needed in (base, second.adapter):
        before = needed.read_bytes()
        status, _, err = command("merge", second.root, "--out", needed)
        assert (status, needed.read_bytes() == before) == (1, True)
        assert f"`--out` is {needed}, without which the run cannot be used" in err


def test_merge__gives_a_checkpoint_with_the_model_metadata(
    finished: RunDirectory, tiny: dict[str, Any], command: Command, tmp_path: Path
) -> None:
    path = tmp_path / "merged.safetensors"
    assert command("merge", finished.root, "--out", path)[0] == 0
    config = complete(parse_config({**tiny, "model": {"weights": str(path)}}), 2)
    begun = finished.load_config()
    assert config.model.image_size == begun.model.image_size
    merged, expected = build_base(config, 3), load_run(str(finished.root)).model
    assert merged.backbone.name == expected.backbone.name
    with pytest.raises(VispeftError, match=r"`model\.size` must be left out"):
        build_base(parse_config({"model": {"weights": str(path), "size": "tiny"}}), 3)


def test_merge__refuses_adapters_by_name(tiny: dict[str, Any], command: Command, tmp_path: Path) -> None:
    from vispeft.config import parse_config
    from vispeft.engine import train_run

    directory = RunDirectory(tmp_path / "adapters")
    overrides = ["peft.deltas={decoder.layers.0.linear2: {method: adapter, width: 2}}", "train.steps=1"]
    train_run(parse_config(tiny, overrides), directory)
    status, _, err = command("merge", directory.root, "--out", tmp_path / "merged.safetensors")
    assert status == 1
    assert "`decoder.layers.0.linear2.adapter`" in err
    assert not (tmp_path / "merged.safetensors").exists()


def test_plan__counts_before_training(config_path: Path, command: Command, finished: RunDirectory) -> None:
    status, out, err = command("plan", config_path)
    assert status == 0, err
    summary = json.loads(finished.summary.read_text())
    assert f"{summary['trainable_params']:,}" in out
    assert f"{summary['total_params']:,}" in out


def test_plan__proposes_what_fits_and_writes_it(command: Command, tmp_path: Path) -> None:
    small = [
        "bundled_lora",
        "train.methods.lora={lr: 0.01}",
        "model.image_size=64",
        "train.batch_size=1",
        "train.steps=10",
        "train.device=cpu",
    ]
    path = tmp_path / "plan.json"
    status, out, err = command("plan", *small, "--budget", "2.6 %", "--time", "1h", "--json", path)
    assert status == 0, err
    proposals = json.loads(path.read_text())["proposals"]
    assert all(each["estimate"]["trainable_percent"] <= 2.6 for each in proposals)
    assert all(0 < each["seconds"] <= 3600 for each in proposals)
    (line,) = [line for line in out.splitlines() if line.strip().startswith("vispeft train")][:1]
    assert shlex.split(line)[2 : 2 + len(small)] == small
    assert shlex.split(line)[2 + len(small)].startswith("peft.")
    status, _, err = command("plan", *small, "--memory", "1MB")
    assert status == 1
    assert "No configuration fits --memory 1MB. Nearest is heads alone" in err


def test_sites__lists_the_matches_of_a_pattern(config_path: Path, command: Command) -> None:
    status, out, _ = command("sites", config_path, "decoder.layers.*.linear1")
    assert status == 0
    assert "decoder.layers.2.linear1" in out
    assert "@deformable.value_proj" in command("sites", config_path)[1]
    deeper = command("sites", config_path, "model.options.decoder_layers=4", "decoder.layers.*.linear1")[1]
    assert "4 sites" in deeper
    assert command("sites", config_path, "decoder.**", "backbone.**")[0] == 2
    status, _, err = command("sites", config_path, "decoder.layer.*")
    assert status == 1
    assert "decoder.layers.*" in err


def test_methods_and_doctor__list_what_exists(command: Command) -> None:
    status, out, _ = command("methods")
    assert status == 0
    assert all(word in out for word in ("lora", "adapter", "mask_dino"))
    status, out, _ = command("doctor")
    assert status == 0
    assert "torch" in out
