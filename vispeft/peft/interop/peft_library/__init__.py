"""Adapter directories of Hugging Face's `peft` library, read and written.

`adapter_model.safetensors` holds the tensors of each site under `base_model.model.<site>`, and tensors trained in full
under their own names; `adapter_config.json` names the kind of the adapter, its sites and its scales.
"""

from vispeft.peft.interop.peft_library.reading import load_peft
from vispeft.peft.interop.peft_library.writing import save_peft

__all__ = ["load_peft", "save_peft"]
