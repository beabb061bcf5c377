"""Weights that EoMT and PMT have in common: whole models by our names, class heads and queries of another number."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from vispeft.models.class_head import ClassHead, fit_class_head, num_classes_of
from vispeft.models.query_rows import fit_query_rows
from vispeft.models.weight_files import load_state

CLASS_HEAD = ClassHead(linears=("predictor.class_embed",), has_no_object=True)
_QUERIES = "queries"


def load_own(model: nn.Module, tensors: Mapping[str, Tensor], *, source: str) -> None:
    """Load a whole model's tensors, in place, by our names.

    A class head of another size is fitted, and further queries start as copies of those of the file. Raises
    CheckpointError naming the tensors that are missing, unknown or of another shape; the model is unchanged then.

    source: name of the file, for errors
    """
    fitted = fit_class_head(tensors, CLASS_HEAD, num_classes_of(model.state_dict(), CLASS_HEAD))
    load_state(model, fit_query_rows(fitted, (_QUERIES,), len(model.get_parameter(_QUERIES))), source=source)
