"""Boolean flags without a value: `--use_gumbel` as well as `--use_gumbel True`."""

from collections.abc import Sequence

from rl_nfm.support.hints import hints_of


def spell_out(argv: Sequence[str], config: type) -> list[str]:
    """`argv` with True after each boolean flag of `config` that has no value.

    Args:
        argv: the flags, with - or _ between words.
        config: the dataclass whose fields are the options.
    """
    booleans = {name for name, hint in hints_of(config).items() if hint is bool}
    spelled = []
    for index, word in enumerate(argv):
        spelled.append(word)
        follower = argv[index + 1] if index + 1 < len(argv) else "--"
        is_flag = word.startswith("--") and word[2:].replace("-", "_") in booleans
        if is_flag and follower.startswith("--"):
            spelled.append("True")
    return spelled
