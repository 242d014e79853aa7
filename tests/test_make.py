"""The commands of the Makefile, run in a copy of the project."""

import base64
import codecs
import json
import os
import re
import shutil
import subprocess
import sys
import unicodedata
import zipfile
from datetime import datetime

import duckdb
import pytest

from mock_server import make_records
from tests.project import PROJECT
from tests.support import mock
from tools import configuration, deploy

pytestmark = pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")
BIN = os.path.dirname(sys.executable)


@pytest.fixture
def make(tmp_path):
    """Return a function that runs make in a copy of the project, with the current packages."""
    files = ("connector.py", "Makefile", "configuration.json")
    for name in (*files, "requirements.txt", "requirements-dev.txt"):
        shutil.copy(PROJECT / name, tmp_path)
    for name in ("mock_server", "tools"):
        shutil.copytree(PROJECT / name, tmp_path / name)
    commands = tmp_path / ".venv" / "bin"
    commands.mkdir(parents=True)
    for command in os.listdir(BIN):
        (commands / command).symlink_to(os.path.join(BIN, command))
    for part in ("lib", "pyvenv.cfg"):
        (tmp_path / ".venv" / part).symlink_to(os.path.join(sys.prefix, part))
    # This .venv is newer than the files that it depends on, so make does not set it up again.
    (tmp_path / ".venv" / "ready").touch()
    helpers = tmp_path / "helpers"
    helpers.mkdir()
    # The SDK runs pipreqs to find missing dependencies, and pipreqs sends requests to a website.
    write_script(helpers / "pipreqs", "exit 0")

    def run(*arguments: str, query: str = "", **environment: str) -> subprocess.CompletedProcess:
        # Left out are real values, and the variables that `make test` passes to nested makes.
        left_out = ("FIVETRAN_API_KEY", "DESTINATION", "CONNECTION", "LOCAL", "PYTHON")
        left_out += ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")
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


API_KEY = base64.b64encode(b"key:hidden").decode()


def test_a_deployment_names_all_missing_values_before_fivetran_is_contacted(make):
    run = make("deploy")
    assert run.returncode != 0
    lines = run.stderr.splitlines()
    assert lines[0] == "Nothing was sent to Fivetran."
    assert lines[1].startswith("There is no file local/configuration.json. Copy configuration")
    names = ("FIVETRAN_API_KEY", "DESTINATION", "CONNECTION")
    for line, name in zip(lines[2:], names):
        assert line.startswith(f"{name} is missing. It must be ")


@pytest.mark.parametrize(
    ("name", "value", "is_valid"),
    [
        ("FIVETRAN_API_KEY", API_KEY, True),
        ("FIVETRAN_API_KEY", "key:hidden", False),
        ("FIVETRAN_API_KEY", API_KEY + "\n", False),
        ("FIVETRAN_API_KEY", base64.b64encode(b"key:hidden\n").decode(), False),
        ("FIVETRAN_API_KEY", base64.b64encode(b"hidden").decode(), False),
        ("FIVETRAN_API_KEY", base64.b64encode(b"hidden:").decode(), False),
        ("FIVETRAN_API_KEY", "schl\u00fcssel", False),
        ("DESTINATION", 'my $ware "house"', True),
        ("DESTINATION", " ", False),
        ("CONNECTION", "_kustomer_2", True),
        ("CONNECTION", "Kustomer", False),
        ("CONNECTION", "kustomer-eu", False),
        ("CONNECTION", "1st", False),
        ("CONNECTION", "kustomer\n", False),
    ],
)
def test_the_form_of_each_value_of_a_deployment_is_checked(
    name, value, is_valid, monkeypatch, capsys, tmp_path
):
    # A folder without a configuration is never deployed.
    monkeypatch.setattr(sys, "argv", ["deploy", str(tmp_path)])
    monkeypatch.setenv(name, value)
    assert deploy.main() == 1
    errors = capsys.readouterr().err
    assert (f"{name} is not valid. It must be " in errors) is not is_valid
    assert f"{name} is missing" not in errors and "hidden" not in errors


def test_a_deployment_sends_only_the_connector_and_a_configuration_that_the_sdk_finds(
    make, tmp_path
):
    with mock(make_records(customers=3)) as server:
        file = tmp_path / "local $EU" / "configuration.json"
        file.parent.mkdir()
        file.write_text(json.dumps(server.configuration()))
        # Deploying requires Fivetran, so a local sync uses the same folder and configuration.
        fivetran = tmp_path / ".venv" / "bin" / "fivetran"
        fivetran.unlink()
        write_script(
            fivetran,
            'printf "%s\\n" "$@" >> deployed; test "$1" = deploy || exit 1\n'
            f'"{BIN}/fivetran" debug "$2" --configuration "$8"',
        )
        destination = 'my $ware "house"'
        run = make(
            *("deploy", f"LOCAL={file.parent.name}", f"DESTINATION={destination}"),
            CONNECTION="kustomer",
            FIVETRAN_API_KEY=API_KEY,
        )
        assert run.returncode == 0, run.stdout + run.stderr
        assert {request.path for request in server.requests} > {"/v1/companies"}
    package = tmp_path / "build" / "connector"
    assert (tmp_path / "deployed").read_text().splitlines() == [
        *("deploy", str(package), "--destination", destination, "--connection", "kustomer"),
        *("--configuration", str(file), "--python-version", deploy.PYTHON_VERSION),
    ]
    assert API_KEY not in run.stdout + run.stderr
    assert [f.name for f in package.glob("*.*")] == ["connector.py"]


def test_the_workflow_tests_the_python_version_of_the_deployment():
    workflow = (PROJECT / ".github" / "workflows" / "tests.yml").read_text()
    assert f'"{deploy.PYTHON_VERSION}"' in workflow


def test_setup_tests_and_syncs_take_the_key_from_a_file_that_git_ignores(make, tmp_path):
    missing = make("check")
    assert missing.returncode != 0
    assert "There is no file local/configuration.json" in missing.stderr
    file = tmp_path / "local" / "configuration.json"
    file.parent.mkdir()
    file.write_text('{"api_key": "secret",}')
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    invalid = make("sync")
    assert "Warning: git does not ignore 'local'. " in invalid.stderr
    shutil.copy(PROJECT / ".gitignore", tmp_path)
    assert invalid.returncode != 0 and "line 1 column" in invalid.stderr
    assert "local/configuration.json cannot be read as JSON" in invalid.stderr
    assert "secret" not in invalid.stdout + invalid.stderr
    with mock(make_records(customers=3, companies=2)) as server:
        file.write_text(json.dumps(server.configuration()))
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


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'{"api_key": "secret"}', None),
        (b'{"api_key": "secret",}', "cannot be read as JSON: "),
        (b'{"api_key": "secret \xff"}', "is not text in UTF-8. Save it as UTF-8."),
        (codecs.BOM_UTF8 + b"{}", "begins with a byte order mark. Save it as UTF-8 without one."),
        ("{}".encode("utf-16"), "begins with a byte order mark. Save it as UTF-8 without one."),
    ],
)
def test_a_byte_order_mark_is_only_named_where_there_is_one(content, says, tmp_path):
    (tmp_path / "configuration.json").write_bytes(content)
    problem = configuration.problem_of(tmp_path)
    assert says in problem if says else problem == ""
    assert ("byte order mark" in problem) is content.startswith((b"\xef", b"\xff"))
    assert "secret" not in problem


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
    command = [sys.executable, "-m", "tools.sql", str(warehouse), "-"]
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
    began = datetime.now().strftime("%a %d %b")
    run = make("demo")
    assert run.returncode == 0, run.stdout + run.stderr
    assert "NOT" not in run.stdout and run.stdout.count("as in the mock") == 7
    for heading in ("Messages per day by channel", "First response by brand"):
        assert heading in run.stdout
    lines = run.stdout.splitlines()
    assert len(lines) <= 46 and max(map(len, lines)) <= 90
    # Letters of another width would shift the columns of the charts.
    assert not {unicodedata.east_asian_width(letter) for letter in run.stdout} & {"W", "F"}
    newest = lines[lines.index("First response by brand") - 2]
    assert newest.split()[:3] in (began.split(), datetime.now().strftime("%a %d %b").split())
    shown = subprocess.run(lines[-1].split(), cwd=tmp_path, capture_output=True, text=True)
    assert "conversations" in shown.stdout
    assert {f.name: f.read_text() for f in files.iterdir()} == {
        "warehouse.db": "the user's file",
        "state.json": "the user's file",
    }
    make("clean")
    assert not (tmp_path / "build").exists() and len(list(files.iterdir())) == 2


def test_a_missing_and_an_old_python_are_refused(make, tmp_path):
    shutil.rmtree(tmp_path / ".venv")
    old = write_script(tmp_path / "helpers" / "python2", 'echo "Python 3.9.18"')
    for python in ("python9", old):
        refused = make("lint", f"PYTHON={python}")
        assert refused.returncode != 0
        assert f"{python} was not found, or is older than Python 3.10. Inst" in refused.stderr
        assert not (tmp_path / ".venv").exists()


def stand_in_python(tmp_path, name: str) -> str:
    """Return a fake Python. It records in the file `log` each .venv that it makes, and each
    installation in one of them, which fails while there is a file `offline`."""
    return write_script(
        tmp_path / "helpers" / name,
        'test "$1" = --version && { echo Python 3.10.1; exit; }\n'
        f'test "$*" = "-m venv --clear .venv" || exit 1; echo {name} >> log; mkdir -p .venv/bin\n'
        'printf "#!/bin/sh\\necho install >> log; test ! -e offline\\n" > .venv/bin/python\n'
        'printf "#!/bin/sh\\n" > .venv/bin/black; cp .venv/bin/black .venv/bin/flake8\n'
        "chmod +x .venv/bin/*",
    )


def test_the_environment_is_set_up_when_it_is_missing_or_older_than_the_requirements(
    make, tmp_path
):
    shutil.rmtree(tmp_path / ".venv")
    first, second = (stand_in_python(tmp_path, name) for name in ("one", "two"))
    (tmp_path / "offline").touch()
    assert make("lint", f"PYTHON={first}").returncode != 0
    (tmp_path / "offline").unlink()
    # Another Python has an effect only after make clean.
    for python in (first, first, second):
        run = make("lint", f"PYTHON={python}")
        assert run.returncode == 0, run.stdout + run.stderr
    assert (tmp_path / "log").read_text().split() == ["one", "install", "install"]
    os.utime(tmp_path / ".venv" / "ready", (1, 1))
    assert make("lint").returncode == 0
    cleaned = make("clean")
    assert "rm -rf .venv build " in cleaned.stdout and not (tmp_path / ".venv").exists()
    assert make("lint", f"PYTHON={second}").returncode == 0
    assert (tmp_path / "log").read_text().split()[3:] == ["install", "two", "install"]


def test_make_alone_lists_every_target_and_sets_up_nothing(make, tmp_path):
    shutil.rmtree(tmp_path / ".venv")
    alone = make()
    assert alone.returncode == 0 and alone.stdout == make("help").stdout
    (phony,) = re.findall(r"^\.PHONY: (.* clean)$", (tmp_path / "Makefile").read_text(), re.M)
    assert [line.split()[:2] for line in alone.stdout.splitlines()] == [
        ["make", target] for target in phony.split()
    ]
    assert max(map(len, alone.stdout.splitlines())) <= 90
    assert not (tmp_path / ".venv").exists()


COMMANDS = [
    path.stem for path in (PROJECT / "tools").glob("*.py") if "argparse" in path.read_text()
]


@pytest.mark.parametrize("tool", COMMANDS)
def test_each_tool_explains_itself_and_says_what_to_install(tool, tmp_path):
    command = ["-m", f"tools.{tool}", "--help"]
    shown = subprocess.run(
        [sys.executable, *command], cwd=PROJECT, capture_output=True, text=True, check=False
    )
    assert shown.returncode == 0 and shown.stdout.startswith(f"usage: python -m tools.{tool}")
    # The option -S hides all installed packages.
    missing = subprocess.run(
        [sys.executable, "-S", *command], cwd=PROJECT, capture_output=True, text=True, check=False
    )
    assert missing.returncode == 1 and "Traceback" not in missing.stderr
    assert "install them with: pip install -r requirements-dev.txt\n" in missing.stderr


def test_a_deployment_checks_the_settings_first(monkeypatch, capsys, tmp_path):
    (tmp_path / "configuration.json").write_text('{"api_key": "x", "initial_sync_days": "0"}')
    monkeypatch.setattr(sys, "argv", ["deploy", str(tmp_path)])
    assert deploy.main() == 1
    assert "initial_sync_days: '0' must be a whole number" in capsys.readouterr().err
