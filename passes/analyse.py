"""`couple`, the analysis as one verb: infer the axes, freeze what must stay, try everything once."""

from __future__ import annotations

from torch import fx, nn

from passes.analysis.coupling import Coupling, remember
from passes.analysis.parameter_roles import as_used, names_of
from passes.analysis.reach import unused_axes
from passes.analysis.tape import Structure
from passes.arguments import is_a
from passes.axes.expressions import Reason
from passes.documents.described_values import described
from passes.graph.fingerprint import fingerprint
from passes.graph.given_networks import given
from passes.graph.module_copies import parameters_of
from passes.graph.nodes import input_nodes, source_of
from passes.ops import spelled, traits_of
from passes.process.garbage import collector_paused
from passes.process.state import leaves_no_trace
from passes.process.torch_patches import quiet_graphs
from passes.stream.call_arguments import bound, example_of
from passes.stream.graph_stream import infer
from passes.trial.graph_blocks import graph_blocks
from passes.trial.graph_trial import trial
from passes.trial.module_blocks import module_blocks
from passes.trial.module_groups import couple_module, remember_module


@leaves_no_trace
@quiet_graphs()
@collector_paused()
def couple(network: nn.Module, example_inputs: object, *, depth: bool = False) -> Coupling:
    """Find the groups of a network for inputs of these shapes and dtypes.

    network: a GraphModule, which is interpreted, or any other module, which is run: its own Python, on the meta device.
    example_inputs: a tensor, a tuple of positional arguments, or a dict by name. Their values are read only where a
    module's program asks for values. depth: look for residual branches that can be removed whole as well: `blocks`.

    Raises PassError where the inputs do not fit the network.
    """
    is_a(network, nn.Module, "couple", "a torch.nn.Module or a torch.fx.GraphModule")
    is_a(depth, bool, "couple: depth", "True or False")
    given(network, "couple")
    if isinstance(network, fx.GraphModule):
        coupling = couple_graph(network, example_inputs)
    else:
        coupling = couple_module(network, example_inputs)
    return with_blocks(network, coupling, example_inputs) if depth else coupling


@leaves_no_trace
@collector_paused()
def with_blocks(network: nn.Module, coupling: Coupling, example_inputs: object = None) -> Coupling:
    """The coupling of `network` with the residual branches that plans may remove (see `couple`).

    example_inputs: of the module; by default made anew in the shapes that the coupling knows.
    """
    if coupling.knows_blocks:
        return coupling
    if isinstance(network, fx.GraphModule):
        found = coupling.with_blocks(graph_blocks(network, coupling))
        remember(network, found)
        return found
    arguments = bound(network, example_of(coupling.inputs) if example_inputs is None else example_inputs)
    found = coupling.with_blocks(module_blocks(network, coupling, arguments))
    remember_module(network, found)
    return found


def couple_graph(gm: fx.GraphModule, example_inputs: object) -> Coupling:
    """`couple` for a graph.

    example_inputs: a tensor, a tuple in the order of the placeholders, or a dict by placeholder name.
    Every node gets ``meta["val"]`` (meta tensors) and ``meta["axes"]``. Weights are neither read nor copied.
    Ends with a trial rewriting on the meta device: what the coupling offers, PruneChannels can do.

    Raises PassError where the inputs do not fit the graph.
    """
    inferred = infer(gm, example_inputs)
    sources = {n.name: source_of(n) for n in gm.graph.nodes}
    for record in inferred.records:
        if record.mixed and traits_of(record.func).reference is None:
            text = "it mixes units, and no reference says what it gives without some"
            reason = Reason(text, record.node, spelled(record.func), sources.get(record.node, ""))
            for axis in record.mixed:
                inferred.space.freeze(axis, reason)
    trainable = frozenset(name for name, _ in parameters_of(gm))
    own = [name for name, first in inferred.canonical.items() if first == name]
    digest = fingerprint(gm)
    inputs = [described(inferred.vals[node.name]) for node in input_nodes(gm.graph)]
    structure = Structure.of(inferred)
    refused = list(unused_axes(structure.tensors, [n for n in own if n in trainable], structure.records))
    while True:
        if refused:
            for axis, reason in refused:
                inferred.space.freeze(axis, reason)
            structure = Structure.of(inferred)
        names = names_of(structure.tensors, structure.roles, as_used(own, structure.all_records), trainable)
        coupling = Coupling(structure, names, digest, inputs, sources, inferred.canonical, trainable)
        refused = trial(gm, coupling)
        if not refused:
            break
    remember(gm, coupling, digest)
    return coupling
