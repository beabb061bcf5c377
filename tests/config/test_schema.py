from pathlib import Path

import pytest

from vispeft.config import parse_config
from vispeft.errors import ConfigError


@pytest.mark.parametrize("place", ["off", "memory", "runs/features"])
def test_feature_cache__is_a_word_or_a_directory(place: str) -> None:
    assert parse_config({"train": {"feature_cache": place}}).train.feature_cache == place


def test_feature_cache__refuses_what_cannot_be_a_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for value, said in (("", "is empty"), (str(tmp_path / "file"), "is a file")):
        with pytest.raises(
            ConfigError, match=f"`train.feature_cache` must be `off`, `memory` or a directory, but .*{said}"
        ):
            parse_config({"train": {"feature_cache": value}})


def test_variants__are_at_least_one() -> None:
    assert parse_config({}).data.augment.variants is None
    with pytest.raises(ConfigError, match=r"`data\.augment\.variants`"):
        parse_config({"data": {"augment": {"variants": 0}}})


def test_regions__have_one_rate_each() -> None:
    config = parse_config({"train": {"regions": {"@class_head": {"lr_scale": 10.0}, "backbone": {"lr": 1e-5}}}})
    assert config.train.regions is not None
    assert [rates.lr_scale for rates in config.train.regions.values()] == [10.0, None]
    with pytest.raises(ConfigError, match=r"only one of `lr` and `lr_scale` may be set in `train\.regions\.backbone`"):
        parse_config({"train": {"regions": {"backbone": {"lr": 1e-5, "lr_scale": 0.1}}}})
    with pytest.raises(ConfigError, match=r"Did you mean `train\.regions\.backbone\.lr_scale`"):
        parse_config({"train": {"regions": {"backbone": {"lr_scal": 0.1}}}})


def test_regions__a_pattern_that_falls_apart_at_its_dots_is_told_how_to_be_written() -> None:
    with pytest.raises(ConfigError, match=r"not a configuration key.* as `train\.regions={'a\.b': {\.\.\.}}`"):
        parse_config({}, ["train.regions.decoder.class_embed.lr_scale=3.0"])
