"""OFT of the peft library, converted to ours and back: rotations of the input of linear maps.

There, `x R W^T` with `R = (I - Q)(I + Q)^-1`, or by default a short series for the inverse, which gives no rotation.
Here, `W R^T` with `R = (I + Q)(I - Q)^-1`: the same with the other sign of Q.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from vispeft.errors import CheckpointError
from vispeft.peft.inject import Attached
from vispeft.peft.interop.peft_library import known_options
from vispeft.peft.interop.peft_library.contents import (
    Contents,
    TheirContents,
    check_replaceable,
    check_shape,
    module_at,
    no_counterpart,
    split,
)
from vispeft.peft.interop.peft_library.directory import Directory
from vispeft.peft.interop.peft_library.full_reading import full_tensors
from vispeft.peft.interop.peft_library.names import Tree
from vispeft.peft.methods.orthogonal import OFT, LinearRotation


def read_oft(source: Directory, model: nn.Module) -> Contents:
    """Return the OFT of a directory; refuse one that uses the series."""
    source.options.check(known_options.OFT)
    if source.options.values.get("use_cayley_neumann", True):
        raise CheckpointError(
            f"`{source.path}` has `use_cayley_neumann`: its series gives matrices that are no rotations, which have no "
            "counterpart here. Train there with `use_cayley_neumann=False`."
        )
    tree, contents = Tree(model), Contents()
    sites, others = split(source, ("oft_R.weight",), "oft_")
    contents.full = full_tensors(source, tree, others)
    for site, tensors in sites.items():
        name, module = module_at(source, tree, site)
        check_replaceable(source, tree, name)
        if not isinstance(module, nn.Linear):
            raise CheckpointError(f"`{source.path}` has OFT at `{name}`, a {type(module).__name__}, not served here.")
        angles = tensors["oft_R.weight"]
        block = round((1 + (1 + 8 * angles.shape[-1]) ** 0.5) / 2) if angles.ndim == 2 else 0
        blocks = module.in_features // block if block > 1 else 0
        if source.options.flag("block_share"):
            angles = angles.repeat(blocks, 1)
        check_shape(source, f"{site}.oft_R.weight", angles, (blocks, block * (block - 1) // 2))
        contents.add(name, OFT(block), {"rotations.q": -angles})
    return contents


def write_oft(items: Sequence[Attached], tree: Tree) -> TheirContents:
    """Return the OFT of a model."""
    contents = TheirContents({}, bias="oft_only")
    blocks = set()
    for item in items:
        delta = item.delta
        if not isinstance(delta, LinearRotation) or item.site in contents.tensors:
            raise no_counterpart(f"`{item.key}`")
        blocks.add(delta.rotations.size)
        contents.tensors[item.site] = {"oft_R.weight": -delta.rotations.q.detach()}
    if len(blocks) > 1:
        raise no_counterpart("OFT with blocks of different sizes")
    contents.options = {"peft_type": "OFT", "r": 0, "oft_block_size": blocks.pop(), "use_cayley_neumann": False}
    return contents
