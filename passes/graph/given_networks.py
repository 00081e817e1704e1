"""A network as a caller hands it in: whether there is something to analyse, and whether its graph is what it runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import fx, nn

from passes.arguments import got, has_weights
from passes.errors import PassError
from passes.graph.module_copies import modules_of
from passes.graph.nodes import source_of
from passes.graph.same_code import same_code
from passes.process.torch_private import OpOverload, is_to_be_compiled, rewrites_code, schema_of, written_code


def given(network: nn.Module, where: str, error: type[Exception] = PassError) -> dict[str, nn.Module]:
    """The modules of a network that was handed to `where`, by path.

    Raises where a lazy layer has no weights yet; and of a GraphModule, whose graph is analysed, where it runs something
    else than its graph, where that names what it does not hold, and where it is quantised.
    """
    modules = modules_of(network)
    has_weights(modules, where, error)
    if isinstance(network, fx.GraphModule):
        for problem in _problems(network, modules):
            raise error(f"{where}: {problem}")
        if is_to_be_compiled(network):
            network.code  # noqa: B018  (until it is asked for, nobody sees what arguments its forward takes)
    return modules


def quantised_call(graph: fx.Graph) -> str | None:
    """The first node that quantises, or computes with what is quantised, with its operator; None in a graph of floats.

    >>> quantised_call(fx.symbolic_trace(nn.ReLU()).graph) is None
    True
    """
    for node in graph.nodes:
        if node.op in ("call_function", "call_method") and _quantises(node.target):
            return f"{node.name} ({node.target if isinstance(node.target, str | OpOverload) else _named(node.target)})"
    return None


_QUANTISED = frozenset({"quantized", "quantized_decomposed", "torchao", "_quantized"})
_QUANTISING = frozenset(
    {"quantize_per_tensor", "quantize_per_channel", "quantize_per_tensor_dynamic", "dequantize", "int_repr"}
)


def _quantises(target: object) -> bool:
    if isinstance(target, OpOverload):
        namespace, _, name = schema_of(target).name.partition("::")
        return namespace in _QUANTISED or name in _QUANTISING
    name = target if isinstance(target, str) else getattr(target, "__name__", "")
    return name in _QUANTISING or str(getattr(target, "__module__", "")) == "torch.ops.quantized"


def _named(target: object) -> str:
    return str(getattr(target, "__name__", target))


def _problems(gm: fx.GraphModule, modules: Mapping[str, nn.Module]) -> Iterator[str]:
    """Why the graph of `gm` cannot be taken for what it computes, in words."""
    name = type(gm).__name__
    replaced = gm.__dict__.get("forward")
    if replaced is not None and getattr(replaced, "__func__", None) is not type(gm).forward:
        yield (
            f"{name}.forward was replaced by {got(replaced)}: a call runs that, and not the graph, which is what is "
            "analysed; take it away (del gm.forward), or capture a module that computes what it does"
        )
    for node in gm.graph.nodes:
        if node.op == "call_module" and str(node.target) not in modules:
            yield _absent(node, "calls the module")
        if node.op == "get_attr" and not _is_there(str(node.target), modules):
            yield _absent(node, "reads")
    call = quantised_call(gm.graph)
    if call is not None:
        yield f"{name} is quantised ({call}), and its scales belong to its channels; prune first, quantise afterwards"
    code = written_code(gm)
    if code is not None and not same_code(gm.graph.python_code("self").src, code):
        found = f"the graph of {name} was changed after its code was written: a call still runs the code"
        remedy = "call gm.recompile() first"
        if rewrites_code(gm.graph):
            found += ", or the function that graph.on_generate_code was given writes another text each time"
            remedy = "take that function away (gm.graph.on_generate_code(lambda _: None)) and call gm.recompile()"
        yield f"{found}; the graph is what is analysed: {remedy}"


def _absent(node: fx.Node, does: str) -> str:
    place = f" ({source_of(node)})" if source_of(node) else ""
    return (
        f"node {node.name}{place} {does} {node.target!r}, which the graph module does not hold; "
        "take the node out of the graph, or add what it names (gm.add_submodule, gm.register_buffer)"
    )


def _is_there(target: str, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a graph module holds an attribute of this qualified name."""
    path, names = target, list[str]()
    while path not in modules:
        path, _, name = path.rpartition(".")
        names.insert(0, name)
    held: object = modules[path]
    for name in names:
        if not hasattr(held, name):
            return False
        held = getattr(held, name)
    return True
