from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from aaflow.cli.sites import app
from aaflow.errors import SiteError

RUNNER = CliRunner()


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A site of the user's own, on which nothing is missing."""
    text = f"""
description = "Mine [really]"
scheduler = "local"
launcher = "mpiexec"
pilot = "local"
run_folder = "{tmp_path}/runs"
node = {{ cores = "auto", memory = "64MiB" }}
"""
    (tmp_path / "mine.toml").write_text(text)
    monkeypatch.setenv("AAFLOW_SITES", str(tmp_path))
    monkeypatch.delenv("AAFLOW_ACCOUNT", raising=False)
    return tmp_path / "mine.toml"


def test_list_names_every_site_and_where_it_comes_from(own: Path) -> None:
    table = RUNNER.invoke(app, ["list"])
    assert table.exit_code == 0
    assert "Mine [really]" in table.stdout
    assert "olcf-frontier" in table.stdout
    sites = json.loads(RUNNER.invoke(app, ["list", "--json"]).stdout)["sites"]
    mine = next(site for site in sites if site["name"] == "mine")
    assert mine == {"name": "mine", "description": "Mine [really]", "path": str(own), "origin": "AAFLOW_SITES"}


def test_show_says_what_a_site_has() -> None:
    text = RUNNER.invoke(app, ["show", "olcf-frontier"]).stdout
    assert "56: 49-55,57-63,17-23,25-31,1-7,9-15,33-39,41-47" in text
    assert "8 rocm, by ROCR_VISIBLE_DEVICES" in text
    site = json.loads(RUNNER.invoke(app, ["show", "olcf-frontier", "--json"]).stdout)
    assert site["launcher"] == "srun"
    assert len(site["node"]["cores"]) == 56
    assert site["path"].endswith("olcf-frontier.toml")


def test_check_of_a_site_that_works_ends_with_0() -> None:
    result = RUNNER.invoke(app, ["check", "mine"])
    assert (result.exit_code, result.stdout) == (0, "mine: nothing is missing here\n")
    assert json.loads(RUNNER.invoke(app, ["check", "mine", "--json"]).stdout) == {
        "site": "mine",
        "ok": True,
        "problems": [],
    }


def test_check_of_a_site_that_cannot_work_here_ends_with_1_and_says_how_to_mend_it() -> None:
    result = RUNNER.invoke(app, ["check", "tacc-frontera"])
    assert result.exit_code == 1
    assert "provider.account: the environment variable AAFLOW_ACCOUNT is not set" in result.stdout
    assert "export AAFLOW_ACCOUNT" in result.stdout
    found = RUNNER.invoke(app, ["check", "tacc-frontera", "--json"])
    assert found.exit_code == 1
    assert "provider.account" in [problem["key"] for problem in json.loads(found.stdout)["problems"]]


def test_an_unknown_site_is_an_error_that_names_the_known() -> None:
    for command in ("show", "check"):
        result = RUNNER.invoke(app, [command, "mien"])
        assert isinstance(result.exception, SiteError)
        assert "did you mean 'mine'" in str(result.exception)
