"""Runs the `fivetran` command as tests and the demo need it: with nothing asked of the internet."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Dict, Iterator, Optional


@contextlib.contextmanager
def fivetran_process(
    *arguments: str, environment: Optional[Dict[str, str]] = None
) -> Iterator[subprocess.Popen]:
    """Yield a running `fivetran` command of this Python's environment, in a process group of its
    own; what it prints comes as text from `stdout`."""
    commands = Path(sys.executable).parent
    with tempfile.TemporaryDirectory() as folder:
        # The SDK looks for missing dependencies with this command, which asks a website. That is
        # not what is tried here, and must not make it wait where there is no internet.
        scan = Path(folder, "pipreqs")
        scan.write_text("#!/bin/sh\nexit 0\n")
        scan.chmod(0o755)
        search_path = os.pathsep.join([folder, str(commands), os.environ.get("PATH", "")])
        process = subprocess.Popen(
            [str(commands / "fivetran"), *arguments],
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
            # After Ctrl-C, or a test that failed, nothing is left that runs on.
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
    """Run the `fivetran` command to its end, and return what it printed and its exit code."""
    with fivetran_process(*arguments, environment=environment) as process:
        output, _ = process.communicate()
    return subprocess.CompletedProcess(arguments, process.returncode, output)
