"""SAM 3 of transformers (https://arxiv.org/abs/2511.16719): every class name is a text prompt."""
