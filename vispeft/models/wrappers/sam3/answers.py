"""Answers of the SAM 3 network to text prompts: those of all decoder layers, after one pass of the image encoder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vispeft.models.wrappers.sam3.prompts import Prompts

# the network's own, for the logits of reference boxes
_EPS = 1e-3


@dataclass(frozen=True)
class Answers:
    """Answers of L decoder layers to K prompts for B images, each prompt with Q queries of its own.

    query_logits: [L, B, K, Q], of a query being an object of its prompt, where there are such objects
    presence_logits: [L, B, K], of an image having objects of a prompt
    boxes: [L, B, K, Q, 4] cxcywh, normalised
    mask_logits: [B, K, Q, h, w] of the last layer
    """

    query_logits: Tensor
    presence_logits: Tensor
    boxes: Tensor
    mask_logits: Tensor


def encoded(network: Any, images: Tensor) -> Tensor:
    """Return the tokens [B, N, D] of the image encoder's last block."""
    tokens: Tensor = network.vision_encoder.backbone(images).last_hidden_state
    return tokens


def answers_from(network: Any, tokens: Tensor, prompts: Prompts) -> Answers:
    """Return the answers of a `Sam3Model`, whose own forward pass gives those of the last layer to one prompt.

    Prompts go through the rest of the network one after another: its maps are as large as those of an image.

    tokens: [B, N, D] of square images
    """
    num_images, side = len(tokens), math.isqrt(tokens.shape[1])
    features, positions = network.vision_encoder.neck(tokens.view(num_images, side, side, -1).permute(0, 3, 1, 2))
    texts = network.get_text_features(prompts.ids, attention_mask=prompts.mask, return_dict=True).pooler_output
    # the coarsest level is for the library's tracker
    levels = features[:-1], positions[:-1]
    answers = [
        _answers_to_one(network, *levels, text.expand(num_images, -1, -1), mask.expand(num_images, -1))
        for text, mask in zip(texts, prompts.mask.bool(), strict=True)
    ]
    return Answers(
        torch.stack([answer.query_logits for answer in answers], dim=2),
        torch.stack([answer.presence_logits for answer in answers], dim=2),
        torch.stack([answer.boxes for answer in answers], dim=2),
        torch.stack([answer.mask_logits for answer in answers], dim=1),
    )


def _answers_to_one(
    network: Any, features: Sequence[Tensor], positions: Sequence[Tensor], text: Tensor, text_mask: Tensor
) -> Answers:
    """Return the answers to one prompt, without the dimension K. text: [B, T, D]; text_mask: [B, T] bool"""
    encoded = network.detr_encoder(
        vision_features=[features[-1]], text_features=text, vision_pos_embeds=[positions[-1]], text_mask=text_mask
    )
    decoded = network.detr_decoder(
        vision_features=encoded.last_hidden_state,
        text_features=encoded.text_features,
        vision_pos_encoding=encoded.pos_embeds_flattened,
        text_mask=text_mask,
        spatial_shapes=encoded.spatial_shapes,
    )
    queries = decoded.intermediate_hidden_states  # [L, B, Q, D]
    offsets = network.detr_decoder.box_head(queries)
    boxes = (_inverse_sigmoid(decoded.reference_boxes) + offsets).sigmoid()
    query_logits = network.dot_product_scoring(
        decoder_hidden_states=queries, text_features=encoded.text_features, text_mask=text_mask
    )
    masks = network.mask_decoder(
        decoder_queries=queries[-1],
        backbone_features=list(features),
        encoder_hidden_states=encoded.last_hidden_state,
        prompt_features=text,
        prompt_mask=text_mask,
    )
    return Answers(query_logits.squeeze(-1), decoded.presence_logits.squeeze(-1), boxes, masks.pred_masks)


def _inverse_sigmoid(probs: Tensor) -> Tensor:
    probs = probs.clamp(0, 1)
    return torch.log(probs.clamp(min=_EPS) / (1 - probs).clamp(min=_EPS))
