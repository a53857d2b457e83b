"""The flow: when a run is one, what is tried again, what its page shows, and that it is silent."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prefect import flow
from prefect.states import Failed

import tamis
from tamis.cli import main
from tamis.flows import start
from tamis.flows.artifacts import pairs_text, rows_table
from tamis.flows.curate import prefect_api
from tamis.flows.look_alikes import look_alikes
from tamis.flows.prefect_runner import can_heal, open_runner
from tamis.flows.schedule import next_fire
from tamis.recipe import check_recipe, with_changes
from tamis.storage.errors import RunError, UnreachableError, UserError
from tests.flows.flow_tools import environment, write_recipe
from tests.flows.flow_tools import tamis as command
from tests.flows.toy_tasks import Flaky, Note


def _recipe(**options: Any) -> dict[str, Any]:
    return {"corpus": {"path": "x"}, "stages": [], "output": {"path": "y"}, **options}


def test_a_run_is_a_flow_if_asked_or_if_there_is_a_server_or_a_cluster(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    plain = check_recipe(_recipe())
    assert not start.goes_with_prefect(plain, None)
    assert not start.goes_with_prefect(plain, False)
    assert start.goes_with_prefect(plain, True)
    assert start.goes_with_prefect(check_recipe(_recipe(runner="dask")), None)
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:1/api")
    assert start.goes_with_prefect(plain, None)
    assert not start.goes_with_prefect(plain, False)
    with pytest.raises(UserError, match="the runner ray needs Prefect"):
        start.goes_with_prefect(check_recipe(_recipe(runner="ray")), False)


@pytest.mark.parametrize(
    ("options", "missing", "says"),
    [
        ({}, "prefect", "--prefect needs prefect, which is not installed; pip install 'tamis[flo"),
        ({"runner": "dask"}, "prefect_dask", "needs prefect-dask, which is not installed; pip in"),
        ({"runner": "ray"}, "prefect_ray", "pip install 'tamis[ray]'"),
    ],
)
def test_without_the_extra_one_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, str], missing: str, says: str
) -> None:
    honest = start.find_spec
    monkeypatch.setattr(start, "find_spec", lambda name: None if name == missing else honest(name))
    with pytest.raises(UserError) as caught:
        start.goes_with_prefect(check_recipe(_recipe(**options)), True)
    assert says in str(caught.value)


def test_the_cluster_of_a_recipe_is_for_its_runner_only() -> None:
    far = check_recipe(_recipe(runner="dask", cluster="tcp://10.0.0.1:8786"))
    assert with_changes(far, workers=3).cluster == "tcp://10.0.0.1:8786"
    assert with_changes(far, runner="threads").cluster is None
    with pytest.raises(UserError, match="`cluster` is the address"):
        check_recipe(_recipe(cluster="tcp://10.0.0.1:8786"))
    with pytest.raises(UserError, match=r"runner: .*'threads', 'processes', 'dask' or 'ray'"):
        with_changes(far, runner="spark")


def test_who_did_the_work_is_no_part_of_what_was_done(tmp_path: Path) -> None:
    manifests = []
    for runner in ("threads", "processes"):
        path = write_recipe(tmp_path, rows=40, runner=runner)
        manifests.append(tamis.run(path).manifest)
    assert manifests[0] == manifests[1]


@pytest.mark.parametrize(
    ("error", "heals"),
    [
        (UnreachableError("the place does not answer"), True),
        (ConnectionResetError("by peer"), True),
        (TimeoutError("too slow"), True),
        (RunError("the file has changed"), False),
        (UserError("no such column"), False),
        (ZeroDivisionError("a mistake"), False),
        (FileNotFoundError("gone"), False),
    ],
)
def test_only_what_can_heal_is_tried_again(error: Exception, heals: bool) -> None:
    nothing: Any = None
    assert can_heal(nothing, nothing, Failed(data=error)) is heals


def test_nothing_reports_home() -> None:
    code = (
        "import tamis.flows.curate, os, prefect.analytics, prefect.settings.context as c;"
        "assert not prefect.analytics.is_telemetry_enabled();"
        "assert not c.get_current_settings().server.analytics_enabled;"
        "assert os.environ['RAY_USAGE_STATS_ENABLED'] == '0'"
    )
    # In CI, Prefect is silent by itself: that must not be what makes this pass.
    known = ("CI", "GITHUB_ACTIONS", "PYTEST_CURRENT_TEST", "DO_NOT_TRACK")
    clean = {k: v for k, v in environment().items() if k not in known}
    clean = {k: v for k, v in clean.items() if not k.startswith(("PREFECT_SERVER", "RAY_"))}
    subprocess.run([sys.executable, "-c", code], check=True, env=clean)


def test_look_alikes_are_pairs_that_were_decided(tmp_path: Path) -> None:
    result = tamis.run(write_recipe(tmp_path, rows=1200))
    decided = {
        (row["similarity"], f"{row['id_hi']:016x}{row['id_lo']:016x}")
        for row in result.dropped.collect().to_dicts()
        if row["stage"] == "near_dedup"
    }
    pairs = look_alikes(result.workspace, 4)
    assert len(pairs) == 4
    for pair in pairs:
        assert (pair["similarity"], pair["dropped"]["row_id"]) in decided
        assert 0.8 <= pair["similarity"] < 1
        assert pair["dropped"]["text"]
        assert pair["dropped"]["text"] != pair["kept"]["text"]
        assert set(pair["dropped"]["text"].split()) & set(pair["kept"]["text"].split())
    named = look_alikes(result.workspace, 4, "id")
    assert named[0]["dropped"]["name"].startswith("row-")
    assert look_alikes(result.workspace, 0) == []


def test_a_recipe_without_near_duplicates_has_no_look_alikes(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, rows=40, stages=[{"operator": "text_stats"}])
    assert look_alikes(tamis.run(path).workspace, 3) == []


def test_the_page_shows_every_row_s_fate_and_no_markup_of_the_corpus() -> None:
    rows = {"in": 10, "dropped": {"where:short": 3}, "quarantined": 1, "kept": 6}
    rows |= {"generated": 0, "written": 6}
    table = rows_table(SimpleNamespace(manifest={"rows": rows}))  # type: ignore[arg-type]
    assert [(line[""], line["rows"]) for line in table] == [
        ("in", 10),
        ("dropped: where:short", 3),
        ("quarantined", 1),
        ("kept", 6),
    ]
    side = {"row_id": "0" * 32, "name": "a", "text": "```\n<script>\n````"}
    pairs = [{"similarity": 0.9, "dropped": side, "kept": side}]
    shown = pairs_text(pairs, with_text=True)
    assert "`````text\n```\n<script>\n````\n`````" in shown
    assert "script" not in pairs_text(pairs, with_text=False)


@pytest.mark.parametrize(
    ("cron", "timezone", "says"),
    [
        ("every day", "UTC", "--cron: cannot read 'every day'"),
        ("99 * * * *", "UTC", "--cron: cannot read '99"),
        ("", "UTC", "--cron: cannot read ''"),
        ("0 3 * * *", "Mars/Olympus", "--timezone: no timezone 'Mars/Olympus'"),
        ("0 3 * * *", "../etc/passwd", "--timezone: no timezone"),
    ],
)
def test_a_schedule_that_cannot_be_read_is_refused(cron: str, timezone: str, says: str) -> None:
    with pytest.raises(UserError) as caught:
        next_fire(cron, timezone)
    assert says in str(caught.value)


def test_a_schedule_fires_at_the_hour_of_its_timezone() -> None:
    assert next_fire("30 3 * * *", "Asia/Tokyo").strftime("%H:%M %Z") == "03:30 JST"


def test_a_server_that_does_not_answer_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_recipe(tmp_path, rows=10)
    run = command("run", path, PREFECT_API_URL="http://127.0.0.1:9/api")
    _, said = run.communicate(timeout=120)
    assert run.returncode == 1
    assert said.startswith("tamis: http://127.0.0.1:9/api: the Prefect server does not answer (")
    assert said.endswith("start it, or unset PREFECT_API_URL to run without\n")
    assert said.count("\n") == 1
    assert not (tmp_path / "out.tamis").exists()


@pytest.fixture(scope="module")
def api() -> Iterator[None]:
    """A server of our own, as a run starts it."""
    with prefect_api(services=False) as own:
        assert own
        yield


def _in_flow(kind: str, task: Any, items: int) -> Any:
    @flow(persist_result=False)
    def one() -> Any:
        with open_runner(kind, 2, None) as runner:  # type: ignore[arg-type]
            return runner.map(task, [1] * items)

    return one()


@pytest.mark.slow
@pytest.mark.usefixtures("api")
class TestTasks:
    """What becomes of tasks inside a flow."""

    def test_a_place_that_did_not_answer_is_asked_again(self, tmp_path: Path) -> None:
        task = Flaky(folder=str(tmp_path), kind="unreachable", times=1)
        assert _in_flow("threads", task, 3) == [0, 1, 2]
        assert len(list(tmp_path.glob("failed-*"))) == 1

    @pytest.mark.parametrize(("kind", "cls"), [("user", UserError), ("run", RunError)])
    def test_what_cannot_heal_fails_at_once(
        self, tmp_path: Path, kind: str, cls: type[Exception]
    ) -> None:
        task = Flaky(folder=str(tmp_path), kind=kind, times=9)
        with pytest.raises(cls, match=r"^here: it went wrong; mend it$"):
            _in_flow("threads", task, 1)
        assert len(list(tmp_path.glob("failed-*"))) == 1

    def test_an_error_in_a_worker_process_arrives_as_it_was_raised(self, tmp_path: Path) -> None:
        task = Flaky(folder=str(tmp_path), kind="user", times=9)
        with pytest.raises(UserError) as caught:
            _in_processes(task)
        assert str(caught.value) == "here: it went wrong; mend it"

    def test_a_step_may_hold_what_no_process_could_be_sent(self, tmp_path: Path) -> None:
        @flow(persist_result=False)
        def one() -> Any:
            with open_runner("threads", 2, None) as runner:
                held = (line for line in "abc")  # no generator can be pickled

                def work() -> Any:
                    next(held)
                    return runner.map(Note(folder=str(tmp_path)), [1, 1, 1])

                return runner.step("whole", work)

        assert one() == [{"item": i, "square": i * i} for i in range(3)]


def _in_processes(task: Any) -> Any:
    from tamis.flows import prefect_runner

    @flow(persist_result=False)
    def one() -> Any:
        from contextlib import closing

        from prefect.task_runners import ThreadPoolTaskRunner

        from tamis.flows.processes import Processes

        with (
            ThreadPoolTaskRunner(2) as threads,
            closing(Processes(2, ["tests.flows.toy_tasks"])) as hands,
        ):
            return prefect_runner.PrefectRunner(threads, 2, hands).map(task, [1])

    return one()


@pytest.mark.slow
def test_a_run_as_a_flow_speaks_to_this_machine_only(tmp_path: Path) -> None:
    guard = tmp_path / "guard"
    guard.mkdir()
    log = tmp_path / "connections"
    (guard / "sitecustomize.py").write_text(
        f"""
import socket

def _note(event, args):
    if event == "socket.connect":
        address = args[1]
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        address = args
    else:
        return
    with open({str(log)!r}, "a") as file:
        file.write(repr((event, address)) + "\\n")

import sys
sys.addaudithook(_note)
"""
    )
    path = write_recipe(tmp_path, rows=100)
    plain = {k: v for k, v in os.environ.items() if k not in ("CI", "GITHUB_ACTIONS")}
    run = subprocess.run(
        [sys.executable, "-m", "tamis.cli", "run", str(path), "--prefect", "--json"],
        env={
            **plain,
            "PYTHONPATH": os.pathsep.join([str(guard), *filter(None, sys.path)]),
            "PREFECT_HOME": str(tmp_path / "prefect"),
        },
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(run.stdout)["rows"]["in"] == 100
    seen = log.read_text().splitlines()
    assert any("socket.connect" in line and "127.0.0.1" in line for line in seen)
    elsewhere = [
        line
        for line in seen
        if not any(here in line for here in ("127.0.0.1", "'localhost'", "'::1'", "None"))
        and not line.startswith("('socket.connect', '")  # a socket in the file system
    ]
    assert elsewhere == []


@pytest.mark.slow
def test_errors_of_a_flow_are_the_same_line_and_code(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, rows=50)
    path.write_text(path.read_text().replace("words >= 8", "wrods >= 8"))
    said = []
    for options in ([], ["--prefect"]):
        run = command("run", path, *options, PREFECT_HOME=str(tmp_path / "prefect"))
        out, err = run.communicate(timeout=120)
        assert run.returncode == 2
        assert out == ""
        said.append([line for line in err.splitlines() if not line.endswith(": done")])
    assert said[0] == said[1]
    assert len(said[0]) == 1


def test_schedule_refuses_a_bad_recipe_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("stages: []")
    monkeypatch.setattr(sys, "argv", ["tamis", "schedule", str(path), "--cron", "* * * * *"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert "corpus: required" in capsys.readouterr().err
