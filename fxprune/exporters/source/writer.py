"""The source file as a whole: imports, classes, the helper that loads the weights, and a check to run."""

from __future__ import annotations

import keyword
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxprune.errors import ExportError
from fxprune.exporters.check import agreement, fixed_batch_reason, other_size, unfollowed_batch
from fxprune.exporters.files import check_free, staged
from fxprune.exporters.inputs import Inputs, call
from fxprune.exporters.outcome import ExportReport
from fxprune.exporters.protocol import Job
from fxprune.exporters.source.constructors import Built, Constructors
from fxprune.exporters.source.containers import (
    Container,
    assignments,
    base_class,
    is_plain,
    reference,
    uses_container_class,
)
from fxprune.exporters.source.flatten import flattened
from fxprune.exporters.source.forward import forward_lines, used_targets
from fxprune.exporters.source.literals import Imports, literal, sequence
from fxprune.exporters.source.tensors import tensor_lines
from fxprune.io.module_state import State, check_same_form, state_of, write_state
from fxprune.io.seal import UNSEALED, seal, sha256_of
from passes.graph.annotations import specialised_in
from passes.graph.module_copies import owned_tensors

_CONTAINER = '''\
class Container(nn.Module):
    """Modules under their names."""

    def __init__(self, /, **members):
        super().__init__()
        for name, member in members.items():
            self.add_module(name, member)
'''

_LOAD = '''\
def load(weights=None, device="cpu"):
    """{name} in eval mode, with the weights of a safetensors file: the one beside this file, unless another is named.

    ValueError where this file or the one beside it is damaged. Whoever changes this file deletes its last line.
    """
    from safetensors.torch import load_model

    text, mark, digest = Path(__file__).read_bytes().rpartition(b"\\n# fxprune sha256 ")
    if mark and sha256(text + mark + b"\\n").hexdigest().encode() + b"\\n" != digest:
        raise ValueError(f"{{__file__}} is damaged, or was changed; where that was meant, delete its last line")
    if weights is None:
        weights = Path(__file__).with_suffix("{suffix}")
        if sha256(weights.read_bytes()).hexdigest() != "{digest}":
            raise ValueError(f"{{weights}} is damaged, or not what was written with {{__file__}}; name it to insist")
    network = {name}()
    load_model(network, weights)
    return network.to(device).eval()
'''

_STANDARD = ("from hashlib import sha256", "from pathlib import Path")
WEIGHTS = ".py.safetensors"
_UNKNOWN = "sha256 of the weights"


@dataclass(frozen=True)
class Source:
    """A source file: its text, and the state that belongs beside it."""

    text: str
    state: State
    notes: tuple[str, ...] = ()


def write(job: Job) -> ExportReport:
    """Write the file and its weights, execute what was written and run it beside the network (in eval mode).

    The file is written of a graph and compared with what the user brought: of a module the graph is one run.
    """
    path, inputs, tolerance = job.path, job.inputs, job.tolerance
    if not path.stem.isidentifier() or keyword.iskeyword(path.stem):
        raise ExportError(f"{path}: no Python module can be called {path.stem!r}; use letters, digits and underscores")
    gm = job.graph()
    source = network_source(gm, inputs, path.stem)
    reason = fixed_batch_reason(job.network, inputs) if job.dynamic_batch else "asked for with dynamic_batch=False"
    weights = path.with_suffix(WEIGHTS)
    check_free(path, weights, overwrite=job.overwrite)
    check_same_form(weights, False, job.overwrite)
    with staged(path, job.overwrite) as folder:
        write_state(source.state, folder / weights.name)
        text = source.text.replace(_UNKNOWN, sha256_of(folder / weights.name))
        (folder / path.name).write_bytes(text.encode())
        seal(folder / path.name)
        network = _executed(folder / path.name)
        device = next((tensor.device for _, tensor in owned_tensors(gm)), torch.device("cpu"))
        network.to(device)
        run = partial(call, network)
        sizes = () if inputs.batch_size is None else (inputs.batch_size,)
        found = agreement(job.network, run, inputs, sizes, tolerance)
        if reason is None:
            reason = unfollowed_batch(job.network, run, inputs, tolerance)
        if reason is None:
            sizes = *sizes, other_size(*sizes)
            found = found.worse(agreement(job.network, run, inputs, sizes[1:], tolerance))
    files, notes = (path, weights), (*source.notes, *specialised_in(gm))
    return ExportReport.compared("py", path, files, found, sizes, reason, tolerance, notes=notes)


def network_source(gm: fx.GraphModule, inputs: Inputs, stem: str) -> Source:
    """The text of the file for a graph and its state; the same graph gives the same text.

    Raises ExportError that names the module, node or argument that has no plain source.
    """
    gm = flattened(gm)
    imports = Imports()
    constructors = Constructors(imports)
    root, after = _modules(gm, constructors)
    state = state_of(gm)
    after = [*tensor_lines(gm, root, state, imports), *after]
    name = _class_name(gm, imports, constructors)
    forward = forward_lines(gm, root, imports, "    ")
    check = list(_check_lines(inputs, imports))
    parts = [
        _docstring(name, stem),
        "\n".join(
            [*imports.standard(), "from hashlib import sha256", "from pathlib import Path", "", *imports.lines()]
        ),
        *([_CONTAINER] if uses_container_class(root) else []),
        *constructors.carried.values(),
        "\n".join([*_class_lines(name, root, after), "", *forward]),
        _LOAD.format(name=name, suffix=WEIGHTS, digest=_UNKNOWN),
        "\n".join(check),
    ]
    head, imported, *rest = (part.strip("\n") for part in parts)
    text = f"{head}\n\n{imported}\n\n\n" + "\n\n\n".join(rest) + f"\n\n# {UNSEALED}\n"
    return Source(text, state, _notes(state))


def _modules(gm: fx.GraphModule, constructors: Constructors) -> tuple[Container, list[str]]:
    """The tree of called modules and tensors, and the statements that correct what constructors cannot say."""
    called = dict.fromkeys(used_targets(gm, "call_module"))
    root, corrections = Container(), []
    leaves: dict[str, Built] = {}
    for path, module in gm.named_modules(remove_duplicate=False):
        if path in called and not any(path.startswith(f"{leaf}.") for leaf in leaves):
            leaves[path] = constructors.build(module, path)
            root.add(path, leaves[path].expression)
    for name, _ in owned_tensors(gm):
        if not any(name.startswith(f"{leaf}.") for leaf in leaves):
            root.enclosing(name.split(".")[:-1])
    for name in used_targets(gm, "get_attr"):  # a mode is read from the module that it belongs to
        if not any(name.startswith(f"{leaf}.") for leaf in leaves):
            root.enclosing(name.split(".")[:-1])
    for path, built in leaves.items():
        for attribute, text in built.corrections.items():
            owner, _, last = attribute.rpartition(".")
            corrections.append(f"{reference(root, f'{path}.{owner}'.rstrip('.'))}.{last} = {text}")
    return root, corrections


def _notes(state: State) -> tuple[str, ...]:
    large = [name for name in state.transient if name not in state.small]
    if not large:
        return ()
    names = ", ".join(large)
    return (f"non-persistent buffers now in the state_dict, for their values stand nowhere else: {names}",)


def _class_name(gm: fx.GraphModule, imports: Imports, constructors: Constructors) -> str:
    """The name that the traced class had, where it is free, else Network."""
    name = type(gm).__name__
    blocked = {"GraphModule", "Container", "Path", "sha256", "F", "Module", *imports.names, *constructors.carried}
    return "Network" if name in blocked or not is_plain(name) or not name[0].isupper() else name


def _docstring(name: str, stem: str) -> str:
    return (
        f'"""{name}: a network written as source by fxprune. It needs torch, and safetensors to read its weights.\n\n'
        f"    from {stem} import load\n"
        f"    network = load()\n"
        f'"""'
    )


def _class_lines(name: str, root: Container, after: list[str]) -> Iterator[str]:
    yield f"class {name}({base_class(root)}):"
    yield "    def __init__(self):"
    yield from assignments(root, " " * 8)
    yield from (f"        {line}" for line in after)


def _check_lines(inputs: Inputs, imports: Imports) -> Iterator[str]:
    """Run as a program the file calls its network on zeros of the example's shapes and says what comes out."""

    def text(value: object) -> str:
        if isinstance(value, Tensor):
            dtype = "" if value.dtype == torch.float32 else f", dtype={value.dtype}"
            return f"torch.zeros({', '.join(map(str, value.shape)) if value.dim() else '()'}{dtype})"
        if isinstance(value, tuple | list | dict):
            return sequence(value, text, imports, "an example input")
        return literal(value, imports, "an example input")

    yield 'if __name__ == "__main__":'
    given = [*map(text, inputs.args), *(f"{key}={text(value)}" for key, value in inputs.kwargs.items())]
    yield "    with torch.no_grad():"
    yield f"        result = load()({', '.join(given)})"
    yield "    print(tuple(result.shape) if isinstance(result, torch.Tensor) else type(result).__name__)"


def _executed(path: Path) -> nn.Module:
    """Execute the file as it was written and let its own `load` build the network."""
    namespace: dict[str, Any] = {"__name__": path.stem, "__file__": str(path)}
    exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), namespace)  # our own text, written above
    return namespace["load"]()
