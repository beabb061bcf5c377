"""Compile every configuration of every Triton kernel for GPUs that need not be present, and report its resources.

    python tools/compile_kernels.py                              # all kernels for sm_80 and sm_90
    python tools/compile_kernels.py --only lora --arch 90 --every 5 --json FILE

No kernel is run. Registers, spilled bytes and the use of tensor cores are read from the machine code with the tools in
Triton's wheel. The exit status is 1 if a configuration spills registers, needs more shared memory than a block has, or
multiplies half precision without tensor cores.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import triton
import vispeft_kernels.adapter.configs as adapter_configs
import vispeft_kernels.adapter.triton_kernels as adapter_kernels
import vispeft_kernels.deformable.configs as deformable_configs
import vispeft_kernels.deformable.triton_kernels as deformable_kernels
import vispeft_kernels.lora.configs as lora_configs
import vispeft_kernels.lora.triton_kernels as lora_kernels
from triton.backends.compiler import GPUTarget
from vispeft_kernels.launch import Config

SHARED_BYTES = {
    80: 163 * 1024,
    86: 99 * 1024,
    89: 99 * 1024,
    90: 227 * 1024,
}  # CUDA C++ guide, table of technical limits
OPERATIONS = {
    "lora": (lora_kernels, lora_configs),
    "adapter": (adapter_kernels, adapter_configs),
    "deformable": (deformable_kernels, deformable_configs),
}
TYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
POINTERS = {
    "rows_ptr": "*i64",
    "weights_ptr": "*fp32",
    "locations_ptr": "*fp32",
    "attention_ptr": "*fp32",
    "grad_locations_ptr": "*fp32",
    "grad_attention_ptr": "*fp32",
    "reference_ptr": "*fp32",
    "sums_ptr": "*fp32",
    "seed_ptr": "*i64",
    "levels_ptr": "*i32",
    "order_ptr": "*i64",
    "ends_ptr": "*i64",
}
OPTIONAL = {
    "seed_ptr": "DROPOUT",
    "bias_ptr": "HAS_BIAS",
    "reference_ptr": "REFERENCE",
}  # None unless that is true
DOT = r"tt\.dot|warp_group_dot"
# sizes that are in practice no multiples of 16
ODD = ("rows", "threshold", "queries", "points", "levels", "nowhere", "reference_stride", "heads")


@dataclass(frozen=True)
class Resources:
    """Resources of one configuration on one architecture."""

    kernel: str
    arch: int
    dtype: str
    constants: str
    warps: int
    stages: int
    registers: int
    spilled_bytes: int
    shared_bytes: int
    tensor_core_instructions: int
    wide_loads: int
    seconds: float
    fault: str


def compile_one(
    module: Any, name: str, dtype: torch.dtype, config: Config, work: dict[str, Any], arch: int
) -> Resources:
    """Compile one configuration as the JIT would for sizes that are multiples of 16, and read its machine code."""
    kernel = getattr(module, name)
    constants = {**config.blocks, **work}
    signature, attributes = {}, {}
    for index, parameter in enumerate(kernel.params):
        key = parameter.name
        if key in OPTIONAL and not constants.get(OPTIONAL[key], True):
            constants[key] = None
        if key in constants:
            signature[key] = "constexpr"
            continue
        signature[key] = type_of(key, dtype)
        if key.endswith("_ptr") or (signature[key] == "i32" and key not in ODD):
            attributes[(index,)] = [["tt.divisibility", 16]]
    started = time.perf_counter()
    source = triton.compiler.ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=config.options)
    seconds = time.perf_counter() - started
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = run_tool("cuobjdump", "-res-usage", file.name)
    registers, stack = (int(re.search(rf"{what}:(\d+)", usage).group(1)) for what in ("REG", "STACK"))  # type: ignore[union-attr]
    tensor_core = len(re.findall(r"\b(?:mma\.sync|wgmma\.mma_async)", compiled.asm["ptx"]))
    wide = len(re.findall(r"ld\.global\S*\.v4\.b32|cp\.async\.cg\S* .*, 0x10,", compiled.asm["ptx"]))
    shared = compiled.metadata.shared
    fault = find_fault(stack, shared, tensor_core, arch, dtype, compiled.asm["ttgir"])
    return Resources(
        name, arch, TYPES[dtype], " ".join(f"{k}={v}" for k, v in constants.items() if v is not None), config.warps,
        config.stages, registers, stack, shared, tensor_core, wide,
        seconds, fault,
    )  # fmt: skip


def type_of(key: str, dtype: torch.dtype) -> str:
    """Return the Triton type of an argument, which follows from its name."""
    if key.endswith("_ptr"):
        return POINTERS.get(key, f"*{TYPES[dtype]}")
    return "fp32" if key in ("scale", "unit") else "i32"


def run_tool(name: str, *args: str) -> str:
    """Return the output of one of the CUDA tools in Triton's wheel."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin" / name
    return subprocess.run([tool, *args], check=True, capture_output=True, text=True).stdout


def find_fault(stack: int, shared: int, tensor_core: int, arch: int, dtype: torch.dtype, ir: str) -> str:
    """Return the faults of a compiled kernel; empty if there are none."""
    if stack:
        return f"spills {stack} bytes"
    if shared > SHARED_BYTES[arch]:
        return f"needs {shared} bytes of shared memory, but sm_{arch} has {SHARED_BYTES[arch]}"
    if (dtype.itemsize == 2 or "inputPrecision = tf32" in ir) and re.search(DOT, ir) and not tensor_core:
        return "multiplies without tensor cores"
    return ""


def line_of(one: Resources) -> str:
    return (
        f"{one.kernel:28}sm_{one.arch} {one.dtype:5}{one.registers:4} regs{one.shared_bytes:8} B shared"
        f"{one.tensor_core_instructions:5} mma{one.wide_loads:5} wide{one.seconds:6.1f} s  {one.fault or 'ok':28}"
        f"w{one.warps} s{one.stages} {one.constants}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=sorted(OPERATIONS), help="only the kernels of this operation")
    parser.add_argument("--arch", type=int, choices=sorted(SHARED_BYTES), action="append", help="default: 80 and 90")
    parser.add_argument("--every", type=int, default=1, help="only every n-th configuration")
    parser.add_argument("--match", default="", help="only kernels with this text in their name")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    found = []
    for operation, (module, table) in OPERATIONS.items():
        if args.only not in (None, operation):
            continue
        for arch in args.arch or (80, 90):
            # without duplicates: different sizes may have the same configuration
            work = {f"{one}": one for one in table.every_configuration(arch) if args.match in one[0]}
            for name, dtype, config, constants in list(work.values())[:: args.every]:
                found.append(compile_one(module, name, dtype, config, constants, arch))
                print(line_of(found[-1]), flush=True)
    if args.json:
        args.json.write_text(json.dumps([asdict(one) for one in found], indent=1) + "\n")
    sys.exit(any(one.fault for one in found))


if __name__ == "__main__":
    main()
