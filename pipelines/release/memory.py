"""How much memory a process needs to load and run an engine: the peak of a child process that does so.

Of engines for ONNX Runtime, whose backend (serving/engine/ort_backend.py) runs here as on the robot. It is the peak of
the whole process with its interpreter and libraries, as the engine worker is one; the robot's daemon is another.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from serving.contracts.targets import HERE, kind_of
from serving.errors import RejectedError

TIMEOUT_S = 60.0
_PROGRAM = """
import sys
from serving import preprocess
from serving.engine.ort_backend import Backend
backend = Backend(sys.argv[1], 1, preprocess)
for _ in range(3):
    backend.run()
print([line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM:")][0])
"""


def peak_memory_mb(engine: bytes, target: str) -> float | None:
    """Peak resident memory of a process that runs the engine, in MB; None where it cannot be run here.

    Raises:
        RejectedError: the process fails, or takes longer than a minute.
        OSError: the disk is full.
    """
    if kind_of(target).built != HERE or sys.platform != "linux":
        return None
    with tempfile.TemporaryDirectory(prefix="jetloop-memory-") as folder:
        file = Path(folder) / "engine.onnx"
        file.write_bytes(engine)
        try:
            done = subprocess.run(
                [sys.executable, "-c", _PROGRAM, str(file)],
                capture_output=True,
                text=True,
                check=False,
                timeout=TIMEOUT_S,
            )
        except subprocess.TimeoutExpired:
            raise RejectedError(f"the engine for {target} did not run within {TIMEOUT_S:.0f} s") from None
    if done.returncode:
        line = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1][:200]
        raise RejectedError(f"a process that runs the engine for {target} fails ({line})")
    return int(done.stdout) * 1024 / 1e6
