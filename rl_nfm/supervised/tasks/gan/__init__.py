"""InfoMax-GAN with NFM in the generator (NFM paper, section 4.1, table 4 and appendix F)."""

from rl_nfm.supervised.tasks.gan import task

__all__ = ["task"]
