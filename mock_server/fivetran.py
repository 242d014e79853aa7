"""Runs the `fivetran` command as tests and the demo need it: with nothing asked of the internet."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Dict, Optional


def run_fivetran(*arguments: str, environment: Optional[Dict[str, str]] = None):
    """Run the `fivetran` command of this Python's environment to its end.

    Returns the CompletedProcess, with what it printed as text in `stdout`.
    """
    commands = Path(sys.executable).parent
    with tempfile.TemporaryDirectory() as folder:
        # The SDK looks for missing dependencies with this command, which asks a website. That is
        # not what is tried here, and must not make it wait where there is no internet.
        scan = Path(folder, "pipreqs")
        scan.write_text("#!/bin/sh\nexit 0\n")
        scan.chmod(0o755)
        search_path = os.pathsep.join([folder, str(commands), os.environ.get("PATH", "")])
        return subprocess.run(
            [str(commands / "fivetran"), *arguments],
            env={**os.environ, "PATH": search_path, "DO_NOT_TRACK": "1", **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            check=False,
        )
