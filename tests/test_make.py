"""The commands of the Makefile, run in a copy of the project."""

import json
import os
import shutil
import subprocess
import sys
import zipfile

import duckdb
import pytest

from mock_server import make_records
from tests.project import PROJECT
from tests.support import mock

pytestmark = pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")
BIN = os.path.dirname(sys.executable)


@pytest.fixture
def make(tmp_path):
    """Return a function that runs make in a copy of the project, with the current packages."""
    for name in ("connector.py", "Makefile", "requirements.txt", "configuration.json"):
        shutil.copy(PROJECT / name, tmp_path)
    shutil.copytree(PROJECT / "mock_server", tmp_path / "mock_server")
    (tmp_path / ".venv").mkdir()
    # This .venv is newer than the files that it depends on, so make does not set it up again.
    for part in ("bin", "lib", "pyvenv.cfg"):
        (tmp_path / ".venv" / part).symlink_to(os.path.join(sys.prefix, part))
    (tmp_path / ".venv" / "ready").write_text("python3\n")
    helpers = tmp_path / "helpers"
    helpers.mkdir()
    # The SDK runs pipreqs to find missing dependencies, and pipreqs sends requests to a website.
    write_script(helpers / "pipreqs", "exit 0")

    def run(*arguments: str, query: str = "", **environment: str) -> subprocess.CompletedProcess:
        # Left out are a real key, and the variables that `make test` passes to nested makes.
        left_out = ("FIVETRAN_API_KEY", "MAKEFLAGS", "MAKELEVEL", "MFLAGS", "PYTHON")
        inherited = {name: v for name, v in os.environ.items() if name not in left_out}
        path = os.pathsep.join([str(helpers), inherited["PATH"]])
        return subprocess.run(
            ["make", *arguments],
            cwd=tmp_path,
            env={
                **inherited,
                "PATH": path,
                "DO_NOT_TRACK": "1",
                "HOME": str(tmp_path),
                **environment,
            },
            input=query,
            capture_output=True,
            text=True,
            check=False,
            timeout=100,
        )

    return run


def write_script(path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_the_package_has_no_other_file_of_the_project_than_the_connector(make, tmp_path):
    run = make("package")
    assert run.returncode == 0, run.stdout + run.stderr
    with zipfile.ZipFile(tmp_path / "build" / "connector" / "files" / "connector.zip") as package:
        names = set(package.namelist())
        # The SDK generates the second file from the form.
        assert names == {"connector.py", "configuration_form.pb"}
        assert package.read("connector.py") == (PROJECT / "connector.py").read_bytes()


DEPLOYMENT = {
    "LOCAL": ".",
    "DESTINATION": "warehouse",
    "CONNECTION": "kustomer",
    "FIVETRAN_API_KEY": "secret",
}


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("LOCAL", "local", "There is no file local/configuration.json"),
        ("DESTINATION", "", "DESTINATION is missing. Set it to the name of a destination"),
        ("CONNECTION", "", "CONNECTION must be the name of a new or existing connection"),
        ("CONNECTION", "Kustomer-EU", "lowercase letters, digits and underscores"),
        ("CONNECTION", "1st", "not beginning with a digit"),
        ("CONNECTION", "a$b", "lowercase letters, digits and underscores"),
        ("FIVETRAN_API_KEY", "", "FIVETRAN_API_KEY is missing"),
    ],
)
def test_an_invalid_deployment_fails_before_fivetran_is_contacted(name, value, says, make):
    run = make("deploy", "FIVETRAN=false", **{**DEPLOYMENT, name: value})
    assert run.returncode != 0
    assert says in run.stderr and "secret" not in run.stdout + run.stderr


def test_a_deployment_sends_only_the_connector_and_a_configuration_that_the_sdk_finds(
    make, tmp_path
):
    with mock(make_records(customers=3)) as server:
        file = tmp_path / "local $EU" / "configuration.json"
        file.parent.mkdir()
        file.write_text(json.dumps(server.configuration()))
        # Deploying requires Fivetran, so a local sync uses the same folder and configuration.
        stand_in = write_script(
            tmp_path / "helpers" / "deploy",
            'echo "$@" >> deployed; test "$1" = deploy || exit 1\n'
            f'"{BIN}/fivetran" debug "$2" --configuration "$8"',
        )
        run = make("deploy", f"FIVETRAN={stand_in}", **{**DEPLOYMENT, "LOCAL": file.parent.name})
        assert run.returncode == 0, run.stdout + run.stderr
        assert {request.path for request in server.requests} > {"/v1/companies"}
    assert (tmp_path / "deployed").read_text().strip() == (
        "deploy build/connector --destination warehouse --connection kustomer "
        f"--configuration {file} --python-version 3.13"
    )
    assert "secret" not in run.stdout + run.stderr
    assert [f.name for f in (tmp_path / "build" / "connector").glob("*.*")] == ["connector.py"]


def test_the_workflow_tests_the_python_version_of_the_deployment():
    workflow = (PROJECT / ".github" / "workflows" / "tests.yml").read_text()
    assert "FIVETRAN_PYTHON = 3.13\n" in (PROJECT / "Makefile").read_text()
    assert '"3.13"' in workflow


def test_setup_tests_and_syncs_take_the_key_from_a_file_that_git_ignores(make, tmp_path):
    missing = make("check")
    assert missing.returncode != 0
    assert "There is no file local/configuration.json" in missing.stderr
    configuration = tmp_path / "local" / "configuration.json"
    configuration.parent.mkdir()
    configuration.write_text('{"api_key": "secret",}')
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    invalid = make("sync")
    assert "Warning: git does not ignore local. " in invalid.stderr
    shutil.copy(PROJECT / ".gitignore", tmp_path)
    assert invalid.returncode != 0 and "line 1 column" in invalid.stderr
    assert "local/configuration.json cannot be read as JSON" in invalid.stderr
    assert "secret" not in invalid.stdout + invalid.stderr
    with mock(make_records(customers=3, companies=2)) as server:
        configuration.write_text(json.dumps(server.configuration()))
        checked = make("check")
        assert checked.returncode == 0, checked.stdout + checked.stderr
        assert "The API key can read every table]: PASSED" in checked.stdout
        assert "git" not in checked.stderr
        synced = make("sync")
        assert synced.returncode == 0, synced.stdout + synced.stderr
        assert server.api_key not in checked.stdout + synced.stdout
    rows = make("sql", "QUERY=select count(*) as companies from tester.companies")
    assert "2" in rows.stdout.split() and rows.returncode == 0
    assert "customers" in make("sql").stdout
    template = (PROJECT / "configuration.json").read_text()
    assert (tmp_path / "configuration.json").read_text() == template


def test_make_sql_shows_times_and_reports_errors_without_a_traceback(make, tmp_path):
    none = make("sql")
    assert none.returncode != 0
    assert "There is no file 'local/files/warehouse.db'. Run a sync" in none.stderr
    warehouse = tmp_path / "local" / "files" / "warehouse.db"
    warehouse.parent.mkdir(parents=True)
    duckdb.connect(str(warehouse)).close()
    empty = make("sql")
    assert (
        empty.returncode != 0
        and "has no tables yet, because no sync has succeeded" in empty.stderr
    )
    with duckdb.connect(str(warehouse)) as database:
        database.execute("create schema tester")
        database.execute(
            "create table tester.notes as select '2026-01-02 03:04:05Z'::timestamptz t"
        )
    shown = make("sql", "QUERY=select t from tester.notes", TZ="UTC")
    assert "2026-01-02 03:04:05" in shown.stdout
    wrong = make("sql", "QUERY=select x from tester.notes")
    assert wrong.returncode != 0 and "Traceback" not in wrong.stderr and '"x"' in wrong.stderr
    no_rows = make("sql", "QUERY=-- only a comment")
    assert (no_rows.returncode, no_rows.stdout, no_rows.stderr) == (0, "", "")
    command = [sys.executable, "-m", "mock_server.sql", str(warehouse), "-"]
    binary = subprocess.run(command, cwd=PROJECT, input=b"\xff\xfe", capture_output=True)
    assert binary.stderr == b"The query is not text in UTF-8. Save the file as UTF-8.\n"
    quoted = make("sql", "QUERY=-", query="""select 'a$$b "' || 'c' as quoted""")
    assert 'a$$b "c' in quoted.stdout
    assert "$HOME" in make("sql", "QUERY=select '$HOME' as text").stdout


def test_the_demo_does_not_change_the_users_warehouse_and_state(make, tmp_path):
    files = tmp_path / "local" / "files"
    files.mkdir(parents=True)
    for name in ("warehouse.db", "state.json"):
        (files / name).write_text("the user's file")
    run = make("demo")
    assert run.returncode == 0, run.stdout + run.stderr
    assert "NOT what changed" not in run.stdout and run.stdout.count("as in Kustomer") == 5
    for heading in ("Messages per day by channel", "First response by brand"):
        assert heading in run.stdout
    assert len(run.stdout.splitlines()) <= 40
    assert max(map(len, run.stdout.splitlines())) <= 100
    command = run.stdout.splitlines()[-1].partition("make ")[2].split()
    assert "conversations" in make(*command).stdout
    assert {f.name: f.read_text() for f in files.iterdir()} == {
        "warehouse.db": "the user's file",
        "state.json": "the user's file",
    }
    make("clean")
    assert not (tmp_path / "build").exists() and len(list(files.iterdir())) == 2


def test_a_missing_python_and_an_old_python_are_different_errors(make, tmp_path):
    none = make("lint", "PYTHON=python9")
    assert none.returncode != 0 and "python9 was not found" in none.stderr
    old = write_script(tmp_path / "helpers" / "python2", "exit 1")
    too_old = make("lint", f"PYTHON={old}")
    assert too_old.returncode != 0 and "is older than Python 3.10" in too_old.stderr


def stand_in_python(tmp_path, name: str) -> str:
    """Return a fake Python that records each .venv that it makes, and installs nothing."""
    return write_script(
        tmp_path / "helpers" / name,
        f'case "$2" in venv) echo {name} >> made; mkdir -p .venv/bin; '
        'printf "#!/bin/sh\\n" > .venv/bin/python; cp .venv/bin/python .venv/bin/black; '
        "cp .venv/bin/python .venv/bin/flake8; chmod +x .venv/bin/*;; "
        f'*) exec "{sys.executable}" "$@";; esac',
    )


def test_only_another_python_replaces_the_environment(make, tmp_path):
    (tmp_path / ".venv" / "bin").unlink()
    first, second = (stand_in_python(tmp_path, name) for name in ("one", "two"))
    for python in (first, first, second):
        run = make("lint", f"PYTHON={python}")
        assert run.returncode == 0, run.stdout + run.stderr
    # Without PYTHON, the environment does not change, even if python3 is too old.
    write_script(tmp_path / "helpers" / "python3", "exit 1")
    unnamed = make("lint")
    assert unnamed.returncode == 0, unnamed.stderr
    assert (tmp_path / "made").read_text().split() == ["one", "two"]


def test_concurrent_make_commands_set_up_one_environment(make, tmp_path):
    (tmp_path / ".venv" / "bin").unlink()
    (tmp_path / ".venv" / "ready").unlink()
    python = stand_in_python(tmp_path, "one")
    command = ["make", "lint", f"PYTHON={python}"]
    processes = [
        subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        for _ in range(3)
    ]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=60)
            assert process.returncode == 0, errors
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert (tmp_path / "made").read_text().split() == ["one"]
