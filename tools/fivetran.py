"""Runs the `fivetran` command, and gives it a folder with the connector."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Dict, Iterator, Optional

PROJECT = Path(__file__).resolve().parent.parent
# The folder of the commands that belong to this Python's packages.
COMMANDS = Path(sys.executable).parent


def copy_connector(folder: Path) -> None:
    """Copy connector.py into a folder, which is made if it does not exist."""
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(shutil.SameFileError):
        shutil.copyfile(PROJECT / "connector.py", folder / "connector.py")


@contextlib.contextmanager
def fivetran_process(
    *arguments: str, environment: Optional[Dict[str, str]] = None
) -> Iterator[subprocess.Popen]:
    """Yield a running `fivetran` command, which needs no internet, for the tests and the demo.

    The command has its own process group. Its output can be read from `stdout` as text.
    """
    with tempfile.TemporaryDirectory() as folder:
        # The SDK runs pipreqs to find missing dependencies, and pipreqs sends requests to a
        # website. This replacement does nothing, so that no time is lost without the internet.
        scan = Path(folder, "pipreqs")
        scan.write_text("#!/bin/sh\nexit 0\n")
        scan.chmod(0o755)
        search_path = os.pathsep.join([folder, str(COMMANDS), os.environ.get("PATH", "")])
        process = subprocess.Popen(
            [str(COMMANDS / "fivetran"), *arguments],
            env={**os.environ, "PATH": search_path, "DO_NOT_TRACK": "1", **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            start_new_session=True,
        )
        try:
            yield process
        finally:
            # Ends all processes of the group, even after Ctrl-C or a failed test.
            if hasattr(os, "killpg"):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            else:
                process.kill()
            process.stdout.close()
            process.wait()


def run_fivetran(
    *arguments: str, environment: Optional[Dict[str, str]] = None
) -> subprocess.CompletedProcess:
    """Run the `fivetran` command until it ends, and return its output and exit code."""
    with fivetran_process(*arguments, environment=environment) as process:
        output, _ = process.communicate()
    return subprocess.CompletedProcess(arguments, process.returncode, output)
