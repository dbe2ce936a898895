"""Hierarchically modular networks on Boolean tasks, to see whether they generalise from few rows.

From "How Can Knowledge of a Task's Modular Structure Improve Generalization and Training
Efficiency?" (TMLR 2025); the flags are those of its code. A network is trained on some rows of a
truth table and tested on the others. In the task 6 3 2 2 each output is 1 in a quarter of all rows,
so always answering 0 is right in 75 % of them.

Differs from the published code: boolean flags need no value; `dataset_split` takes several shares;
`trials` seeds are trained as one batch; a run writes JSON, a table and a plot, never pickles;
rows not trained on are split evenly between validation and test. With `routing_candidates` above 1
the routing is searched (`rl_nfm.modular.search`), where gradients alone mostly find none.
"""

from collections.abc import Sequence

from rl_nfm.supervised.data.modular_data import write_tables
from rl_nfm.supervised.loop.options import (
    parse_config,
    plain,
    run_folder,
    write_config,
)
from rl_nfm.supervised.loop.reporting import versions, write_result
from rl_nfm.supervised.registry import TaskEntry, register_task
from rl_nfm.supervised.tasks.modular_config import PRESETS, ModularConfig
from rl_nfm.supervised.tasks.modular_models import MODELS
from rl_nfm.supervised.tasks.modular_report import write_report
from rl_nfm.supervised.tasks.modular_run import Run, means
from rl_nfm.support.bare_flags import spell_out

NAME = "modular"


def parse(argv: Sequence[str]) -> ModularConfig:
    """See `TaskEntry.parse`."""
    return parse_config(
        spell_out(argv, ModularConfig),
        task=NAME,
        presets=PRESETS,
        description=__doc__ or "",
        models=MODELS,
    )


def main(argv: Sequence[str]) -> int:
    """Train all seeds on all training-set sizes and write the result, a table and a plot."""
    config = parse(argv)
    runs = {share: Run(config, share) for share in config.dataset_split}
    folder = run_folder(config, task=NAME, base=config.result_path)
    write_config(folder, config, task=NAME)
    if config.dataset_path is not None:
        write_tables(config.dataset_path, config.modularity, next(iter(runs.values())).tasks)
    splits = []
    for share, run in runs.items():
        run.train(folder / f"split{share:g}")
        figures = run.figures()
        splits.append(
            {
                "dataset_split": share,
                "train_rows": len(run.split.train),
                "test_rows": len(run.split.test),
                "baseline": run.baseline(),
                "train_seconds": round(run.seconds, 1),
                "mean": means(figures),
                "trials": figures,
            }
        )
    parameters = sum(p[0].numel() for p in next(iter(runs.values())).batch.parameters.values())
    result = {
        "task": NAME,
        "config": plain(config),
        "versions": versions(),
        "device": next(iter(runs.values())).device.type,
        "parameters": parameters,
        "splits": splits,
    }
    write_result(result, folder / "result.json", *([config.json] if config.json else []))
    print(f"{NAME} {config.model}, {parameters} parameters: {folder / 'result.json'}")
    print(write_report(folder, [result]))
    return 0


register_task(
    TaskEntry(
        name=NAME,
        summary="hierarchically modular networks on Boolean tasks, from few rows",
        main=main,
        parse=parse,
        presets=PRESETS,
        models=MODELS,
        write_table=write_report,
    )
)
