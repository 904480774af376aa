"""Digests of the source code that trains and of the source code that measures. Imports no torch.

Imports decide which module belongs where: everything that the training loop imports belongs to "training", what
measuring imports beyond that to "evaluation", and `LEFT_OUT` to neither. A digest covers the set of top-level
definitions, as syntax trees: comments, docstrings, annotations and formatting don't count, nor does the module that
holds a definition. Empty fields of the tree are skipped, since newer versions of Python add such fields.
"""

import ast
import hashlib
import threading
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.util import resolve_name
from pathlib import Path
from typing import Literal

Part = Literal["training", "evaluation"]

PACKAGE = "ups_model"
ROOT = Path(__file__).resolve().parent
"""Folder of the package whose source is digested."""
ROOTS: dict[Part, str] = {"training": "training.run", "evaluation": "evaluation.measure"}
"""The module at which the walk over imports begins."""
MEASURING = frozenset({"evaluation.measure", "evaluation.metric_names"})
"""Modules of "evaluation" that the training loop imports too."""
LEFT_OUT = frozenset(
    {
        "__init__",  # The version, and the number of the recipe, which is in every key.
        "config", "config.config", "config.data_config", "config.model_config", "config.schema", "config.identity",
        "config.presets",  # Values are in the key.
        "cli", "training.progress", "data.prepare.catalog",  # Arguments, progress lines, folders of clip sets.
        "evaluation.health",  # Verdicts are made again from the curve, which is kept.
        "training.checkpoint", "training.run_folder", "atomic", "device",  # Storage, hardware.
        "training.options", "training.fit",  # How a batch is cut, which changes rounding alone.
        "data.format.rules", "data.batching.suitability",  # They refuse and change nothing.
    }
)  # fmt: skip
"""Modules that change neither weights nor metrics. A walk over imports doesn't enter them."""
FORMER = {
    "4e3cea99b703030b": "d6b0d25ab76ff44a",
    "3167f9a12b1ceaeb": "d6b0d25ab76ff44a",
    "071260b2daaeb357": "b414384ceab92026",
    "e07f9f57e64e62da": "b414384ceab92026",
    "0046ad8db8a498c3": "b414384ceab92026",
    "6d70f343ed059786": "b414384ceab92026",
    "41888bfede90455d": "b414384ceab92026",
    "5ac8a073540ce453": "b414384ceab92026",
    "f7bc985fa4ae53b4": "b414384ceab92026",
    "340ecd3da4acb927": "b414384ceab92026",
    "170492e3ea125734": "b414384ceab92026",
    "03e9ace9a3608e01": "b414384ceab92026",
    "89e5a95ccc9e5ea7": "b414384ceab92026",
    "0b30be711a1455cd": "92887c08980d5baf",
    "924ad9e9e4987021": "92887c08980d5baf",
    "847a8ce63f0b640a": "92887c08980d5baf",
    "5b3bbe4a5d04fd6f": "92887c08980d5baf",
    "35cf1fa2449679e7": "f907356df5cc7613",
    "beacb4ad7d56bf4d": "f907356df5cc7613",
    "d37f45faeeb9e690": "f907356df5cc7613",
    "c9247392d17a927e": "f907356df5cc7613",
    "0e6c73fe98afa818": "f907356df5cc7613",
    "b8b6ea6bf9896f9a": "f907356df5cc7613",
    "bb34663979b57b1f": "f907356df5cc7613",
    "90e6dcddaae7d8f4": "f907356df5cc7613",
    "63f2a457f21778c8": "f907356df5cc7613",
    "162a3d78852a4f46": "f907356df5cc7613",
    "57593604992ce68f": "e022e3dfcc79402e",
    "fafb7284add76aaf": "e022e3dfcc79402e",
    "caca832faf63a951": "e022e3dfcc79402e",
    "8e54b9b2e9e85fb0": "2533111e575b2715",
    "e0e783eebeb8945a": "2533111e575b2715",
    "524db60f8ffbb2ed": "2533111e575b2715",
    "3275934fdeca7bb0": "2533111e575b2715",
    "615cdbe8586cc8d5": "8a70397a206f639d",
    "789985c65d310e69": "8a70397a206f639d",
    "13140b7ccec6557d": "6ac0c360a60ab3ff",
    "17eda557a5e1e763": "6ac0c360a60ab3ff",
}
"""Digests of code that trains and measures bit for bit as other code, that of `baselines` too, and the digest that
stands for both; benchmarks/same_training.py shows it for a commit. Outcomes of 924ad9e9e4987021 and before lack the
labels of poses, those of 847a8ce63f0b640a and before have errors of single frames up to 4 MB; up to 03e9ace9a3608e01
BatchNorm with activation checkpointing counted each batch twice in its statistics; up to 89e5a95ccc9e5ea7 persons who
are not there all the time were ordered by their whole tracks, and poses were trained and measured after a track's
end."""
_PARSING = threading.Lock()
"""Python 3.11 can't parse in two threads at a time: "AST constructor recursion depth mismatch"."""
TYPES = ("__future__", "collections.abc", "typing")
"""Modules that serve annotations alone."""
_SKIPPED_FIELDS = ("ctx", "kind", "type_comment")


def source_identity() -> dict[str, str]:
    """The digest of each part of the present code."""
    return {part: source_digest(part) for part in ROOTS}


def source_digest(part: Part) -> str:
    """16 hexadecimal digits of the SHA-256 of all modules of a part.

    Raises:
        OSError: a source file can't be read.
        SyntaxError: a source file is not Python.
    """
    with _PARSING:
        return _digest_of(part, ROOT)


def files_digest(files: Iterable[Path]) -> str:
    """The same of any files of Python: of their top-level statements, imports included."""
    with _PARSING:
        texts = {
            ast.unparse(statement) if isinstance(statement, ast.Import | ast.ImportFrom) else ast_text(statement)
            for file in files
            for statement in _tree(file).body
        }
    return hashlib.sha256("\n".join(sorted(texts)).encode()).hexdigest()[:16]


def source_files(part: Part) -> list[str]:
    """Modules of a part, as paths below the package's folder, sorted."""
    return [f"{module.replace('.', '/')}.py" for module in _modules(part, ROOT)]


def forget() -> None:
    """Read all files again at the next call."""
    for cached in (_digest_of, _ambiguous, _modules, _tree):
        cached.cache_clear()


def present_form(digest: str) -> str:
    """The digest that stands for a digest, as records have it or the present code; also of several joined by +, which
    trainers have that are built on this code."""
    return "+".join(FORMER.get(one, one) for one in digest.split("+"))


@cache
def _digest_of(part: Part, root: Path) -> str:
    texts: set[str] = set()
    for module in _modules(part, root):
        for statement in _tree(_file(root, module)).body:
            texts.add(ast_text(statement))
            imports = (node for node in ast.walk(statement) if isinstance(node, ast.Import | ast.ImportFrom))
            texts.update(text for node in imports for text in _import_texts(part, root, module, node))
    return hashlib.sha256("\n".join(sorted(texts)).encode()).hexdigest()[:16]


def _import_texts(part: Part, root: Path, module: str, node: ast.Import | ast.ImportFrom) -> Iterator[str]:
    """What an import means: the origin of a name of another package, and the definition that a name of this part stands
    for, where it is renamed or ambiguous."""
    base = _base(node, root, module) if isinstance(node, ast.ImportFrom) else ""
    if base in TYPES:
        return
    for alias in node.names:
        as_name = alias.asname or alias.name
        if base.partition(".")[0] != PACKAGE:
            yield f"import {as_name}: {base} {alias.name}"
        elif as_name != alias.name or alias.name in _ambiguous(part, root):
            yield f"import {as_name}: {_definition(part, root, base, alias.name)}"


@cache
def _ambiguous(part: Part, root: Path) -> set[str]:
    """Names that modules of a part define in several ways."""
    texts: dict[str, set[str]] = {}
    for module in _modules(part, root):
        for statement in _tree(_file(root, module)).body:
            for name in _defined(statement):
                texts.setdefault(name, set()).add(ast_text(statement))
    return {name for name, definitions in texts.items() if len(definitions) > 1}


def _definition(part: Part, root: Path, module: str, name: str) -> str:
    """Digest of the definition of a name in a module of a part, followed through imports; empty for other modules."""
    below = module.removeprefix(PACKAGE).removeprefix(".")
    file = _file(root, below)
    for statement in _tree(file).body if file.exists() else ():
        if isinstance(statement, ast.ImportFrom):
            for alias in statement.names:
                if (alias.asname or alias.name) == name and (base := _base(statement, root, below)).startswith(PACKAGE):
                    return _definition(part, root, base, alias.name)
        elif below in _modules(part, root) and name in _defined(statement):
            return hashlib.sha256(ast_text(statement).encode()).hexdigest()[:16]
    return ""


@cache
def _modules(part: Part, root: Path) -> list[str]:
    if part == "training":
        return sorted(_reachable(root, ROOTS["training"], LEFT_OUT | MEASURING))
    return sorted(_reachable(root, ROOTS["evaluation"], LEFT_OUT | set(_modules("training", root))))


def _reachable(root: Path, start: str, without: frozenset[str] | set[str]) -> set[str]:
    modules: set[str] = set()
    pending = [start]
    while pending:
        module = pending.pop()
        if module not in modules and module not in without:
            modules.add(module)
            pending += _imported(root, module)
    return modules


def _imported(root: Path, module: str) -> Iterator[str]:
    """Modules of the package that a module imports anywhere."""
    for node in ast.walk(_tree(_file(root, module))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = _base(node, root, module)
            names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        for name in names:
            below = name.removeprefix(f"{PACKAGE}.")
            if below != name and _file(root, below).exists():
                yield below


def _base(node: ast.ImportFrom, root: Path, module: str) -> str:
    """The absolute name of the module that an import takes names from."""
    name = f"{PACKAGE}.{module}"
    package = name if _file(root, module).name == "__init__.py" else name.rpartition(".")[0]
    return resolve_name("." * node.level + (node.module or ""), package)


def _file(root: Path, module: str) -> Path:
    path = root.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@cache
def _tree(file: Path) -> ast.Module:
    """The syntax tree of a file without docstrings and without what is for type checkers alone."""
    tree: ast.Module = _WithoutTypes().visit(ast.parse(file.read_text("utf-8"), str(file)))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            body[:] = [statement for statement in body if not _is_text(statement)]
    return tree


class _WithoutTypes(ast.NodeTransformer):
    """Drops annotations, except those of a class's fields, which dataclasses and configurations read."""

    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.annotation = None
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST | None:
        if any(ast.unparse(base).startswith("Protocol") for base in node.bases):
            return None
        fields = [statement for statement in node.body if isinstance(statement, ast.AnnAssign)]
        kept = {id(field): field.annotation for field in fields}
        self.generic_visit(node)
        for field in node.body:
            if isinstance(field, ast.AnnAssign) and id(field) in kept:
                field.annotation = kept[id(field)]
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        node.annotation = ast.Constant(None)
        return self.generic_visit(node)

    def visit_If(self, node: ast.If) -> ast.AST | None:
        return None if ast.unparse(node.test) == "TYPE_CHECKING" else self.generic_visit(node)


def _is_text(statement: ast.stmt) -> bool:
    """Whether a statement is a lone string: a docstring of a module, class, function or field."""
    match statement:
        case ast.Expr(ast.Constant(str())):
            return True
    return False


def _defined(statement: ast.stmt) -> set[str]:
    """Names that a top-level statement defines, except by imports."""
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        return {statement.name}
    targets = statement.targets if isinstance(statement, ast.Assign) else []
    targets = [statement.target] if isinstance(statement, ast.AnnAssign) else targets
    names = {target.id for target in targets if isinstance(target, ast.Name)}
    return names if len(names) == len(targets) else set()


def ast_text(node: object) -> str:
    """One text for equal syntax trees, without imports, positions and fields that are empty."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        return ""
    if isinstance(node, ast.AST):
        fields = ((name, getattr(node, name, None)) for name in node._fields if name not in _SKIPPED_FIELDS)
        inner = ",".join(f"{name}={ast_text(value)}" for name, value in fields if value is not None and value != [])
        return f"{type(node).__name__}({inner})"
    if isinstance(node, list):
        return f"[{','.join(filter(None, map(ast_text, node)))}]"
    return repr(node)
