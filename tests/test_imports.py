"""Which package may import which: ups_model <- search_spaces <- orchestrator <- baselines, examples; cluster alone.
Read from the sources."""

import ast
import importlib
import subprocess
import sys
from collections import Counter
from importlib.util import find_spec

import pytest

SCHEDULERS = ("ray", "mlflow", "optuna")

FORBIDDEN = {
    "ups_model": ("baselines", "search_spaces", "orchestrator", "examples", "benchmarks", "tests", *SCHEDULERS),
    "search_spaces": ("baselines", "orchestrator", "examples", "benchmarks", "tests", *SCHEDULERS),
    "orchestrator": ("baselines", "benchmarks", "tests", "cluster", "examples"),
    "baselines": ("cluster", "examples", "benchmarks", "tests", *SCHEDULERS),
    "examples": ("ups_model", "baselines", "benchmarks", "tests", "cluster", *SCHEDULERS),
    # Set up before the rest is there, on machines that may have nothing of it.
    "cluster": ("ups_model", "baselines", "search_spaces", "orchestrator", "benchmarks", "tests", "optuna"),
}

ROOMS = {
    "orchestrator": (
        ("process",), ("record", "project"), ("ups", "simple_project"), ("planning",), ("storage",),
        ("worker", "tracking"), ("scheduling",), ("execution",), ("cli",),
        ("report", "search"), ("ablate",),
    ),
}  # fmt: skip
"""Folders and files of a package, lowest first; those in one place don't import each other. Commands of a room
(`__main__`) may import from above: nothing imports them."""

RAY_IN_CLUSTER = {"spot_first.py", "check.py"}
"""Where Ray's own autoscaler and its readers of files are asked."""


def imported_names(source, package=""):
    """(line, absolute dotted name) of every import in a source text, at any depth; `package` resolves relative ones."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                parents = package.split(".")
                base = ".".join([*parents[: len(parents) - node.level + 1], *filter(None, [node.module])])
            else:
                base = node.module
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}"
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in (
            "import_module",
            "importlib.import_module",
            "__import__",
        ):
            argument = node.args[0] if node.args else None
            if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                yield node.lineno, argument.value


def wrong_arrows(source, package, file="<source>"):
    """Imports that the package of a source may not make, as "file:line imports name"."""
    forbidden = FORBIDDEN[package.split(".")[0]]
    return [
        f"{file}:{line} imports {name}"
        for line, name in imported_names(source, package)
        if name.split(".")[0] in forbidden
    ]


def sources(root, package):
    return sorted((root / package).rglob("*.py"))


@pytest.mark.parametrize("package", FORBIDDEN)
def test_no_import_goes_against_the_arrows(repo_root, package):
    files = sources(repo_root, package)
    if not files:
        pytest.skip(f"{package} has no source file yet")
    faults = []
    for file in files:
        inside = ".".join(file.relative_to(repo_root).parent.parts)
        faults += wrong_arrows(file.read_text(), inside, file.relative_to(repo_root))
    assert not faults, "\n".join(faults)


def module_name(file, root):
    return ".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def import_graph(root, packages):
    """By module of these packages: the modules of them that it imports anywhere."""
    files = {module_name(file, root): file for package in packages for file in sources(root, package)}
    graph = {}
    for module, file in files.items():
        package = module if file.name == "__init__.py" else module.rpartition(".")[0]
        names = {name for _, name in imported_names(file.read_text(), package)}
        graph[module] = {name if name in files else name.rpartition(".")[0] for name in names} & files.keys() - {module}
    return graph


def cycles(graph):
    """Groups of modules that import each other in a ring, found by taking away what imports nothing that is left."""
    left = {module: set(imported) for module, imported in graph.items()}
    while leaves := [module for module, imported in left.items() if not imported & left.keys()]:
        for module in leaves:
            del left[module]
    # What only imports a ring is no part of it.
    while roots := [module for module in left if not any(module in imported for imported in left.values())]:
        for module in roots:
            del left[module]
    return sorted(left)


def against_the_rooms(graph, package):
    """Imports from a room that lies above, or beside, as "module imports module"."""
    place = {name: index for index, names in enumerate(ROOMS[package]) for name in names}
    faults = []
    for module, imported in graph.items():
        room = module.split(".")[1:2]
        for other in imported:
            theirs = other.split(".")[1:2]
            if (
                module.endswith(".__main__")
                or not room
                or not theirs
                or room == theirs
                or other.split(".")[0] != package
            ):
                continue
            if place[theirs[0]] >= place[room[0]]:
                faults.append(f"{module} imports {other}")
    return faults


def test_no_file_imports_itself_by_way_of_others(repo_root):
    graph = import_graph(repo_root, FORBIDDEN)
    assert len(graph) > 100
    assert not cycles(graph)


def test_no_room_of_the_orchestrator_imports_from_one_above(repo_root):
    graph = import_graph(repo_root, ["orchestrator"])
    assert not (faults := against_the_rooms(graph, "orchestrator")), "\n".join(faults)
    rooms = {module.split(".")[1] for module in graph if "." in module}
    assert rooms == {name for names in ROOMS["orchestrator"] for name in names}


def test_the_checkers_of_rings_and_rooms_can_fail():
    ring = {"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}, "e": set()}
    assert cycles(ring) == ["a", "b", "c"]
    assert cycles({"a": {"b"}, "b": set()}) == []
    upward = {"orchestrator.planning.plan": {"orchestrator.storage.ledger"}}
    assert against_the_rooms(upward, "orchestrator") == [
        "orchestrator.planning.plan imports orchestrator.storage.ledger"
    ]


def test_of_the_baselines_their_projects_alone_know_the_orchestrator(repo_root):
    graph = import_graph(repo_root, ["baselines", "orchestrator", "search_spaces"])
    rooms = ("orchestrator", "search_spaces")
    knowing = {name for name, others in graph.items() if any(other.split(".")[0] in rooms for other in others)}
    projects = {"baselines.project", "baselines.multitask.project"}
    assert {name for name in knowing if name.startswith("baselines")} == projects


def test_ray_is_imported_only_where_its_own_schema_and_scheduler_are_asked(repo_root):
    importing = {
        file.name
        for file in sources(repo_root, "cluster")
        for _, name in imported_names(file.read_text())
        if name.split(".")[0] == "ray"
    }
    assert importing == RAY_IN_CLUSTER


def test_the_sources_that_are_read_include_those_of_the_model(repo_root):
    names = {file.name for file in sources(repo_root, "ups_model")}
    assert {"__init__.py", "config.py", "vocabulary.py", "metrics.py"} <= names


@pytest.mark.parametrize(
    ("package", "source", "fault"),
    [
        ("ups_model", "import ray", "<source>:1 imports ray"),
        ("ups_model", "x = 1\nimport ray.tune as tune", "<source>:2 imports ray.tune"),
        ("ups_model", "from mlflow import log_metric", "<source>:1 imports mlflow.log_metric"),
        ("ups_model", "def f():\n    if 1:\n        import optuna", "<source>:3 imports optuna"),
        (
            "ups_model.data",
            "from orchestrator.planning.plan import plan",
            "<source>:1 imports orchestrator.planning.plan.plan",
        ),
        (
            "ups_model",
            "import importlib\nimportlib.import_module('search_spaces.a')",
            "<source>:2 imports search_spaces.a",
        ),
        ("ups_model", "__import__('ray')", "<source>:1 imports ray"),
        ("ups_model", "import baselines.config", "<source>:1 imports baselines.config"),
        ("baselines", "from ray import tune", "<source>:1 imports ray.tune"),
        ("baselines", "import ray", "<source>:1 imports ray"),
        ("search_spaces", "from orchestrator import plan", "<source>:1 imports orchestrator.plan"),
        ("search_spaces", "import ray", "<source>:1 imports ray"),
        ("orchestrator", "import tests.conftest", "<source>:1 imports tests.conftest"),
        ("orchestrator", "from cluster import check", "<source>:1 imports cluster.check"),
        ("cluster", "import ups_model.config", "<source>:1 imports ups_model.config"),
        ("cluster", "from orchestrator.ledger import Ledger", "<source>:1 imports orchestrator.ledger.Ledger"),
    ],
)
def test_the_checker_finds_a_wrong_arrow(package, source, fault):
    assert wrong_arrows(source, package) == [fault]


@pytest.mark.parametrize(
    ("package", "source"),
    [
        ("ups_model", "import torch, numpy, transformers"),
        ("ups_model", "import rayleigh\nfrom .metrics import mpjpe_mm\nfrom ups_model.config import Config"),
        ("ups_model", "name = 'import ray'  # import ray"),
        ("ups_model.data", "from .. import config\nfrom ..skeletons import H36M17"),
        ("baselines", "from ups_model.config import Config"),
        ("search_spaces", "from ups_model.config import Config"),
        ("orchestrator", "import ray, mlflow, optuna\nfrom search_spaces import paper\nimport ups_model"),
    ],
)
def test_the_checker_admits_what_is_allowed(package, source):
    assert wrong_arrows(source, package) == []


@pytest.mark.parametrize("module", ["ups_model.config", "ups_model.tasks", "ups_model.model.vocabulary"])
def test_planning_needs_no_torch(repo_root, module):
    """Planning and --help must answer at once; torch takes seconds to import."""
    program = f"import sys, {module}; print(*sorted({{'torch', 'transformers', *{SCHEDULERS}}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], cwd=repo_root, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize("command", ["orchestrator.ablate", "orchestrator.search"])
@pytest.mark.parametrize("flag", ["--list", "--help"])
def test_what_starts_nothing_imports_neither_torch_nor_a_scheduler(repo_root, command, flag):
    program = (
        f"import atexit, runpy, sys; sys.argv = ['{command}', '{flag}']\n"
        f"atexit.register(lambda: print(*sorted({{'torch', 'transformers', *{SCHEDULERS}}} & set(sys.modules)), "
        "file=sys.stderr))\n"
        f"runpy.run_module('{command}', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=repo_root, capture_output=True, text=True, check=True)
    assert done.stdout and done.stderr.split() == []


@pytest.mark.slow
def test_the_check_for_torch_can_fail(repo_root):
    program = "import sys, ups_model.evaluation.metrics; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=repo_root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"


def test_every_name_that_a_benchmark_imports_is_there(repo_root):
    packages = ("ups_model", "search_spaces", "orchestrator", "baselines", "tests.support")
    for file in sorted((repo_root / "benchmarks").glob("*.py")):
        for line, name in imported_names(file.read_text("utf-8")):
            module, _, last = name.rpartition(".")
            if name.startswith(tuple(f"{package}." for package in packages)):
                holder = importlib.import_module(module)
                is_module = hasattr(holder, "__path__") and find_spec(name) is not None
                assert hasattr(holder, last) or is_module, f"{file.name}:{line}: there is no {name}"


def test_no_file_of_the_product_is_long_and_no_folder_crowded(repo_root):
    files = [
        file
        for package in ("ups_model", "search_spaces", "orchestrator", "cluster")
        for file in (repo_root / package).rglob("*.py")
    ]
    assert not [str(file) for file in files if len(file.read_text("utf-8").splitlines()) > 400]
    modules = Counter(file.parent for file in files if file.name != "__init__.py")
    assert not {str(folder): number for folder, number in modules.items() if number > 14}
