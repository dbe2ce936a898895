"""Curves of supervised trials, read back with TensorBoard's own reader."""

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rl_nfm.supervised.loop.reporting import MetricsLog, read_metrics
from rl_nfm.support.event_writer import CurveWriter


def curve(folder):
    board = EventAccumulator(str(folder)).Reload()
    return [(event.step, event.value) for event in board.Scalars("loss")]


def write(folder, last_epoch, values):
    log = MetricsLog(folder, last_epoch=last_epoch)
    for epoch, value in enumerate(values, last_epoch + 1):
        log.write(epoch, {"loss": value})
    return log


def test_a_resumed_trial_shows_each_epoch_once(tmp_path):
    """Epochs 2 and 3 came after the checkpoint of epoch 1 and are made again."""
    write(tmp_path, 0, [8.0, 4.0, 2.0]).close()
    write(tmp_path, 1, [5.0, 3.0]).close()
    assert curve(tmp_path) == [(1, 8.0), (2, 5.0), (3, 3.0)]
    write(tmp_path, 2, []).close()
    log = write(tmp_path, 2, [1.0])
    assert curve(tmp_path) == [(1, 8.0), (2, 5.0), (3, 1.0)], "without being closed, too"
    log.close()


def test_curves_that_cannot_be_written_cost_no_metrics(tmp_path, caplog, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    log = write(tmp_path, 0, [4.0])
    monkeypatch.setattr("rl_nfm.support.event_writer._EventFile.add_event", full)
    for epoch in (2, 3):
        log.write(epoch, {"loss": 1.0})
    log.close()
    assert [row["epoch"] for row in read_metrics(tmp_path)] == [1, 2, 3]
    assert len([record for record in caplog.records if "cannot be written" in record.message]) == 1


def test_a_clock_that_was_set_back_hides_no_curve(tmp_path, monkeypatch):
    names = []
    for now in (1000.0, 500.0):
        monkeypatch.setattr("time.time", lambda now=now: now)
        writer = CurveWriter(str(tmp_path))
        writer.add_scalar("a", 1.0, 1)
        writer.close()
        names.append({path.name for path in tmp_path.iterdir()})
    (first,) = names[0]
    (second,) = names[1] - names[0]
    assert first < second
