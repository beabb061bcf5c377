"""Parameter-efficient fine-tuning of any torch model: what to train, where, and what to keep of it."""

from vispeft.peft.adapters import adapter_per_image, adapters, drop_adapter, set_adapters
from vispeft.peft.check import check
from vispeft.peft.checkpoint import AdapterFile, describe, load_adapter, save_adapter
from vispeft.peft.choice import choose_by_magnitude, choose_weights, methods_to_choose, restore_choices
from vispeft.peft.count import Count, count
from vispeft.peft.inject import disabled, inject, remove
from vispeft.peft.interop.peft_library import load_peft, save_peft
from vispeft.peft.merge import merge
from vispeft.peft.methods.adalora import AdaLoRA
from vispeft.peft.methods.adapter import Adapter
from vispeft.peft.methods.base import AroundDelta, Delta, Method, Scheduled, WeightDelta
from vispeft.peft.methods.compacter import Compacter
from vispeft.peft.methods.context import Context
from vispeft.peft.methods.conv_lora import ConvLoRA
from vispeft.peft.methods.convpass import Convpass
from vispeft.peft.methods.dora import DoRA
from vispeft.peft.methods.factor_tuning import FacT
from vispeft.peft.methods.fourier import FourierFT
from vispeft.peft.methods.ladder import Ladder
from vispeft.peft.methods.lora import LoRA
from vispeft.peft.methods.lorand import LoRand
from vispeft.peft.methods.mona import Mona
from vispeft.peft.methods.orthogonal import BOFT, OFT
from vispeft.peft.methods.prefix import Prefix
from vispeft.peft.methods.products import LoHa, LoKr
from vispeft.peft.methods.prompt import VPT
from vispeft.peft.methods.rein import Rein
from vispeft.peft.methods.repadapter import RepAdapter
from vispeft.peft.methods.scale_shift import IA3, ScaleShift
from vispeft.peft.methods.scored import Scored
from vispeft.peft.methods.sparse import Sparse
from vispeft.peft.methods.vera import VeRA
from vispeft.peft.modes import train_mode
from vispeft.peft.plan import Plan
from vispeft.peft.quantization.quantize import dequantize, quantize
from vispeft.peft.registry import METHODS, known_methods, method_from_dict, register_method
from vispeft.peft.schedule import update_schedules
from vispeft.peft.targets import Names, Site

__all__ = [
    "BOFT",
    "IA3",
    "METHODS",
    "OFT",
    "VPT",
    "AdaLoRA",
    "Adapter",
    "AdapterFile",
    "AroundDelta",
    "Compacter",
    "Context",
    "ConvLoRA",
    "Convpass",
    "Count",
    "Delta",
    "DoRA",
    "FacT",
    "FourierFT",
    "Ladder",
    "LoHa",
    "LoKr",
    "LoRA",
    "LoRand",
    "Method",
    "Mona",
    "Names",
    "Plan",
    "Prefix",
    "Rein",
    "RepAdapter",
    "ScaleShift",
    "Scheduled",
    "Scored",
    "Site",
    "Sparse",
    "VeRA",
    "WeightDelta",
    "adapter_per_image",
    "adapters",
    "check",
    "choose_by_magnitude",
    "choose_weights",
    "count",
    "dequantize",
    "describe",
    "disabled",
    "drop_adapter",
    "inject",
    "known_methods",
    "load_adapter",
    "load_peft",
    "merge",
    "method_from_dict",
    "methods_to_choose",
    "quantize",
    "register_method",
    "remove",
    "restore_choices",
    "save_adapter",
    "save_peft",
    "set_adapters",
    "train_mode",
    "update_schedules",
]
