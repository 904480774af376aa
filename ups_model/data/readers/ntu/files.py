"""Which files of NTU RGB+D a folder holds, and which of them a clip set is read from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ups_model.data.readers.io.files import files_sha256, no_target, status_of, walk_folders
from ups_model.data.readers.ntu.ctrgcn import FILES, NAMES_FILE
from ups_model.data.readers.ntu.names import PROTOCOLS, belongs, parse_name

_FORMS = f"*.skeleton, {', '.join(FILES)}, ntu60_3danno.pkl, ntu120_3danno.pkl"
_LINKED = "file or folder"


@dataclass(frozen=True)
class Selection:
    """What one clip set is read from."""

    layout: str
    """raw, arrays or pickle."""
    source: Path
    files: tuple[Path, ...]
    names: Path | None
    missing: tuple[Path, ...]
    notes: tuple[str, ...]


def list_files(source: Path) -> dict[str, list[Path]]:
    """The files in a folder and the folders in it, by kind, each sorted. `source` may also be one file. ValueError: no
    such file or folder, a folder in it that cannot be listed, a link to no folder, or none of NTU RGB+D's forms."""
    if not source.exists():
        raise ValueError(f"{source}: no such file or folder; give what holds {_FORMS}")
    files = _walk(source) if source.is_dir() else [source, *_companions(source)]
    kinds: dict[str, Callable[[Path], bool]] = {
        "skeletons": lambda file: file.suffix == ".skeleton",
        "arrays": lambda file: file.name in FILES,
        "pickles": lambda file: file.suffix == ".pkl" and file.name.startswith(tuple(PROTOCOLS)),
        "names": lambda file: file.name == NAMES_FILE,
        "missing": _is_missing_list,
    }
    by_kind = {kind: sorted(filter(is_one, files)) for kind, is_one in kinds.items()}
    if not (by_kind["skeletons"] or by_kind["arrays"] or by_kind["pickles"]):
        raise ValueError(f"{source}: holds no NTU RGB+D; there must be {_FORMS}")
    return by_kind


def sets_in(source: Path) -> tuple[str, ...]:
    """Which of "ntu60" and "ntu120" can be made of a folder or file, by file names alone; raises as `list_files`.
    NTU60's files alone make no NTU120."""
    files = list_files(source)
    sets = {FILES[file.name][0] for file in files["arrays"]}
    sets |= {name for file in files["pickles"] for name in PROTOCOLS if _is_pickle_of(file, name)}
    for file in files["skeletons"]:
        if len(sets) == len(PROTOCOLS):
            break
        try:
            sets.add("ntu60" if belongs(parse_name(file.stem), "ntu60") else "ntu120")
        except ValueError:
            continue
    return tuple(name for name in PROTOCOLS if name in sets)


def choose(name: str, source: Path, missing: Sequence[Path]) -> Selection:
    """What the set `name` is read from: raw files before arrays before a pickle. ValueError where nothing is there."""
    files = list_files(source)
    if name not in PROTOCOLS:
        raise ValueError(f"NTU RGB+D makes the sets {', '.join(PROTOCOLS)}, got {name!r}")
    layouts = {
        "raw": [file for file in files["skeletons"] if _may_belong(file, name)],
        "arrays": [
            file for key, spec in FILES.items() if spec[0] == name for file in files["arrays"] if file.name == key
        ],
        "pickle": sorted(
            (file for file in files["pickles"] if _is_pickle_of(file, name)), key=lambda file: "3d" not in file.name
        ),
    }
    layout = next((layout for layout, paths in layouts.items() if paths), None)
    if layout is None:
        raise ValueError(f"{source}: holds nothing of {name}; there must be {_FORMS}")
    # One file of arrays or pickles is the whole set.
    read = layouts.pop(layout)
    read, rest = (read, []) if layout == "raw" else (read[:1], read[1:])
    rest += [file for other in ("arrays", "pickle") for file in layouts.get(other, ())[:1]]
    notes = []
    if rest:
        what = "the raw .skeleton files" if layout == "raw" else read[0].name
        notes.append(f"{what} are read; {', '.join(file.name for file in rest)} could be too, and are not")
    names = _names_list(read[0], files["names"]) if layout == "arrays" else None
    lists = dict.fromkeys([*files["missing"], *map(Path, missing)])
    return Selection(layout, source, tuple(read), names, tuple(lists), tuple(notes))


def digest(selection: Selection) -> str:
    """sha256 of the listing of all files that are read: name, size and time of change of each, no content. ValueError
    for a link to nothing, OSError for a file that is not there."""
    files = [*selection.files, *([selection.names] if selection.names else []), *selection.missing]
    return files_sha256(sorted(_entry(file, selection.source) for file in files))


def _walk(source: Path) -> list[Path]:
    try:
        files = [folder / name for folder, _, names in walk_folders(source) for name in names]
    except OSError as error:
        raise ValueError(
            f"{error.filename}: every folder must be readable, got {error.strerror}; let it be read, or move it away"
        ) from error
    for file in files:
        # What may be a link to a folder of recordings; links to files are looked at where they are listed.
        if "." not in file.name and file.is_symlink() and not file.exists():
            raise no_target(file, _LINKED)
    return files


def _companions(file: Path) -> list[Path]:
    lists = filter(_is_missing_list, file.parent.glob("*.txt"))
    if file.suffix != ".npz":
        return [*lists]
    places = (file.parent / NAMES_FILE, file.parent / "statistics" / NAMES_FILE)
    return [*lists, *(place for place in places if place.is_file())]


def _is_missing_list(file: Path) -> bool:
    """Whether a file is called as the lists of missing skeletons that are passed around."""
    return file.suffix == ".txt" and any(word in file.name for word in ("missing_skeletons", "_missings"))


def _is_pickle_of(file: Path, name: str) -> bool:
    return file.name.startswith((f"{name}_", f"{name}."))


def _may_belong(file: Path, name: str) -> bool:
    try:
        return belongs(parse_name(file.stem), name)
    except ValueError:
        return True  # is left out with the reason


def _names_list(arrays: Path, lists: list[Path]) -> Path | None:
    near = [file for file in lists if file.is_relative_to(arrays.parent)] or lists
    if len(near) > 1:
        raise ValueError(f"{arrays}: one {NAMES_FILE} must tell its names, got {near[0]} and {near[1]}; keep one")
    return near[0] if near else None


def _entry(file: Path, source: Path) -> tuple[str, int, int]:
    if (status := status_of(file)) is None:
        raise no_target(file, _LINKED)
    relative = file.relative_to(source).as_posix() if file.is_relative_to(source) and file != source else file.name
    return relative, status.st_size, status.st_mtime_ns
