"""A machine whose temperature a test sets: the files of a Raspberry Pi's kernel and firmware.

    python -m tests.chaos.fake_board ROOT iot …

runs the real command with its sensors below ROOT; the processes, signals and limits are this
machine's own.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path

import iot.runner
from iot.policy import machine_policy
from rengo.cli.main import main

_ZONE = "sys/class/thermal/thermal_zone0"
_FIRMWARE = """\
#!/bin/sh
test "$1" = get_throttled && cat {bits}
"""


class Board:
    """What the sensors read below a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._write(f"{_ZONE}/type", "cpu-thermal\n")
        self.heat(40)
        bits = self._write("throttled", "throttled=0x0\n")
        program = self._write("usr/bin/vcgencmd", _FIRMWARE.format(bits=bits))
        program.chmod(0o755)

    def heat(self, celsius: float) -> None:
        """Have the processor at this temperature from now on."""
        self._write(f"{_ZONE}/temp", f"{celsius * 1000:.0f}\n")

    def throttle(self, bits: int) -> None:
        """Have the firmware say so from now on."""
        self._write("throttled", f"throttled={bits:#x}\n")

    def _write(self, name: str, text: str) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        # whole or as it was: a sensor never reads half a figure
        part = path.with_name(f"{path.name}.part")
        part.write_text(text)
        part.replace(path)
        return path


if __name__ == "__main__":
    iot.runner.machine_policy = functools.partial(machine_policy, root=Path(sys.argv[1]))  # type: ignore[attr-defined]
    sys.exit(main(sys.argv[2:]))
