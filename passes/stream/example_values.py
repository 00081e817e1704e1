"""Values of a graph's nodes on the example itself, computed when somebody asks: how many rows `x[mask]` has."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import fx, nn

from passes.graph.module_copies import copy_module, like, shell
from passes.nested_values import tree_leaves_only
from passes.process.torch_private import no_dispatch_modes, pytree


class ExampleValues:
    """Runs what a node is computed from, each node once, on copies: nothing of the network or the example is changed.

    arguments: by placeholder; where one of them has no values, nothing is known.
    """

    def __init__(self, gm: fx.GraphModule, arguments: Mapping[fx.Node, object]) -> None:
        self._gm, self._arguments = gm, arguments
        self._run: _Ancestors | None = None

    @cached_property
    def known(self) -> bool:
        """Whether the example and the network have values."""
        tensors = tree_leaves_only(torch.Tensor, list(self._arguments.values()))
        return not any(t.is_meta for t in [*tensors, *self._gm.parameters(), *self._gm.buffers()])

    def of(self, node: fx.Node) -> Any:
        """What `node` gives on the example, in evaluation mode; raises what running it raises."""
        if self._run is None:
            root = copy_module(shell(self._gm), lambda _, tensor: like(tensor, tensor.detach().clone())).eval()
            self._run = _Ancestors(root, self._gm.graph, self._arguments)
        with no_dispatch_modes(), torch.no_grad():
            return self._run.value(node)


class _Ancestors(fx.Interpreter):
    def __init__(self, root: nn.Module, graph: fx.Graph, arguments: Mapping[fx.Node, object]) -> None:
        super().__init__(root, garbage_collect_values=False, graph=graph)
        self.extra_traceback = False
        copied = pytree.tree_map_only(torch.Tensor, lambda t: t.detach().clone(), dict(arguments))
        self.env.update(copied)
        self._order = {node: number for number, node in enumerate(graph.nodes)}

    def value(self, node: fx.Node) -> Any:
        needed, stack = {node}, [node]
        while stack:
            for used in stack.pop().all_input_nodes:
                if used not in needed and used not in self.env:
                    needed.add(used)
                    stack.append(used)
        for one in sorted(needed - set(self.env), key=self._order.__getitem__):
            self.env[one] = self.run_node(one)
        return self.env[node]
