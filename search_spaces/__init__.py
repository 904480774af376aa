"""Studies and search spaces as plain data: what they are made of here, in `ups/` and `others/` those that can be named.
Importing runs nothing."""

import difflib
import importlib
import importlib.util
import pkgutil
import sys
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from search_spaces import others, ups
from search_spaces.space import Space
from search_spaces.study import Study

T = TypeVar("T")


def study_names() -> list[str]:
    """Names of the studies that come with this package."""
    return list(_modules("STUDY"))


def find_study(name: str) -> Study:
    """A study of this package by name, of a Python or YAML file by path, or `module:name` from an importable module.

    Raises:
        ValueError: there is no such study (near names are listed), or what is there isn't a study.
    """
    if name.endswith((".yaml", ".yml")):
        from search_spaces.study_file import read_study

        return read_study(beside(Path(name).expanduser()))
    return _find(name, "STUDY", Study)


def names_a_file(name: str) -> bool:
    """Whether a study is named by what defines it, a file or `module:name`, and not by a name alone."""
    return name.endswith((".py", ".yaml", ".yml")) or "/" in name or ":" in name


def source_file(name: str) -> Path:
    """The file that defines what `find_study` has found by this name."""
    if name.endswith((".py", ".yaml", ".yml")) or "/" in name:
        return Path(name).expanduser()
    module = importlib.import_module(name.partition(":")[0]) if ":" in name else _modules()[name]
    return Path(str(module.__file__))


def space_names() -> list[str]:
    """Names of the search spaces that come with this package."""
    return list(_modules("SPACE"))


def find_space(name: str) -> Space:
    """A search space of this package by name, of a Python file by path, or `module:name` from an importable module.

    Raises:
        ValueError: there is no such space (near names are listed), or what is there isn't one.
    """
    return _find(name, "SPACE", Space)


def _modules(attribute: str = "") -> dict[str, ModuleType]:
    """Modules of this package's studies and search spaces by name; those that have an attribute."""
    found = {
        name: importlib.import_module(f"{package.__name__}.{name}")
        for package in (others, ups)
        for _, name, _ in pkgutil.iter_modules(package.__path__)
    }
    return {name: found[name] for name in sorted(found) if not attribute or hasattr(found[name], attribute)}


def _find(name: str, attribute: str, kind: type[T]) -> T:
    if name in (modules := _modules(attribute)):
        module = modules[name]
    elif name.endswith(".py") or "/" in name:
        module = _load_file(Path(name).expanduser(), attribute)
    elif ":" in name:
        module_name, attribute = name.split(":", 1)
        try:
            module = importlib.import_module(module_name)
        except ImportError as error:
            raise ValueError(f"cannot import {module_name!r} for {name!r} ({error}); give a file's path") from error
    else:
        near = difflib.get_close_matches(name, modules, n=3, cutoff=0.4) or modules
        what = kind.__name__.lower()
        raise ValueError(f"unknown {what} {name!r}; near: {', '.join(near)}; or give a file's path or module:name")
    value = getattr(module, attribute, None)
    if not isinstance(value, kind):
        raise ValueError(f"{name}: {attribute} must be a {kind.__name__}, got {value!r}")
    return value


def beside(path: Path) -> Path:
    """The file of a study; modules that lie beside it, such as its project, can be imported from now on."""
    if (folder := str(path.resolve().parent)) not in sys.path:
        sys.path.append(folder)
    return path


def _load_file(path: Path, attribute: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"study_file_{path.stem}", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ValueError(f"{path}: no such Python file; give the path of a file that defines {attribute}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    beside(path)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # The user's file may fail in any way; the way out is in that file.
        raise ValueError(f"{path}: cannot be read ({type(error).__name__}: {error})") from error
    return module
