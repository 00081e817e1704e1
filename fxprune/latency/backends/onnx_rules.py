"""The table of rules that give ATen operators as ONNX operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fxprune.latency.backends.onnx_graph import Call, UnsupportedOperator

Rule = Callable[[Call], Any]
RULES: dict[Any, Rule] = {}
aten = torch.ops.aten


def rule(*packets: Any) -> Callable[[Rule], Rule]:
    """Register a function for some operators; a second rule for one of them is an error."""

    def register(function: Rule) -> Rule:
        for packet in packets:
            if packet in RULES:
                raise ValueError(f"{packet} has a rule already")
            RULES[packet] = function
        return function

    return register


def unsupported(call: Call, why: str) -> str:
    """Give the call up, saying why."""
    raise UnsupportedOperator(f"{call.func} (node {call.graph.scope}) {why}")
