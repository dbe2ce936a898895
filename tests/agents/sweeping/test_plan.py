"""What a sweep asks for: the runs it comes to, and what it refuses."""

import dataclasses

import pytest
import yaml

from agents.config import config_class, make_config, write_config
from agents.presets import read_preset
from agents.reporting.sizes import build_encoder, describe
from agents.sweeping.plan import Plan, parse_seeds, parse_vary
from agents.sweeping.variants import with_encoder
from rl_nfm.backbones.matching import count_parameters
from rl_nfm.support.flags import parse_flags


@pytest.fixture(scope="module")
def debug():
    return read_preset("debug")


def plan(base, **changes):
    return Plan(
        **{"base": base, "games": ("qbert",), "encoders": ("nature",), "seeds": (3,), **changes}
    )


def test_runs_are_every_combination_and_the_first_seed_comes_first(debug, tmp_path):
    asked = plan(
        debug,
        games=("mission", "ALE/Pong-v5"),
        encoders=("nature", "rim"),
        seeds=(5, 2),
        vary={"learner.n_steps": ("1", "3")},
    )
    runs = asked.runs(tmp_path, threads=2)
    assert len({run.name for run in runs}) == 2 * 4 * 2 * 2
    assert [run.seed for run in runs] == [5] * 16 + [2] * 16
    assert [run.name for run in runs[:3]] == [
        "ms_pacman/nature,learner.n_steps=1/seed-5",
        "ms_pacman/nature,learner.n_steps=3/seed-5",
        "ms_pacman/rim,learner.n_steps=1/seed-5",
    ]
    assert {run.game for run in runs} == {"ms_pacman", "alien", "qbert", "pong"}
    words = list(runs[0].begin)
    assert words[words.index("--learner.n_steps") + 1] == "1"
    assert words[words.index("--env.num-threads") + 1] == "2"
    assert runs[0].folder == tmp_path / "ms_pacman/nature,learner.n_steps=1/seed-5"


def test_a_run_is_begun_with_its_own_game_encoder_seed_and_setting(debug, tmp_path):
    asked = plan(
        debug,
        games=("qbert", "alien"),
        encoders=("rim", "nature"),
        seeds=(5, 2),
        vary={"learner.n_steps": ("2",), "steps": ("400", "500")},
    )
    for run in asked.runs(tmp_path, threads=1):
        config = parse_flags(config_class(), run.begin[2:-2], default=debug, prog="train")
        method = f"{config.encoder},learner.n_steps=2,steps={config.steps}"
        assert f"{config.game}/{method}/seed-{config.seed}" == run.name
        assert (config.learner.n_steps, config.steps) == (2, run.steps)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": (1, 2, 1)}, "seeds: 1 is given twice"),
        ({"games": ("qbert", "qbert")}, "games: qbert is given twice"),
        ({"games": ()}, "games: at least one is needed"),
        ({"games": ("quebert",)}, "game: 'quebert' is unknown; did you mean 'qbert'"),
        ({"encoders": ("nfn",)}, "encoders: 'nfn' is unknown; did you mean 'nfm'"),
        ({"vary": {"learner.n_stepss": ("1",)}}, "n_stepss.*did you mean 'n_steps'"),
        ({"vary": {"learner.n_steps": ("0",)}}, "learner.n_steps: 0 is not allowed"),
        ({"vary": {"learner.n_steps": ("{",)}}, r"vary: learner.n_steps: '\{' is no value"),
        ({"vary": {"game": ("qbert",)}}, "vary: game is not allowed, use --games"),
        ({"vary": {"steps.more": ("1",)}}, "steps is no group"),
    ],
)
def test_wrong_requests_are_refused(debug, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        plan(debug, **changes).runs(tmp_path, threads=1)


def test_seeds_and_varied_options_as_typed():
    assert parse_seeds(("0..2", "7")) == (0, 1, 2, 7)
    assert parse_vary(("a.b-c=1e-4,2", "d=x")) == {"a.b_c": ("1e-4", "2"), "d": ("x",)}
    for word in ("4..2", "-1", "a", "1..", "0..99999999999"):
        with pytest.raises(ValueError, match="seeds: "):
            parse_seeds((word,))
    assert parse_vary(("a=[1, 3],[1,5],7",)) == {"a": ("[1,3]", "[1,5]", "7")}
    for word in ("a", "a=", "=1", "a=x/y", "a=1,,2", "a=[1,2", "a=1,2]", "a=[]", "a=[[1]]"):
        with pytest.raises(ValueError, match="vary: "):
            parse_vary((word,))
    assert parse_vary(("a=1, x",)) == {"a": ("1", "x")}
    for words in (("a=1", "a=2"), ("a=1, 1",), ("a=1e-4,0.0001",), ("a=x,x ",), ("a=[1],[ 1]",)):
        with pytest.raises(ValueError, match="given twice"):
            parse_vary(words)


@pytest.mark.parametrize(
    ("option", "text", "value"),
    [
        ("brims.num_rims", "[3,2]", (3, 2)),
        ("learner.auxiliary", "{future_frame: 0.5}", {"future_frame": 0.5}),
        ("learner.auxiliary", "{}", {}),
        ("learner.target_tau", "null", None),
    ],
)
def test_flags_of_a_run_say_lists_and_mappings_too(debug, tmp_path, option, text, value):
    changed = {"learner": {"auxiliary": {"future_frame": 1.0}, "target_tau": 0.1}}
    base = make_config({**dataclasses.asdict(debug), **changed})
    asked = plan(base, encoders=("brims",), vary={option: (text,)})
    (run,) = asked.runs(tmp_path, threads=1)
    config = parse_flags(config_class(), run.begin[2:-2], default=base, prog="train")
    *group, name = option.split(".")
    assert getattr(getattr(config, group[0]), name) == value


def test_a_sweep_grows_but_its_preset_stays(debug, tmp_path):
    plan(debug).save(tmp_path)
    plan(debug, games=("alien",), seeds=(3, 4), vary={"learner.n_steps": ("1",)}).save(tmp_path)
    plan(debug, vary={"learner.n_steps": ("3", "1")}).save(tmp_path)
    asked = yaml.safe_load((tmp_path / "sweep.yaml").read_text())
    assert asked == {
        "games": ["qbert", "alien"],
        "encoders": ["nature"],
        "seeds": [3, 4],
        "vary": {"learner.n_steps": ["1", "3"]},
    }
    assert read_preset(str(tmp_path / "preset.yaml")) == debug, "with the options of all encoders"
    other = dataclasses.replace(debug, learner=dataclasses.replace(debug.learner, discount=0.5))
    before = (tmp_path / "preset.yaml").read_bytes()
    with pytest.raises(ValueError, match=r"^learner\.discount: cannot change within a sweep"):
        plan(other).save(tmp_path)
    assert (tmp_path / "preset.yaml").read_bytes() == before


def test_options_that_no_run_reads_may_change(debug, tmp_path):
    """As when a later version of the package brings another encoder."""
    plan(debug).save(tmp_path)
    other = dataclasses.replace(debug, impala=dataclasses.replace(debug.impala, width=5))  # pyright: ignore
    plan(other).save(tmp_path)
    wider = dataclasses.replace(debug, nfm=dataclasses.replace(debug.nfm, width=6))  # pyright: ignore
    plan(wider, encoders=("resnet_matched",)).save(tmp_path)
    with pytest.raises(ValueError, match=r"^resnet\.width: cannot change"):
        plan(debug).save(tmp_path)  # the matched baseline has been asked for


def test_a_folder_of_other_things_is_no_sweep(debug, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match=r"not empty and holds no sweep \(thesis.tex\)"):
        plan(debug).save(tmp_path)


def test_matched_baselines_are_as_large_as_their_reference(debug):
    nfm = describe(with_encoder(debug, "nfm"))
    rim = describe(with_encoder(debug, "rim"))
    narrow = describe(with_encoder(debug, "resnet"))
    matched = describe(with_encoder(debug, "resnet_matched"))
    macs = describe(with_encoder(debug, "resnet_macs"))
    lstm = describe(with_encoder(debug, "lstm_matched"))
    assert narrow["parameters"] < 0.7 * nfm["parameters"]
    assert matched["parameters"] == pytest.approx(nfm["parameters"], rel=0.1)
    assert macs["macs"] == pytest.approx(nfm["macs"], rel=0.1)
    assert lstm["parameters"] == pytest.approx(rim["parameters"], rel=0.1)


def test_a_baseline_follows_the_options_of_its_reference(debug):
    base = dataclasses.replace(debug, nfm=dataclasses.replace(debug.nfm, depth=18, width=6))
    wider = with_encoder(base, "resnet_matched")
    assert wider.resnet.depth == 18
    nfm = build_encoder(with_encoder(base, "nfm"))
    assert count_parameters(build_encoder(wider)) == pytest.approx(count_parameters(nfm), rel=0.1)


def test_a_run_of_another_version_is_not_gone_on_with(debug, tmp_path):
    """As when the rule that makes a run's config from the preset has changed in between."""
    asked = plan(debug, seeds=(3, 4))
    asked.save(tmp_path)
    run = asked.runs(tmp_path, threads=1)[0]
    run.folder.mkdir(parents=True)
    begun = dataclasses.replace(debug, game=run.game, seed=run.seed)
    write_config(begun, run.folder / "config.yaml")
    asked.save(tmp_path)
    other = dataclasses.replace(debug.replay, batch_size=debug.replay.batch_size + 1)
    write_config(dataclasses.replace(begun, replay=other), run.folder / "config.yaml")
    with pytest.raises(ValueError, match=r"^replay.batch_size: .*seed-3 was begun with another"):
        asked.save(tmp_path)


def test_sequences_are_for_encoders_with_a_state():
    compare = read_preset("compare")
    assert with_encoder(compare, "rim").replay == compare.replay
    single = with_encoder(compare, "nfm").replay
    assert (single.sequence_steps, single.overlap_steps, single.burn_in_steps) == (1, 0, 0)
    assert single.batch_size == 32  # 8 sequences of 8 steps, half of each shared with the next one
    quickstart = read_preset("quickstart")
    assert with_encoder(quickstart, "nfm").replay == quickstart.replay


def test_an_encoders_option_varies_for_those_that_read_it(debug, tmp_path):
    asked = plan(debug, encoders=("nature", "lstm"), vary={"lstm.hidden_size": ("8", "12")})
    found = asked.configs()
    assert list(found) == ["nature", "lstm,lstm.hidden_size=8", "lstm,lstm.hidden_size=12"]
    assert [config.lstm.hidden_size for config in found.values()] == [12, 8, 12]
    runs = {run.method: run for run in asked.runs(tmp_path, threads=1)}
    assert not [word for word in runs["nature"].begin if word.startswith("--lstm")]
    with pytest.raises(
        ValueError, match=r"vary: lstm\.hidden_size: no encoder of this sweep has it"
    ):
        plan(debug, vary={"lstm.hidden_size": ("8", "12")}).configs()


def test_a_matched_baseline_varies_with_its_reference_alone(debug, tmp_path):
    asked = plan(debug, encoders=("resnet_matched",), vary={"nfm.width": ("4", "8")})
    narrow, wide = asked.configs().values()
    assert narrow.resnet.width < wide.resnet.width
    for run in asked.runs(tmp_path, threads=1):
        assert not [word for word in run.begin if word.startswith("--nfm")], "the run refuses it"


def test_sizes_are_those_of_the_first_game(debug):
    """Memory's observations have one frame of 24x24, Atari's four of 84x84."""
    asked = plan(debug, games=("memory_cue",), encoders=("resnet_macs", "nfm"))
    found = asked.configs()
    assert {config.game for config in found.values()} == {"memory_cue"}
    macs = {name: describe(config)["macs"] for name, config in found.items()}
    assert macs["resnet_macs"] == pytest.approx(macs["nfm"], rel=0.12)
