"""Typed, validated configuration: strict YAML, overrides, defaults scaled to the data, JSON schema."""

from vispeft.config.defaults import resolve
from vispeft.config.files import dump_config, load_config, parse_config
from vispeft.config.methods import methods_from
from vispeft.config.schema import (
    AugmentConfig,
    Config,
    DataConfig,
    EvalConfig,
    LossConfig,
    MethodRates,
    ModelConfig,
    PeftConfig,
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
    "SplitConfig",
    "TrainConfig",
    "dump_config",
    "json_schema",
    "load_config",
    "methods_from",
    "parse_config",
    "resolve",
]
