"""What a trace of JAX's profiler says a device was busy with."""

from collections import Counter
from pathlib import Path
from typing import Any

from jax.profiler import ProfileData

SHOWN = 20
# A GPU's lines are its streams; on CPU the threads of XLA.
DEVICE, HOST = "/device:", "/host:CPU"


def busiest(folder: Path, steps: int) -> list[dict[str, Any]]:
    """The operations that took longest in all, and how often they ran in a step.

    Args:
      folder: of a trace.
      steps: of training in it.
    """
    seconds, calls = Counter(), Counter()
    for path in folder.rglob("*.xplane.pb"):
        planes = list(ProfileData.from_file(str(path)).planes)
        wanted = [plane for plane in planes if plane.name.startswith(DEVICE)]
        for plane in wanted or [plane for plane in planes if plane.name == HOST]:
            for line in plane.lines:
                if wanted and not line.name.startswith("Stream"):
                    continue  # the same once more, by module and by step
                for event in line.events:
                    if event.name.startswith("$"):  # a function of Python's
                        continue
                    seconds[event.name] += event.duration_ns / 1e9
                    calls[event.name] += 1
    return [
        {
            "name": name,
            "milliseconds_a_step": 1000 * total / steps,
            "calls_a_step": calls[name] / steps,
        }
        for name, total in seconds.most_common(SHOWN)
    ]
