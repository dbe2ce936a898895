"""A package as an installer leaves it: what an entry point needs to be found."""

from pathlib import Path


def installed(folder: Path, group: str, name: str, module: str) -> None:
    """Write the module `plugin_NAME` and metadata that name it in a group of entry points."""
    (folder / f"plugin_{name}.py").write_text(module)
    info = folder / f"plugin_{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: plugin-{name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{name} = plugin_{name}\n")
