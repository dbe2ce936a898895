"""Where the time of a step goes, kernel by kernel; captured graphs included."""

import json
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from torch.profiler import profile


def print_kernels(name: str, step: Callable[[], object], device: str, most: int = 30) -> None:
    """Time of each kernel of a step and its grid (on a CPU: operators), the longest ones first.

    Args:
        name: printed above.
        step: waits for the device.
        device: "cuda" or "cpu".
        most: how many are printed.
    """
    repeats = 3
    with profile() as recorded:
        for _ in range(repeats):
            step()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        recorded.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    wanted = {"kernel", "gpu_memcpy", "gpu_memset"} if device == "cuda" else {"cpu_op"}
    times: dict[str, list[float]] = defaultdict(list)
    for event in events:
        if event.get("cat") in wanted:
            grid = event.get("args", {}).get("grid", "")
            times[f"{event['name'][:90]} {grid}"].append(event["dur"] / 1e3)
    total, count = sum(map(sum, times.values())), sum(map(len, times.values()))
    print(f"{name}: {count / repeats:.0f} kernels, {total / repeats:.3f} ms", flush=True)
    for kernel, one in sorted(times.items(), key=lambda pair: -sum(pair[1]))[:most]:
        print(f"  {sum(one) / repeats:8.3f} ms {len(one) / repeats:5.0f} x {kernel}")
