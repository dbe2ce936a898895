"""One file per command of `rl-nfm`: flags in, calls, messages out."""
