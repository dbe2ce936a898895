"""Supervised options under the names of an earlier version: flags are told, saved runs load."""

import json

import pytest

from rl_nfm.supervised.cli import main
from rl_nfm.supervised.loop.options import CONFIG_FILE, read_config
from rl_nfm.supervised.tasks.adding import AddingConfig
from rl_nfm.supervised.tasks.arithmetic_function import ArithmeticConfig
from rl_nfm.supervised.tasks.copying import CopyingConfig
from rl_nfm.supervised.tasks.counting import CountingConfig
from rl_nfm.supervised.tasks.modular_config import ModularConfig
from rl_nfm.supervised.tasks.sequential_digits import SequentialDigitsConfig
from rl_nfm.support.former import renamed_options, with_current_names

FLAGS = [
    ("adding", "--clip-norm 0.5", "--clip-norm is now --max-grad-norm"),
    ("adding", "--clip_norm=0", "--clip_norm is now --max-grad-norm"),
    ("adding", "--eval-every 2", "--eval-every is now --eval-every-epochs"),
    ("adding", "--hidden 5", "--hidden is now --hidden-size"),
    ("copying", "--rims 3", "--rims is now --num-rims"),
    ("copying", "--active 3", "--active is now --num-active"),
    ("sequential_digits", "--embedding 3", "--embedding is now --embedding-size"),
    ("arithmetic", "--eval-every 3", "--eval-every is now --eval-every-updates"),
    ("arithmetic", "--clip-value 3", "--clip-value is now --max-grad-value"),
    ("modular", "--lr 0.1", "--lr is now --learning-rate"),
    ("modular", "--lr_module_input 1", "--lr_module_input is now --learning-rate-module-input"),
    ("modular", "--search_every 1", "--search_every is now --search-every-epochs"),
]


@pytest.mark.parametrize(("task", "flag", "message"), FLAGS)
def test_a_former_flag_answers_with_todays(task, flag, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        main([task, *flag.split()])


@pytest.mark.parametrize(
    ("cls", "saved", "now"),
    [
        (
            AddingConfig,
            {"clip_norm": 0.0, "precision": "bfloat16", "eval_every": 3, "rims": 2, "active": 1},
            {
                "max_grad_norm": None,
                "precision": "bf16",
                "eval_every_epochs": 3,
                "num_rims": 2,
                "num_active": 1,
            },
        ),
        (AddingConfig, {"clip_norm": 0.1}, {"max_grad_norm": 0.1}),
        (CopyingConfig, {"embedding": 7, "hidden": 6}, {"embedding_size": 7, "hidden_size": 6}),
        (SequentialDigitsConfig, {"embedding": 7}, {"embedding_size": 7}),
        (CountingConfig, {"hidden": 3}, {"hidden_size": 3}),
        (
            ArithmeticConfig,
            {"clip_value": 0.0, "eval_every": 5},
            {"max_grad_value": None, "eval_every_updates": 5},
        ),
        (ModularConfig, {"lr": 0.5, "eval_every": 5}, {"learning_rate": 0.5}),
    ],
)
def test_a_saved_run_of_an_earlier_version_is_read(tmp_path, cls, saved, now):
    content = {"task": "x", "config": {**saved, "seed": 4}}
    (tmp_path / CONFIG_FILE).write_text(json.dumps(content))
    config = read_config(tmp_path, cls, task="x")
    assert {name: getattr(config, name) for name in now} == now
    assert config.seed == 4


def test_no_former_name_is_an_option_of_today():
    """Else what was saved under it would be lost."""
    for cls in (AddingConfig, CopyingConfig, CountingConfig, ArithmeticConfig, ModularConfig):
        renamed = renamed_options(cls)
        assert renamed
        fields = set(cls.__dataclass_fields__)
        assert not renamed.keys() & fields
        assert set(renamed.values()) <= fields
    assert with_current_names(AddingConfig, {"epochs": 3}) == {"epochs": 3}
