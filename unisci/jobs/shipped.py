"""The weights that come with the package, and where weights of a name lie."""

from importlib.resources import files
from pathlib import Path


def shipped() -> dict[str, Path]:
    """The weights that come with the package, by name."""
    folder = Path(str(files("unisci") / "weights"))
    return {p.stem: p for p in sorted(folder.glob("*.safetensors"))}


def find_weights(name: str) -> Path:
    """The file of shipped weights or of a path. Raises ValueError where there is none, naming what there is."""
    known = shipped()
    if name in known:
        return known[name]
    path = Path(name)
    if path.suffix == ".safetensors" and path.is_file():
        return path
    raise ValueError(f"no weights {name!r}: give a .safetensors file or one of {sorted(known)}")
