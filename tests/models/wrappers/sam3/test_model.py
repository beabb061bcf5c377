"""SAM 3: the library's own answers to every prompt, their union, and the directories that it is read from."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import vispeft as vp
from vispeft.errors import CheckpointError, ConfigError
from vispeft.models import DetectionLimits, LossSettings, Sam3, build_model
from vispeft.models.split import FrozenPrefix, SplitPointError, Tail
from vispeft.models.wrappers.sam3.config import image_size_in, num_classes_in
from vispeft.models.wrappers.sam3.predictions import PromptPredictions
from vispeft.structures import ImageMeta, Targets

NAMES = ("date", "fig", "hazelnut")
NUM_QUERIES = 12
META = ImageMeta(1, "a.png", 48, 64, 48, 64)

Directory = Callable[[str], Path]


@pytest.fixture
def source(transformers_directory: Directory) -> Path:
    return transformers_directory("sam3")


def built(source: Path, *, names: tuple[str, ...] = NAMES, **arguments: Any) -> Sam3:
    model = build_model("sam3", backbone=str(source), num_classes=len(names), pretrained=True, **arguments)
    assert isinstance(model, Sam3)
    model.set_class_names(names)
    return model.eval()


def images() -> Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def predicted(model: Sam3) -> PromptPredictions:
    return model(images())  # type: ignore[no-any-return]


def test_forward__is_the_librarys_own_for_every_prompt(source: Path) -> None:
    model = built(source)
    predictions = predicted(model)
    for k, name in enumerate(NAMES):
        tokens = model.writer.tokenizer([name] * 2, padding="max_length", max_length=16, return_tensors="pt")
        with torch.no_grad():
            outputs = model.network(
                pixel_values=images(), input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
            )
        queries = slice(k * NUM_QUERIES, (k + 1) * NUM_QUERIES)
        scores = outputs.pred_logits.sigmoid() * outputs.presence_logits.sigmoid()
        probs = predictions.final.class_logits.sigmoid()[:, queries]
        torch.testing.assert_close(probs[..., k], scores, rtol=1e-4, atol=1e-6)
        assert probs.sum(-1).equal(probs[..., k])
        centre, size = predictions.final.predicted_boxes[:, queries].split(2, -1)
        corners = torch.cat((centre - size / 2, centre + size / 2), -1)
        torch.testing.assert_close(corners, outputs.pred_boxes, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(predictions.mask_features[:, queries], outputs.pred_masks, rtol=1e-4, atol=1e-6)
    some = torch.tensor([20, 3])
    expected = torch.einsum("qd,dhw->qhw", predictions.final.mask_embeddings[1, some], predictions.mask_features[1])
    torch.testing.assert_close(predictions.mask_logits(1, some), expected)


def test_forward__answers_of_one_class_do_not_depend_on_the_others(source: Path) -> None:
    all_three, alone = predicted(built(source)).answers, predicted(built(source, names=("fig",))).answers
    torch.testing.assert_close(all_three.query_logits[:, :, 1], alone.query_logits[:, :, 0], rtol=1e-4, atol=1e-6)
    assert not torch.allclose(all_three.query_logits[:, :, 0], alone.query_logits[:, :, 0], rtol=1e-3)


def test_instances__have_the_authors_score_and_the_boxes_of_the_box_head(source: Path) -> None:
    model = built(source)
    predictions = predicted(model)
    metas, limits = [META, META], DetectionLimits(max_detections=40)
    for i, found in enumerate(model.instances(predictions, metas, padded_size=(64, 64), limits=limits)):
        assert len(found) > 5
        scores, labels = predictions.final.class_logits[i].sigmoid().max(-1)
        # queries without one pixel are left out
        distance, query = (found.scores[:, None] - scores).abs().min(-1)
        assert distance.max() < 1e-6
        assert found.labels.equal(labels[query])
        assert found.scores.equal(found.scores.sort(descending=True).values)
        # the padding below the image does not belong to it
        assert found.boxes_xyxy[:, 3].max() <= 48


def test_instances__are_unharmed_by_one_mask_that_is_not_finite(source: Path) -> None:
    model = built(source)
    predictions = predicted(model)

    def count() -> int:
        limits = DetectionLimits(max_detections=40)
        return len(model.instances(predictions, [META, META], padded_size=(64, 64), limits=limits)[0])

    before = count()
    predictions.mask_features[0, 3] = float("nan")
    assert 0 < count() <= before


def test_set_class_names__needs_one_for_each_class(source: Path) -> None:
    model = build_model("sam3", backbone=str(source), num_classes=3, pretrained=True)
    assert isinstance(model, Sam3)
    with pytest.raises(ConfigError, match=r"The model has no prompts yet\. Call `set_class_names`"):
        model(images())
    with pytest.raises(ConfigError, match="`class_names` must have 3 names, one for each class, but has 2"):
        model.set_class_names(("fig", "date"))
    assert (model.num_classes, model.num_queries, model.size_divisor) == (3, 3 * NUM_QUERIES, 64)
    # without weights the names do not matter
    assert build_model("sam3", backbone=str(source), num_classes=2)(images()).final.class_logits.shape == (2, 24, 2)


def test_model__prompts_move_with_it_and_are_not_saved(source: Path) -> None:
    model = built(source)
    assert not [name for name in model.state_dict() if "prompt_ids" in name or "prompt_mask" in name]
    assert model.to("meta").prompt_ids.is_meta
    twin = copy.deepcopy(built(source))
    torch.testing.assert_close(predicted(twin).mask_features, predicted(built(source)).mask_features)


def test_build_model__takes_texts_for_classes(source: Path) -> None:
    other = built(source, names=("c1", "c2", "c3"), prompts={"c1": "date", "c2": "fig", "c3": "hazelnut"})
    torch.testing.assert_close(predicted(other).mask_features, predicted(built(source)).mask_features)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": "tiny"}, "`size` must be left out with `name: sam3`"),
        ({"backbone_options": {"depth": 2}}, "`backbone_options` must be left out with `name: sam3`"),
        ({"prompt": {}}, "`options` has no 'prompt' with `name: sam3`. Did you mean `prompts`"),
        ({"prompts": {"a": 1}}, "`options.prompts` must map class names to texts, but is {'a': 1}"),
        ({"image_size": 60}, "`image_size` must be a multiple of 8, the side of a patch, but is 60"),
    ],
)
def test_build_model__refuses_arguments(arguments: dict[str, Any], message: str, source: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        build_model("sam3", backbone=str(source), num_classes=3, **arguments)


def test_build_model__refuses_other_models(transformers_directory: Directory, source: Path) -> None:
    with pytest.raises(ConfigError, match=r"`weights` must name a SAM 3 with `name: sam3`, but its type is eomt"):
        build_model("sam3", backbone=str(transformers_directory("eomt")), num_classes=3)
    with pytest.raises(ConfigError, match=r"its type is sam3.*`name: sam3`"):
        build_model("transformers", backbone=str(source), num_classes=3)


def test_build_model__takes_another_size(source: Path) -> None:
    assert image_size_in(str(source)) == 64
    assert num_classes_in(source) is None
    model = built(source, image_size=72)
    model.check_image_size(72)
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 72, 72)).mask_features.shape == (1, 36, 36, 36)
    with pytest.raises(ConfigError, match="`image_size` must be 72, for which this model was built, but is 64"):
        model.check_image_size(64)


def test_build_model__reads_the_layout_of_the_hub(source: Path, tmp_path: Path) -> None:
    """The published directory is that of the model for videos: detector and tracker, and one file of processors."""
    hub = tmp_path / "hub"
    shutil.copytree(source, hub)
    tensors = {f"detector_model.{name}": tensor for name, tensor in load_file(source / "model.safetensors").items()}
    save_file({**tensors, "tracker_model.something": torch.zeros(2)}, hub / "model.safetensors", {"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    (hub / "config.json").write_text(json.dumps({"model_type": "sam3_video", "detector_config": config}))
    processor = json.loads((hub / "preprocessor_config.json").read_text())
    (hub / "preprocessor_config.json").unlink()
    (hub / "processor_config.json").write_text(json.dumps({"image_processor": processor}))
    torch.testing.assert_close(predicted(built(hub)).mask_features, predicted(built(source)).mask_features)
    save_file({"detector_model.text_projection.bias": torch.zeros(32)}, hub / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"The weights of .* lack "):
        built(hub)


def test_build_model__refuses_a_directory_without_its_tokenizer(source: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(source, bare, ignore=shutil.ignore_patterns("tokenizer*"))
    with pytest.raises(CheckpointError, match=r"must name a model with its tokenizer, but that of .* has \d+ tokens"):
        built(bare)


def test_save_directory__opens_again(source: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model = built(source)
    model.save_directory(tmp_path / "saved", class_names=NAMES)
    torch.testing.assert_close(predicted(built(tmp_path / "saved")).mask_features, predicted(model).mask_features)
    opened = transformers.Sam3Model.from_pretrained(tmp_path / "saved")
    assert list(opened.config.id2label.values()) == list(NAMES)


def test_load_tensors__are_the_models_own(source: Path) -> None:
    model, other = built(source), build_model("sam3", backbone=str(source), num_classes=3)
    other.load_tensors(model.state_dict(), source="a")
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_split__is_after_the_frozen_image_encoder(source: Path) -> None:
    model = built(source)
    with pytest.raises(SplitPointError, match=r"`network\.vision_encoder\.backbone\..*` is trained"):
        model.split(images())
    model.requires_grad_(False)
    model.network.vision_encoder.neck.requires_grad_(True)
    prefix = FrozenPrefix(model, model.split(images()), images())
    assert prefix.point.name == "network.vision_encoder.backbone"
    assert prefix.bytes_per_image == 8 * 8 * 32 * 4
    with torch.no_grad():
        given = Tail(model, prefix)(prefix(model, images()))
    assert given.mask_features.equal(predicted(model).mask_features)


@pytest.mark.parametrize("method", [vp.LoRA(rank=2), vp.Adapter(width=4)], ids=["lora", "adapter"])
def test_set_activation_checkpointing__changes_no_gradient(method: vp.Method, source: Path) -> None:
    masks = torch.zeros(1, 64, 64, dtype=torch.bool)
    masks[0, 8:40, 8:40] = True
    targets = [Targets(torch.tensor([1]), torch.tensor([[0.375, 0.375, 0.5, 0.5]]), masks)] * 2

    def step(*, recompute: bool) -> tuple[dict[str, Tensor], int]:
        """Return the gradients of a step and the bytes that it keeps for backward."""
        torch.manual_seed(0)
        model = built(source)
        vp.inject(model, vp.Plan({"@encoder.q | @encoder.fc2 | @text.q_proj": method}, ["@heads"]), model.roles())
        model.set_activation_checkpointing(recompute)
        vp.train_mode(model)
        kept: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            losses = model.criterion(LossSettings())(model(images()), targets)
        torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
        return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}, sum(kept.values())

    (expected, most), (gradients, fewer) = step(recompute=False), step(recompute=True)
    assert fewer < most
    assert gradients.keys() == expected.keys()
    assert any("vision_encoder" in name for name in gradients)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6, msg=name)
