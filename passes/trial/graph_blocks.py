"""The residual branches of a graph that can be erased node by node."""

from __future__ import annotations

from torch import fx

from passes.analysis.coupling import Coupling
from passes.analysis.residual_blocks import Blocks, find_blocks
from passes.axes.expressions import Reason
from passes.graph.nodes import source_of
from passes.nested_values import tree_leaves_only
from passes.ops import Value
from passes.transform.erase_blocks import Erasing


def graph_blocks(gm: fx.GraphModule, coupling: Coupling) -> Blocks:
    """What `couple(gm, ..., depth=True)` offers, and why other branches stay."""
    structure = coupling.structure
    returned = [v.key for v in tree_leaves_only(Value, structure.values.get("output"))]
    found = find_blocks(structure.records, returned, structure.tensors, coupling.aliases, coupling.trainable)
    erasing, refused = Erasing(gm.graph, coupling), dict(found.refused)
    nodes = {node.name: node for node in gm.graph.nodes}
    for name, block in found.offered.items():
        if why := erasing.refusal(block):
            node = structure.records[block.sum].node
            refused[name] = Reason(why, node, "add", source_of(nodes[node]))
    return Blocks({name: block for name, block in found.offered.items() if name not in refused}, refused)
