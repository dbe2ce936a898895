"""Presets: whole configs under a name, as YAML files whose headers name their sources."""

from pathlib import Path

from agents.config import CONFIG_FILE, Config, make_config
from rl_nfm.support.configuration import nearest
from rl_nfm.support.yaml_file import read_yaml

_HERE = Path(__file__).parent
PRESETS = _HERE / "presets" if (_HERE / "presets").is_dir() else _HERE.parent / "configs"
"""Where the presets lie: inside an installed package, or beside it in a checkout."""
EXPORTED = "preset.yaml"
"""In the folder of an exported agent: the config of its training."""


def preset_names() -> list[str]:
    """Names of the presets that come with the package."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def preset_path(preset: str) -> Path:
    """The file of a preset given by name or path; of an exported agent, that of its training.

    Raises:
        ValueError: neither a known name nor a file.
    """
    if (PRESETS / f"{preset}.yaml").is_file():
        return PRESETS / f"{preset}.yaml"
    if (exported := Path(preset) / EXPORTED).is_file():
        return exported
    if Path(preset).suffix in (".yaml", ".yml") or "/" in preset:
        return Path(preset)
    raise ValueError(nearest("preset", preset, preset_names()) + ", or the path of a YAML file")


def read_preset(preset: str) -> Config:
    """The config of a preset, by name or path.

    Raises:
        ValueError: see `preset_path`, `read_yaml` and `make_config`.
    """
    path = preset_path(preset)
    if (path / CONFIG_FILE).is_file():
        raise ValueError(
            f"preset: {preset} is a run: --resume {preset} goes on with it, "
            f"{path / 'config.yaml'} begins another with its settings"
        )
    return make_config(read_yaml(path), where=str(path))
