from typing import Any

import pytest

from vispeft.errors import ConfigError
from vispeft.sweep import check_plans


def test_check_plans__names_the_run_whose_pattern_matches_nothing(folder: Any) -> None:
    sweep = folder.sweep({"variants": {"good": {}, "bad": {"peft.train": ["decoder.layr"]}}})
    with pytest.raises(ConfigError, match=r"The sweep cannot run bad: .*decoder\.layr"):
        check_plans(sweep)


def test_check_plans__builds_each_model_once(folder: Any) -> None:
    sweep = folder.sweep({"space": {"train.lr": [1e-3, 1e-2], "model.image_size": [32, 64]}, "seeds": [1, 2, 3]})
    assert check_plans(sweep) == 2


def test_check_plans__names_the_run_whose_region_matches_nothing(folder: Any) -> None:
    regions = [{"@heads": {"lr_scale": 2.0}}, {"@hedas": {"lr_scale": 2.0}}]
    with pytest.raises(ConfigError, match=r"The sweep cannot run .*`train\.regions`: `@hedas` is not a role"):
        check_plans(folder.sweep({"space": {"train.regions": regions}}))


@pytest.mark.parametrize("key", ["model.weights", "model.backbone_weights"])
def test_check_plans__names_the_run_whose_weights_file_is_not_there(folder: Any, key: str) -> None:
    sweep = folder.sweep({"space": {key: ["no_such_file.pth"]}})
    with pytest.raises(ConfigError, match=rf"The sweep cannot run .*no_such_file\.pth does not exist.*`{key}`"):
        check_plans(sweep)


def test_check_plans__refuses_tasks_without_mask_ap(folder: Any) -> None:
    with pytest.raises(ConfigError, match=r"`task` must be instance in a sweep, .* but is semantic"):
        check_plans(folder.sweep({"space": {"task": ["instance", "semantic"]}}))
