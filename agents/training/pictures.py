"""What the encoder attends to while a run trains, to TensorBoard.

Read from the newest rows of the replay, so that a run computes the same with and without.
"""

from agents.learning.actor import frozen_statistics
from agents.learning.network import QNetwork
from agents.playing import attention
from agents.playing.attention_pictures import draw_activity
from agents.replay.buffer import Replay
from agents.saving.tensorboard import ATTENTION
from rl_nfm.support.curves import Curves

RIM_STEPS, RIM_WARM_UP_STEPS = 120, 20
"""Rows of the replay that tell which RIMs are active, and how many more go before, to fill the
recurrent state that begins with zeros."""
RIM_ENVS = 4
"""Environments whose rows are read."""


def picture_encoder(network: QNetwork, replay: Replay, curves: Curves, steps: int) -> None:
    """What an NFM attends to and which RIMs are active in the newest rows, at `steps`."""
    shown = network.encoder.shows
    if not shown:
        return
    with frozen_statistics(network):
        if "attention" in shown:
            _picture_attention(network, replay, curves, steps)
        if "activity" in shown:
            _picture_activity(network, replay, curves, steps)


def _picture_attention(network: QNetwork, replay: Replay, curves: Curves, steps: int) -> None:
    obs, _, _ = replay.recent(1, replay.num_envs)
    weights, image = attention.summary(network, obs[0], replay.frame_channels)
    for name, values in weights.items():
        curves.draw(
            lambda board, tag=f"{ATTENTION}/{name}", values=values: board.add_histogram(
                tag, values, steps
            )
        )
    curves.draw(lambda board: board.add_image(f"{ATTENTION}/map", image, steps, dataformats="HWC"))


def _picture_activity(network: QNetwork, replay: Replay, curves: Curves, steps: int) -> None:
    recent = replay.recent(RIM_STEPS + RIM_WARM_UP_STEPS, min(RIM_ENVS, replay.num_envs))
    active = attention.activity(network, *recent)
    active = active[min(RIM_WARM_UP_STEPS, len(active) - 1) :]
    for number, share in enumerate(active.float().mean((0, 1)).tolist(), 1):
        curves.draw(
            lambda board, tag=f"{ATTENTION}/rim {number} active", share=share: board.add_scalar(
                tag, share, steps
            )
        )
    image = draw_activity(active[:, 0].cpu().numpy())
    curves.draw(lambda board: board.add_image(f"{ATTENTION}/rims", image, steps, dataformats="HWC"))
