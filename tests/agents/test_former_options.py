"""An agent's options under the names of an earlier version: users are told, saved runs go on."""

import json

import pytest
import yaml

from agents import cli
from agents.config import make_config, to_plain
from agents.presets import read_preset
from agents.saving import checkpoint
from agents.saving.run_folder import RunFolder
from agents.training.train import train
from rl_nfm.support import storage


def test_a_former_option_of_an_agent_answers_with_todays(tmp_path, capsys):
    assert cli.main(["train", "debug", "--head.hidden", "8"]) == 2
    assert "--head.hidden is now --head.hidden-size\n" in capsys.readouterr().err
    preset = tmp_path / "mine.yaml"
    preset.write_text("head: {hidden: 8}\n")
    with pytest.raises(ValueError, match=r"mine\.yaml: head\.hidden is now head\.hidden_size$"):
        read_preset(str(preset))


def test_a_former_agents_run_goes_on_and_can_be_evaluated(tmp_path):
    """config.yaml and the checkpoint's meta data as the version before wrote them."""
    values = to_plain(read_preset("debug"))
    values |= {"steps": 100, "head": {**values["head"], "hidden_size": 8}}
    values["run"]["eval_episodes"] = 0
    run = train(make_config(values), out=tmp_path / "run")
    values["head"]["hidden"] = values["head"].pop("hidden_size")
    (run / "config.yaml").write_text(yaml.safe_dump(values))
    assert RunFolder.open(run).config().head.hidden_size == 8
    last = checkpoint.find(run)
    meta = last / "meta.json"
    content = json.loads(meta.read_text())
    content["config"]["head"]["hidden"] = content["config"]["head"].pop("hidden_size")
    del content["sha256"]
    meta.write_text(json.dumps({**content, "sha256": storage._meta_sha256(content)}))
    assert checkpoint.open_checkpoint(last).config.head.hidden_size == 8
    assert cli.main(["train", "--resume", str(run), "--steps", "120"]) == 0
