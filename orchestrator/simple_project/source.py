"""Which source files make a project, and the content of its data."""

import ast
import hashlib
import importlib.util
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType

from orchestrator.project import import_folder
from ups_model.data.readers.io.files import walk_folders


def content_digest(path: Path) -> str:
    """SHA-256 of a file, or of the names and contents of all files of a folder."""
    files = (
        [path]
        if path.is_file()
        else [Path(folder) / name for folder, _, names in walk_folders(path) for name in sorted(names)]
    )
    if not files:
        raise ValueError(f"{path}: holds no file; give the folder that the data are in")
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


def source_files(start: ModuleType) -> list[Path]:
    """The file of a module, and those of its package that it imports anywhere, by way of others too. Of a module
    outside packages, those that lie beside it. Read from the sources, so that imports inside functions count."""
    top, is_package = start.__name__.partition(".")[0], "." in start.__name__ or hasattr(start, "__path__")
    root = import_folder(start)
    files: dict[str, Path] = {}
    pending = [start.__name__]
    while pending:
        name = pending.pop()
        is_own = name.partition(".")[0] == top or not is_package
        file = _file_of(root, name) if is_own and name not in files else None
        if file is not None:
            files[name] = file
            pending += _imports_of(name, file)
            pending += [name.rpartition(".")[0]] if "." in name else []  # A package's __init__ runs too.
    return sorted(set(files.values()))


def _file_of(root: Path, name: str) -> Path | None:
    base = root.joinpath(*name.split("."))
    return next((file for file in (base.with_suffix(".py"), base / "__init__.py") if file.is_file()), None)


def _imports_of(name: str, file: Path) -> Iterator[str]:
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            relative = "." * node.level + (node.module or "")
            base = importlib.util.resolve_name(relative, package) if node.level else relative
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)
