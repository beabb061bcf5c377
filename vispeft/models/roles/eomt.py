"""Roles of EoMT: its own parts, and the encoder's last blocks, in which the queries run."""

from __future__ import annotations

from collections.abc import Mapping

EOMT: Mapping[str, str] = {
    "queries": "queries",
    "upscale": "predictor.upscale",
    "heads": "predictor.class_embed | predictor.mask_embed",
    "class_head": "predictor.class_embed",
    # parts without weights in an encoder's checkpoint
    "new": "queries | predictor",
}


def decoder_roles(encoder_roles: Mapping[str, str], num_blocks: int) -> dict[str, str]:
    """Return the roles `decoder.*`: those of the encoder, in its last `num_blocks` blocks alone."""
    return {
        role.replace("encoder.", "decoder.", 1): pattern.replace("blocks.*", f"blocks.[-{num_blocks}:]")
        for role, pattern in encoder_roles.items()
    }
