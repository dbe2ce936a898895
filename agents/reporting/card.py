"""The model card of an exported agent: README.md with the metadata that model hubs read."""

from collections.abc import Mapping
from typing import Any

import yaml

from envs import random_and_human_score

USE = """```
rl-nfm evaluate {name} --episodes 10 --video play.mp4
rl-nfm train {name} --init {name}      # goes on from these weights, as a new run
```

```python
import agents

agent = agents.load("{name}")
action, state = agent.predict(observation)  # uint8 {shape}
```"""


def model_card(name: str, scores: Mapping[str, Any], agent: Mapping[str, Any]) -> str:
    """The text of README.md.

    Args:
        name: of the agent, and of its folder.
        scores: the content of `scores.json`, as written by `rl-nfm evaluate --json`.
        agent: `obs_shape`, `updates`, `parameters` and `config` (as plain values).
    """
    config, env_id = agent["config"], scores["protocol"]["env_id"]
    head = yaml.safe_dump(_metadata(name, scores, config), sort_keys=False, allow_unicode=True)
    mean = f"{scores['mean']:.2f}{_interval(scores)}"
    rows = {
        "game": f"{scores['game']} (`{env_id}`)",
        "encoder": f"{config['encoder']}, {agent['parameters']:,} parameters with the value head",
        "trained for": f"{scores['checkpoint_steps']:,} agent steps, {agent['updates']:,} updates, "
        f"seed {config['seed']}",
        "checkpoint": f"the {scores['which']} one of its run",
        "mean return": f"{mean} over {scores['episodes']} episodes",
        "median return": f"{scores['median']:.2f}",
        **_references(scores),
    }
    if scores["repeated"] is not None:
        count, _ = scores["repeated"]  # more than half of the episodes, so it is the median
        rows["median return"] += f"; {count} of {scores['episodes']} episodes returned exactly this"
    protocol = "\n".join(f"- {key}: {value}" for key, value in scores["protocol"].items())
    table = "\n".join(f"| {key} | {value} |" for key, value in rows.items())
    return "\n\n".join(
        [
            f"---\n{head}---",
            f"# {name}",
            "An agent trained with rl-nfm (Rainbow-IQN with an encoder chosen by name). The scores "
            "are of one training run: another seed may differ by far more than the interval, which "
            "is over episodes only.",
            f"| | |\n|---|---|\n{table}",
            "Every score belongs to the protocol that it was played under, with the seed of its "
            f"games:\n\n{protocol}",
            "## Use",
            USE.format(name=name, shape=tuple(agent["obs_shape"])),
            "## Files",
            "`network.safetensors` (weights) and `meta.json` (config, sizes, digests) are the "
            "agent; `preset.yaml` repeats the config for reading and training, `scores.json` has "
            "every episode, `curve.csv` the training curve where the run had one.\n",
        ]
    )


def _metadata(name: str, scores: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata of Hugging Face's hub, https://huggingface.co/docs/hub/model-cards."""
    spread = scores["standard_deviation"]
    value = f"{scores['mean']:.2f}" + ("" if spread is None else f" +/- {spread:.2f}")
    env_id = scores["protocol"]["env_id"]
    task = {"type": "reinforcement-learning", "name": "reinforcement-learning"}
    metric = {"type": "mean_reward", "value": value, "name": "mean_reward", "verified": False}
    return {
        "library_name": "rl-nfm",
        "license": "mit",
        "tags": ["reinforcement-learning", "iqn", scores["game"], config["encoder"]],
        "model-index": [
            {
                "name": name,
                "results": [
                    {
                        "task": task,
                        "dataset": {"name": scores["game"], "type": env_id},
                        "metrics": [metric],
                    }
                ],
            }
        ],
    }


def _interval(scores: Mapping[str, Any]) -> str:
    if scores["mean_interval"] is None:
        return ""
    return " (95 % interval {:.2f} to {:.2f})".format(*scores["mean_interval"])


def _references(scores: Mapping[str, Any]) -> dict[str, str]:
    published = random_and_human_score(scores["game"])
    if published is None:
        return {}
    random, human = published
    return {
        "random play and a human (published)": f"{random:,.1f} and {human:,.1f}",
        "human-normalised score": f"{scores['hns']:.4f}",
    }
