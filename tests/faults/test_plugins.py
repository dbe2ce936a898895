"""Installed plug-ins that are broken: named, left out, and every command goes on."""

import json
import os
import pickle
import re
import subprocess
import sys
from dataclasses import fields

import pytest
import yaml

from agents.cli import main
from agents.config import Config, make_config, to_plain
from agents.presets import read_preset
from agents.sweeping.variants import MATCHES
from rl_nfm.encoders import encoder_names, register_encoder, registry
from rl_nfm.encoders.nature import NatureConfig, NatureEncoder
from rl_nfm.encoders.registry import RESERVED_NAMES

GOOD = """
from rl_nfm.encoders import register_encoder
from rl_nfm.encoders.nature import NatureConfig
from rl_nfm.encoders import encoder_entries
nature = next(entry for entry in encoder_entries() if entry.name == "nature")
@register_encoder({name!r}, {config})
def build(config, **more):
    "Mine."
    {build}
"""


def of_one_option(name, kind, default):
    """An encoder with one option of that type and default."""
    fields = f"[('a', {kind}, {default})]"
    config = f"__import__('dataclasses').make_dataclass('C', {fields}, frozen=True)"
    return GOOD.format(name=name, config=config, build="return None")


PLUGINS = {
    "good": GOOD.format(
        name="mine", config="NatureConfig", build="return nature.build(config, **more)"
    ),
    "kinds": (
        "from __future__ import annotations\nimport dataclasses, enum, pathlib\n"
        "class Act(enum.Enum):\n    RELU = 'relu'\n"
        "@dataclasses.dataclass(frozen=True)\nclass Inner:\n    a: int = 1\n"
        "@dataclasses.dataclass(frozen=True)\nclass C:\n"
        "    file: pathlib.Path = pathlib.Path('x')\n"
        "    act: Act = Act.RELU\n    inner: Inner = Inner()\n"
        "    other: Inner | None = None\n    kernel_size: int = 8\n"
    )
    + GOOD.format(
        name="the_kinds", config="C", build="return nature.build(nature.config(), **more)"
    ),
    "none": of_one_option("none_int", "int", "None"),
    "infinite": of_one_option("infinite", "float", "1e999"),
    "function": of_one_option("function", "object", "len"),
    "keyword": GOOD.format(name="lambda", config="NatureConfig", build="return None"),
    "property": GOOD.format(name="protocol", config="NatureConfig", build="return None"),
    "matched": GOOD.format(name="resnet_matched", config="NatureConfig", build="return None"),
    "syntax": "def (",
    "missing": "import nowhere_to_be_found",
    "exits": "import sys; sys.exit(3)",
    "raises": "raise RuntimeError('two\\nlines')",
    "taken": GOOD.format(name="nature", config="NatureConfig", build="return None"),
    "group": GOOD.format(name="head", config="NatureConfig", build="return None"),
    "needs": GOOD.format(
        name="needs",
        config="dataclasses.make_dataclass('C', ['a'], frozen=True)",
        build="return None",
    ),
    "odd": GOOD.format(
        name="odd",
        config="dataclasses.make_dataclass('C', [('a', 'Unknown', 1)], frozen=True)",
        build="return None",
    ),
    "halfway": GOOD.format(name="halfway", config="NatureConfig", build="return None") + "1 / 0\n",
}
LEFT_OUT = PLUGINS.keys() - {"good", "kinds"}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder on the path where a distribution with all these plug-ins is installed."""
    folder = tmp_path_factory.mktemp("site")
    info = folder / "broken_plugins-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-plugins\nVersion: 1.0\n")
    lines = [f"{name} = plugin_{name}" for name in PLUGINS]
    (info / "entry_points.txt").write_text("[rl_nfm.encoders]\n" + "\n".join(lines) + "\n")
    for name, code in PLUGINS.items():
        (folder / f"plugin_{name}.py").write_text(code)
    return folder


def run_python(*words, path, cwd=None):
    """What Python does with these words where packages are also found in these folders."""
    folders = [*path, os.getcwd(), os.environ.get("PYTHONPATH", "")]
    found = subprocess.run(
        [sys.executable, *words],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(folders)},
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    return found


def test_broken_plugins_are_named_and_the_others_go_on(site):
    names = "from rl_nfm.encoders import encoder_names; print(*encoder_names())"
    found = run_python("-c", names, path=[str(site)])
    assert found.stdout.split() == [*encoder_names(), "mine", "the_kinds"]
    lines = found.stderr.splitlines()
    assert len(lines) == len(LEFT_OUT), found.stderr
    for name in LEFT_OUT:
        assert sum(f"plug-in {name} (plugin_{name}) is left out" in line for line in lines) == 1


PROGRAM = """
from agents.cli import main
from agents.presets import read_preset
from agents.sweeping.variants import with_encoder
debug = ["train", "debug", "--game", "memory_cue", "--steps", "8"]
kinds = ["--encoder", "the_kinds", "--the-kinds.file", "y", "--the_kinds.act", "RELU"]
assert main([*debug, *kinds, "--out", "run"]) == 0
assert main(["evaluate", "run", "--episodes", "1"]) == 0
assert main(["train", "--resume", "run", "--steps", "16"]) == 0
assert main([*debug, "--the-kinds.kernel-size", "3"]) == 2
for group in ("inner", "other"):
    open("preset.yaml", "w").write(f"encoder: the_kinds\\nthe_kinds: {{{group}: {{typo: 1}}}}\\n")
    assert main(["train", "preset.yaml"]) == 2
sweep = ["sweep", "debug", "--games", "memory_cue", "--steps", "8", "--out", "sweep"]
assert main([*sweep, "--encoders", "nature", "--seeds", "0"]) == 0
assert main([*sweep, "--encoders", "nature", "--the-kinds.kernel-size", "3"]) == 2
assert with_encoder(read_preset("debug"), "resnet_matched").encoder == "resnet"
"""


def test_options_of_every_kind_can_be_saved_and_do_not_stay_in_the_sweeps_of_others(site, tmp_path):
    found = run_python("-c", PROGRAM, path=[str(site)], cwd=tmp_path)
    errors = [line for line in found.stderr.splitlines() if "is left out" not in line]
    expected = [
        "rl-nfm: --the-kinds.kernel-size: encoder 'the_kinds' is not chosen",
        "rl-nfm: preset.yaml: the_kinds.inner.typo: 'typo' is unknown (allowed: a)",
        "rl-nfm: preset.yaml: the_kinds.other.typo: 'typo' is unknown (allowed: a)",
        "rl-nfm: --the-kinds.kernel-size: encoder 'the_kinds' is not among --encoders",
    ]
    assert [line for line in errors if line.startswith("rl-nfm:")] == [
        next(line for line in errors if line.startswith(start)) for start in expected
    ]
    saved = yaml.safe_load((tmp_path / "run/config.yaml").read_text())["the_kinds"]
    assert (saved["file"], saved["act"]) == ("y", "relu")
    sweep = ["sweep", "debug", "--games", "memory_cue", "--steps", "8", "--out", "sweep"]
    words = ["-m", "agents.cli", *sweep, "--encoders", "nature", "--seeds", "0", "1"]
    run_python(*words, path=[], cwd=tmp_path)  # without the packages


def test_an_encoder_that_cannot_be_built_is_named_and_the_others_listed(monkeypatch, capsys):
    nature_only = {"nature": registry.encoder_entry("nature")}
    monkeypatch.setattr(registry, "_REGISTRY", nature_only)
    register_encoder("broken", NatureConfig)(lambda config, **_: config["no"])
    assert main(["encoders", "--json"]) == 0
    out, err = capsys.readouterr()
    assert [row["name"] for row in json.loads(out)] == ["nature"]
    assert re.fullmatch(r"rl-nfm: encoder broken \(.*\) cannot be built: TypeError: .*\n", err)


def test_a_run_of_a_plugin_that_is_gone_says_so(tmp_path, capsys):
    run = str(tmp_path / "run")
    register_encoder("mine", NatureConfig)(NatureEncoder)
    try:
        assert main(["train", "debug", "--encoder", "mine", "--steps", "4", "--out", run]) == 0
    finally:
        del registry._REGISTRY["mine"]
    for command in (["evaluate", run], ["train", "--resume", run]):
        capsys.readouterr()
        assert main(command) == 2
        message = capsys.readouterr().err
        assert message.count("\n") == 1, message
        assert "encoder: 'mine' is not registered" in message
        assert "needs that package installed or imported" in message


def test_every_group_of_options_is_a_reserved_name():
    assert {field.name for field in fields(Config)} <= RESERVED_NAMES
    assert {name for name in vars(Config) if not name.startswith("_")} <= RESERVED_NAMES
    assert set(MATCHES) <= RESERVED_NAMES
    assert not RESERVED_NAMES & set(encoder_names())


def test_a_config_can_be_pickled():
    """Its class is made at run time, with one group for each encoder."""
    config = make_config({**to_plain(read_preset("debug")), "encoder": "rim", "seed": 5})
    copy = pickle.loads(pickle.dumps(config))
    assert copy == config
    assert type(copy) is type(config)
