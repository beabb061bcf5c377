"""Options of the peft library by kind of adapter: those that are read or only change training, and those refused."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class KnownOptions:
    """Options of one kind of adapter.

    free: those that are read, or that only change training
    refused: those that change the function where they are set, and have no counterpart
    """

    free: frozenset[str]
    refused: frozenset[str] = frozenset()


# of all kinds: they name sites, which the tensors name as well, or change nothing about the function
COMMON = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "exclude_modules",
        "inference_mode",
        "init_weights",
        "layers_pattern",
        "layers_to_transform",
        "modules_to_save",
        "peft_type",
        "peft_version",
        "revision",
        "runtime_config",
        "target_modules",
        "task_type",
    }
)

_LORA_TRAINING = frozenset(
    {
        "alpha_pattern",
        "bias",
        "corda_config",
        "eva_config",
        "init_lora_weights",
        "loftq_config",
        "lora_alpha",
        "lora_dropout",
        "lora_ga_config",
        "megatron_core",
        "qalora_group_size",
        "r",
        "rank_pattern",
        "trainable_token_indices",
    }
)

_LORA_REFUSED = frozenset(
    {
        "alora_invocation_tokens",
        "arrow_config",
        "ensure_weight_tying",
        "fan_in_fan_out",
        "kasa_config",
        "layer_replication",
        "megatron_config",
        "monteclora_config",
        "use_bdlora",
        "use_qalora",
        "velora_config",
    }
)

LORA = KnownOptions(
    _LORA_TRAINING | frozenset(("lora_bias", "target_parameters", "use_dora", "use_rslora")), _LORA_REFUSED
)

_ADALORA_TRAINING = frozenset(
    {
        "beta1",
        "beta2",
        "deltaT",
        "init_r",
        "lora_bias",
        "orth_reg_weight",
        "target_r",
        "tfinal",
        "tinit",
        "total_step",
        "use_rslora",
    }
)

ADALORA = KnownOptions(_LORA_TRAINING | _ADALORA_TRAINING, _LORA_REFUSED | {"target_parameters", "use_dora"})

# LoHa and LoKr
PRODUCTS = KnownOptions(
    frozenset(
        {
            "alpha",
            "alpha_pattern",
            "decompose_both",
            "decompose_factor",
            "module_dropout",
            "r",
            "rank_dropout",
            "rank_dropout_scale",
            "rank_pattern",
            "use_effective_conv2d",
        }
    )
)

IA3 = KnownOptions(frozenset(("feedforward_modules", "init_ia3_weights")), frozenset({"fan_in_fan_out"}))

VERA = KnownOptions(
    frozenset(
        {
            "bias",
            "d_initial",
            "projection_prng_key",
            "r",
            "save_projection",
            "vera_dropout",
        }
    ),
    frozenset({"fan_in_fan_out"}),
)

FOURIERFT = KnownOptions(
    frozenset(
        {
            "bias",
            "n_frequency",
            "n_frequency_pattern",
            "random_loc_seed",
            "scaling",
        }
    ),
    frozenset({"fan_in_fan_out"}),
)

LN_TUNING = KnownOptions(frozenset())

TRAINABLE_TOKENS = KnownOptions(frozenset({"token_indices"}))

OFT = KnownOptions(
    frozenset({"bias", "block_share", "eps", "module_dropout", "num_cayley_neumann_terms", "oft_block_size", "r"})
    | frozenset({"use_cayley_neumann"}),
    frozenset({"coft", "fan_in_fan_out"}),
)
