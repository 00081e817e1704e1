"""What a user writes on the command line, as a model.

torchvision:resnet18                            a model of torchvision, with random weights
torchvision:retinanet_resnet50_fpn.backbone     a part of it
timm:mobilenetv3_small_100                      a model of timm, with random weights
hf:FOLDER    hf:CONFIG.json    hf:bert          a model of transformers: with the folder's weights, else random ones
package.module:name                             a model, or a function or class that returns one
package.module:name(10, width=0.5)              the same, with arguments: numbers, texts, lists
path/to/file.py:name                            the same, of a file
"""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from fxprune.cli.refused_imports import may_hold_modules
from fxprune.errors import FxpruneError, SourceError, TrustError
from fxprune.io.empty_networks import empty_weights
from passes.arguments import user_path
from passes.process.source_lines import innermost_line

log = logging.getLogger(__name__)

FORMS = (
    "torchvision:NAME, timm:NAME, hf:CONFIG_OR_FOLDER, package.module:function, path/to/file.py:function, "
    "or function(arguments)"
)
_WEIGHTS = "a file of weights (load them in that function)"
FILES = {
    ".pt": _WEIGHTS, ".pth": _WEIGHTS, ".ckpt": _WEIGHTS, ".bin": _WEIGHTS, ".safetensors": _WEIGHTS,
    ".pt2": "an exported program", ".onnx": "an exported network", ".py": "a file of code, without the function in it",
}  # fmt: skip
"""What files are that are named in the place of a model."""
_CALL = re.compile(r"(?P<name>[A-Za-z_]\w*)(?P<arguments>\(.*\))?(?:\.(?P<part>[\w.]+))?\Z", re.DOTALL)


def load_without_weights(spec: str) -> nn.Module:
    """The model that `spec` stands for, its weights on the meta device; those of a folder are not read."""
    place, _, name = spec.partition(":")
    with empty_weights():
        return _transformers_model(name, weights=False) if place == "hf" else load_model(spec)


def load_model(spec: str) -> nn.Module:
    """The model that `spec` stands for (see the module), or the submodule named after a dot.

    Raises SourceError with what is wrong in `spec`; a model that fails while it is built keeps its own error.
    """
    place, _, rest = spec.partition(":")
    if not place or not rest:
        if Path(spec).suffix in FILES or Path(spec).is_file():
            raise SourceError(
                f"{spec!r} is {FILES.get(Path(spec).suffix, 'a file')}, and a model is made by code: write a function "
                "that builds the network, and name it as path/to/file.py:function"
            )
        raise SourceError(f"{spec!r} is no model: write {FORMS}")
    if place == "hf":
        return _transformers_model(rest)
    if place in ("torchvision", "timm"):
        name, _, part = rest.partition(".")
        model = _torchvision_model(name) if place == "torchvision" else _timm_model(rest)
        part = part if place == "torchvision" else ""
    else:
        model, part = _own_model(place, rest)
    try:
        return model.get_submodule(part) if part else model
    except AttributeError as error:
        raise SourceError(f"{spec} has no part {part!r}: {error}") from None


def _timm_model(name: str) -> nn.Module:
    _make_torchvision_importable()
    try:
        import timm
    except ModuleNotFoundError as error:
        raise SourceError("timm:NAME needs the package timm, which is not installed: pip install timm") from error
    if name not in timm.list_models():
        raise SourceError(f"timm has no model {name!r}{_nearest(name, timm.list_models())}")
    return timm.create_model(name, pretrained=False)


def _transformers_model(name: str, weights: bool = True) -> nn.Module:
    """Of a folder, of its config.json, or of a kind of model at its usual sizes. Nothing is downloaded, and code that a
    folder holds is not run."""
    _make_torchvision_importable()
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise SourceError(f"hf:{name} needs the package transformers: pip install transformers") from error
    place = user_path(name)
    if place.is_dir() and not (place / "config.json").is_file():
        raise SourceError(f"hf:{name}: the folder holds no config.json, so it is no model of transformers")
    if not place.exists():
        if name not in transformers.CONFIG_MAPPING:
            raise SourceError(
                f"hf:{name}: there is no such folder or file, and transformers has no model of that kind"
                f"{_nearest(name, transformers.CONFIG_MAPPING)}"
            )
        return transformers.AutoModel.from_config(transformers.AutoConfig.for_model(name)).eval()
    config = transformers.AutoConfig.from_pretrained(place, local_files_only=True)
    named = getattr(transformers, (config.architectures or ["AutoModel"])[0], transformers.AutoModel)
    if weights and place.is_dir() and any(place.glob("*.safetensors")):
        return named.from_pretrained(place, local_files_only=True).eval()
    if weights and any(place.glob("*.bin") if place.is_dir() else ()):
        log.warning("hf:%s: weights are read from .safetensors alone; these are random", name)
    return (named.from_config if named is transformers.AutoModel else named)(config).eval()


def _torchvision_model(name: str) -> nn.Module:
    from fxprune.torchvision_support import ensure_torchvision

    ensure_torchvision()
    from torchvision import models

    names = models.list_models()
    if name not in names:
        raise SourceError(f"torchvision has no model {name!r}{_nearest(name, names)}")
    options: dict[str, None] = {"weights": None}
    if name in models.list_models(module=models.detection) + models.list_models(module=models.segmentation):
        options["weights_backbone"] = None  # else the backbone's weights are downloaded
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The default weight initialization", category=FutureWarning)
        return models.get_model(name, **options)


def _own_model(place: str, call: str) -> tuple[nn.Module, str]:
    """The model, and the name of the part that is meant."""
    found = _CALL.match(call)
    if found is None:
        raise SourceError(f"{place}:{call}: expected a name, or a call such as function(10, width=0.5)")
    name, arguments, part = found["name"], found["arguments"], found["part"] or ""
    made = load_object(place, name)
    if arguments is not None or (callable(made) and not isinstance(made, nn.Module)):
        made = _called(made, f"{place}:{name}", arguments or "()")
    if not isinstance(made, nn.Module):
        hint = "; call from_pretrained yourself, in a function" if isinstance(made, str | Path) else ""
        raise SourceError(f"{place}:{call} gives {type(made).__name__}, expected a torch.nn.Module{hint}")
    return made, part


def _called(function: Any, said: str, arguments: str) -> object:
    import inspect

    try:
        parsed = ast.parse(f"f{arguments}", mode="eval").body
        assert isinstance(parsed, ast.Call)
        positional = [ast.literal_eval(value) for value in parsed.args]
        named = {word.arg: ast.literal_eval(word.value) for word in parsed.keywords if word.arg is not None}
    except (SyntaxError, ValueError, AssertionError):
        raise SourceError(
            f"{said}{arguments}: arguments are written as numbers, texts in quotes, lists, True, False or None"
        ) from None
    try:
        inspect.signature(function).bind(*positional, **named)
    except TypeError as error:
        raise SourceError(
            f"{said}{arguments}: {error}; write its arguments in parentheses, as {said}(10, width=0.5)"
        ) from None
    except ValueError:
        log.debug("%s states no signature", said)
    try:
        return function(*positional, **named)
    except Exception as error:
        raise raised(f"{said}{arguments}", error) from error


def raised(said: str, error: Exception) -> SourceError:
    """The words for an error of the user's code, whose own say most. said: what was called."""
    log.info("%s failed", said, exc_info=error)
    place = "" if isinstance(error, SyntaxError) else innermost_line(error)  # it says where itself
    where = " ({}, line {})".format(*place.rsplit(":", 1)) if place else ""
    return SourceError(
        f"{said} raised {type(error).__name__}: {str(error)[:500]}{where}. "
        "`fxprune --verbose ...` shows the whole traceback."
    )


def load_object(place: str, name: str) -> object:
    """What `name` is in the module or the file `place`, which may lie where the command is called. Raises SourceError.

    The module may import torchvision, now or when it is used: that is made possible first.
    """
    _make_torchvision_importable()
    try:
        module = _file(user_path(place), name) if place.endswith(".py") else _module(place, name)
    except (FxpruneError, ModuleNotFoundError):
        raise
    except Exception as error:
        raise raised(f"{place}: importing it", error) from error
    if not hasattr(module, name):
        raise SourceError(f"{place} has no {name!r}{_nearest(name, vars(module))}")
    return getattr(module, name)


def _module(place: str, name: str) -> ModuleType:
    # An installed command does not look for modules where it is called; `python -m` does.
    if os.getcwd() not in sys.path and may_hold_modules(os.getcwd()):
        sys.path.insert(0, os.getcwd())
    if not place.strip(".") or place.startswith("."):  # ..module, a path
        raise SourceError(f"{place!r} is no name of a module: write {FORMS}")
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{place}.".startswith(f"{error.name}."):
            raise  # the module exists and fails on an import of its own: its traceback says where
        hint = f"; a file is named with its ending: {place}.py:{name}" if Path(f"{place}.py").is_file() else ""
        raise SourceError(f"no module {error.name!r} here or installed (looking for {place}:{name}){hint}") from error


def _file(path: Path, name: str) -> ModuleType:
    """A file as a module of its own name, with its folder searched for what it imports."""
    if not path.is_file():
        raise SourceError(f"{path}: there is no such file (looking for {path}:{name})")
    folder = str(path.resolve().parent)
    if not may_hold_modules(folder):
        raise TrustError(f"{path} lies in the folder of the search; code is never taken from there. Move it out.")
    if folder not in sys.path:
        sys.path.insert(0, folder)
    known = sys.modules.get(path.stem)
    if known is not None and os.path.realpath(getattr(known, "__file__", "") or "") == os.path.realpath(path):
        return known
    if known is not None:
        raise SourceError(f"{path}: a module {path.stem!r} is imported already, from elsewhere; rename the file")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None, "a .py file has a loader"
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[path.stem]
        raise
    return module


def _make_torchvision_importable() -> None:
    """Where it is installed. An installed one that cannot be imported matters only to code that imports it."""
    from fxprune.torchvision_support import TorchvisionError, ensure_torchvision

    try:
        ensure_torchvision()
    except ModuleNotFoundError as error:
        log.debug("%s", error)
    except TorchvisionError as error:
        log.warning("%s", error)


def _nearest(name: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, names, n=3)
    return f"; did you mean {', '.join(close)}?" if close else ""
