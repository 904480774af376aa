"""Which source files make a project, and the content of its data."""

import ast
import hashlib
import importlib.util
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType


def content_digest(path: Path) -> str:
    """SHA-256 of a file, or of the names and contents of all files of a folder."""
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    stats = tuple((file, file.stat().st_size, file.stat().st_mtime_ns) for file in files)
    return _digest_of(path, stats)


@cache
def _digest_of(path: Path, stats: tuple[tuple[Path, int, int], ...]) -> str:
    whole = hashlib.sha256()
    for file, size, _ in stats:
        whole.update(f"{file.relative_to(path).as_posix()} {size} ".encode())
        with file.open("rb") as stream:
            whole.update(hashlib.file_digest(stream, "sha256").digest())
    return whole.hexdigest()


def modules_of(start: ModuleType) -> list[ModuleType]:
    """A module, and those of its package that it imports, by way of others too. Of a module outside packages, those
    that lie beside it."""
    package = start.__name__.partition(".")[0]
    beside = Path(start.__file__ or "").resolve().parent if "." not in start.__name__ else None
    modules: dict[str, ModuleType] = {}
    pending = [start.__name__]
    while pending:
        name = pending.pop()
        module = sys.modules.get(name)
        file = getattr(module, "__file__", None)  # Those that are built in have none.
        if name in modules or module is None or not file:
            continue
        is_own = name.partition(".")[0] == package or Path(file).resolve().parent == beside
        if is_own and file.endswith(".py"):
            modules[name] = module
            pending += _imports_of(module)
    return list(modules.values())


def _imports_of(module: ModuleType) -> Iterator[str]:
    source = Path(module.__file__ or "").read_text("utf-8")
    package = module.__name__ if hasattr(module, "__path__") else module.__name__.rpartition(".")[0]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            relative = "." * node.level + (node.module or "")
            base = importlib.util.resolve_name(relative, package) if node.level else relative
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)
