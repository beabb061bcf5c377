"""Typed and validated configuration: strict YAML, overrides, defaults scaled to the data, JSON schema."""

from vispeft.config.defaults import resolve
from vispeft.config.files import dump_config, load_config, parse_config
from vispeft.config.methods import methods_from
from vispeft.config.recipes import config_path, recipe_names, recipe_path
from vispeft.config.schema import (
    AugmentConfig,
    Config,
    DataConfig,
    EvalConfig,
    LossConfig,
    MethodRates,
    ModelConfig,
    PeftConfig,
    RegionRates,
    SplitConfig,
    TrainConfig,
    json_schema,
)

__all__ = [
    "AugmentConfig",
    "Config",
    "DataConfig",
    "EvalConfig",
    "LossConfig",
    "MethodRates",
    "ModelConfig",
    "PeftConfig",
    "RegionRates",
    "SplitConfig",
    "TrainConfig",
    "config_path",
    "dump_config",
    "json_schema",
    "load_config",
    "methods_from",
    "parse_config",
    "recipe_names",
    "recipe_path",
    "resolve",
]
