"""Code that `rl_nfm` and `agents` share: strict configuration, atomic folders, C++ builds."""
