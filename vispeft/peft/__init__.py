"""Parameter-efficient fine-tuning of any torch model: what to train, where, and what to keep of it."""

from vispeft.peft.adapter import Adapter
from vispeft.peft.budget import Count, count
from vispeft.peft.check import check
from vispeft.peft.delta import Delta, Method, WeightDelta
from vispeft.peft.dora import DoRA
from vispeft.peft.inject import disabled, inject, remove
from vispeft.peft.lora import LoRA
from vispeft.peft.merging import merge
from vispeft.peft.modes import train_mode
from vispeft.peft.peft_library import load_peft, save_peft
from vispeft.peft.plan import METHODS, Plan, method_from_dict
from vispeft.peft.scale_shift import IA3, ScaleShift
from vispeft.peft.site import Names, Site
from vispeft.peft.store import AdapterFile, describe, load, save

__all__ = [
    "IA3",
    "METHODS",
    "Adapter",
    "AdapterFile",
    "Count",
    "Delta",
    "DoRA",
    "LoRA",
    "Method",
    "Names",
    "Plan",
    "ScaleShift",
    "Site",
    "WeightDelta",
    "check",
    "count",
    "describe",
    "disabled",
    "inject",
    "load",
    "load_peft",
    "merge",
    "method_from_dict",
    "remove",
    "save",
    "save_peft",
    "train_mode",
]
