"""Rows from acting to learning, and weights back."""

import torch

from agents.learning.streams import HostStream
from agents.learning.uploads import Uploads
from agents.training.handover import Handover
from agents.training.weights import ActingWeights

CPU = torch.device("cpu")


def test_rows_come_out_as_they_went_in_however_far_acting_is_ahead():
    example = {"frame": torch.zeros(2, 3, dtype=torch.uint8), "reward": torch.zeros(2)}
    ring = Handover(example, slots=3)
    made, taken = [], []

    def put() -> None:
        row = {"frame": torch.randint(0, 256, (2, 3), dtype=torch.uint8), "reward": torch.randn(2)}
        ring.put({"frame": row["frame"]})  # acting fills a row in two parts
        ring.put({"reward": row["reward"]})
        ring.close()
        made.append(row)

    for ahead in (1, 3, 2, 1, 3):  # never more than the slots
        for _ in range(ahead):
            put()
        taken += [{k: v.clone() for k, v in ring.take().items()} for _ in range(ahead)]
    assert len(taken) == 10
    for a, b in zip(made, taken, strict=True):
        assert all(torch.equal(a[name], b[name]) for name in example)


def test_uploads_share_one_buffer_and_keep_types_and_shapes():
    fields = {
        "frame": ((3, 5, 7), torch.uint8),  # 105 bytes: what follows must be aligned again
        "reward": ((3,), torch.float32),
        "start": ((3,), torch.bool),
    }
    uploads = Uploads(fields, CPU)
    frame = torch.randint(0, 256, (3, 5, 7), dtype=torch.uint8)
    uploads.fill(frame=frame.numpy(), reward=[0.5, -1.0, 2.25], start=[True, False, True])
    uploads.copy()
    assert torch.equal(uploads.tensors["frame"], frame)
    assert uploads.tensors["reward"].tolist() == [0.5, -1.0, 2.25]
    assert uploads.tensors["start"].tolist() == [True, False, True]
    assert [x.dtype for x in uploads.tensors.values()] == [t for _, t in fields.values()]
    uploads.fill(reward=0.0)
    assert uploads.tensors["reward"].tolist() == [0.0, 0.0, 0.0]


def test_statistics_of_batch_norm_are_handed_over_with_the_weights(toys):
    online = toys.make_network(toys.LinearEncoder(batch_norm=True))
    weights = ActingWeights(online, 1, acting=HostStream(), learning=HostStream())
    learnt, used = (n.encoder.norm.running_mean for n in (online, weights.network))
    weights.before_updates()
    learnt.fill_(3.0)
    weights.after_updates()
    assert not used.any(), "acting lags behind"
    weights.before_updates()
    assert (used == 3.0).all()
    learnt.fill_(5.0)
    weights.refresh()
    assert (used == 5.0).all()
