"""Optuna's own plots of a search, for its report: history of the trials, importance of options."""

import contextlib
import warnings
from pathlib import Path
from typing import Any

STUDY_FILE = "study.db"


def draw_search(sweep: Path, out: Path, notes: list[str]) -> list[str]:
    """Draw the plots of a search that can be drawn; returns the names of the figures.

    Args:
        sweep: a sweep's folder; without a search nothing is drawn.
        out: folder of the report.
        notes: a line is added for each plot that cannot be drawn, and one for the best trial.
    """
    if not (sweep / STUDY_FILE).is_file():
        return []
    try:
        import optuna
    except ImportError:
        notes.append("search: no plots, because Optuna is missing (pip install 'rl-nfm[search]')")
        return []
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = f"sqlite:///{(sweep / STUDY_FILE).resolve()}"
    try:
        study = optuna.load_study(study_name="search", storage=storage)
    except Exception:  # of Optuna, SQLAlchemy or SQLite, whatever is wrong with the file
        notes.append(f"search: no plots, {sweep / STUDY_FILE} is damaged")
        return []
    plots: Any = optuna.visualization.matplotlib
    figures = {
        "search_history.png": plots.plot_optimization_history,
        "search_importances.png": plots.plot_param_importances,
    }
    done = study.get_trials(states=[optuna.trial.TrialState.COMPLETE])
    if len(done) < 2:
        notes.append(f"search: no plots yet, {len(done)} trials are complete")
        return []
    names = []
    for name, plot in figures.items():
        with contextlib.ExitStack() as stack:
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")  # that the plots are experimental
            try:
                figure = plot(study).figure
            except (RuntimeError, ValueError) as error:  # such as all values being equal
                notes.append(f"search: {name} is not drawn: {error}")
                continue
            figure.set_layout_engine("constrained")
            figure.savefig(out / name, dpi=120)
            figure.clear()
        names.append(name)
    best = study.best_trial
    options = ", ".join(f"{option} {value}" for option, value in best.params.items())
    notes.append(f"search: best of {len(done)} is trial-{best.number} ({best.value:g}): {options}")
    return names
