from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aaflow.errors import SiteError
from aaflow.operators.operator import Domain
from aaflow.scheduling.machine import usable_cores, usable_memory
from aaflow.scheduling.sitefile import list_sites, load_site, site_path, user_folder

SHIPPED = (
    *("alcf-aurora", "alcf-polaris", "local", "ncsa-delta", "nersc-perlmutter-cpu", "nersc-perlmutter-gpu"),
    *("olcf-frontier", "tacc-frontera", "uva-rivanna"),
)
CLUSTER = """
description = "A cluster"
scheduler = "slurm"
nodes = 2
launcher = "srun"
interface = "ib0"
run_folder = "{folder}"
[node]
cores = {cores}
memory = "2GiB"
"""


@pytest.fixture(autouse=True)
def sites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of sites that comes first; no others of the user's."""
    folder = tmp_path / "sites"
    folder.mkdir()
    monkeypatch.setenv("AAFLOW_SITES", str(folder))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for name in ("AAFLOW_ACCOUNT", "AAFLOW_PROJECT", "SCRATCH"):
        monkeypatch.delenv(name, raising=False)
    return folder


def write(folder: Path, text: str, name: str = "mine") -> str:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.toml").write_text(text)
    return name


def cluster(cores: str = "4", folder: str = "/scratch") -> str:
    return CLUSTER.format(cores=cores, folder=folder)


def test_local_is_this_machine() -> None:
    site = load_site()
    assert site == load_site("local")
    assert (site.name, site.scheduler, site.nodes, site.pilot) == ("local", "local", 1, "parsl")
    assert site.node.cores == usable_cores()
    assert site.node.memory == usable_memory()
    assert site.oversubscribe
    assert site.provider == {}
    assert site.run_folder == os.path.expanduser("~/.aaflow/runs")


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_sites_can_be_read(name: str) -> None:
    site = load_site(name)
    assert site.name == name
    assert site.description
    assert len(set(site.node.cores)) == len(site.node.cores)
    if site.node.accelerators:
        assert len(site.node.cores) % len(site.node.accelerators.ids) == 0, "ranks by GPU get equal shares of cores"
    if site.scheduler != "local":
        assert site.interface != "lo"
        assert site.provider["account"] == "${AAFLOW_ACCOUNT}", "an account is the user's own"


def test_shipped_sites_are_all_there_is_by_default() -> None:
    assert [(entry.name, entry.origin) for entry in list_sites()] == [(name, "aaflow") for name in SHIPPED]
    assert all(entry.path.is_file() and entry.description for entry in list_sites())


def test_reserved_cores_are_nobodys() -> None:
    assert {0, 52}.isdisjoint(load_site("alcf-aurora").node.cores)
    frontier = load_site("olcf-frontier").node.cores
    assert set(frontier) == set(range(64)) - set(range(0, 64, 8))
    assert len(frontier) == 56


def test_kinds_of_accelerators_have_their_variable(sites: Path) -> None:
    expected = {"cuda": "CUDA_VISIBLE_DEVICES", "rocm": "ROCR_VISIBLE_DEVICES", "level-zero": "ZE_AFFINITY_MASK"}
    for kind, variable in expected.items():
        name = write(sites, cluster() + f'[node.accelerators]\nkind = "{kind}"\nids = ["0", "1"]\n')
        seen = load_site(name).node.accelerators
        assert seen is not None
        assert (seen.kind, seen.ids, seen.variable) == (kind, ("0", "1"), variable)
    other = '[node.accelerators]\nkind = "rocm"\nids = ["0"]\nvariable = "HIP_VISIBLE_DEVICES"\n'
    seen = load_site(write(sites, cluster() + other)).node.accelerators
    assert seen is not None
    assert seen.variable == "HIP_VISIBLE_DEVICES"


def test_your_own_sites_come_first(sites: Path, tmp_path: Path) -> None:
    write(user_folder(), cluster().replace("A cluster", "user's"), "local")
    assert load_site("local").description == "user's"
    write(sites, cluster().replace("A cluster", "named"), "local")
    assert load_site("local").description == "named"
    local = next(entry for entry in list_sites() if entry.name == "local")
    assert (local.origin, local.path) == ("AAFLOW_SITES", sites / "local.toml")
    path = tmp_path / "else" / "where.toml"
    write(path.parent, cluster(), "where")
    assert load_site(str(path)).name == "where"


def test_several_folders_of_sites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    for folder in (second, first):
        write(folder, cluster().replace("A cluster", folder.name), "mine")
    monkeypatch.setenv("AAFLOW_SITES", f"{first}{os.pathsep}{second}")
    assert load_site("mine").description == "a"


def test_an_unknown_site_is_answered_with_the_known_ones() -> None:
    with pytest.raises(SiteError, match="did you mean 'olcf-frontier'") as error:
        load_site("olcf-fronteir")
    assert all(name in str(error.value) for name in SHIPPED)
    with pytest.raises(SiteError, match=r"there is no site file .*gone\.toml"):
        site_path("./gone.toml")


@given(cores=st.lists(st.integers(0, 300), min_size=1, max_size=40, unique=True))
def test_ranges_of_cores_say_the_same_as_a_list(cores: list[int], tmp_path_factory: pytest.TempPathFactory) -> None:
    runs: list[list[int]] = []
    for core in cores:
        if runs and core == runs[-1][-1] + 1:
            runs[-1].append(core)
        else:
            runs.append([core])
    ranges = ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
    folder = tmp_path_factory.mktemp("cores")
    for text in (str(cores), f'"{ranges}"'):
        path = folder / "x.toml"
        path.write_text(cluster(text))
        assert load_site(str(path)).node.cores == tuple(cores)


def test_a_number_of_cores_counts_from_zero(sites: Path) -> None:
    assert load_site(write(sites, cluster("3"))).node.cores == (0, 1, 2)
    assert load_site("mine").node.memory == 2 << 30


def test_environment_variables_are_filled_in_but_not_in_the_script_of_a_node(
    sites: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider = '[provider]\naccount = "${AAFLOW_ACCOUNT}"\nworker_init = "source ${HOME}/env"\n'
    name = write(sites, cluster(folder="${SCRATCH}/runs") + provider)
    before = load_site(name)
    assert (before.provider["account"], before.run_folder) == ("${AAFLOW_ACCOUNT}", "${SCRATCH}/runs")
    monkeypatch.setenv("AAFLOW_ACCOUNT", "m1234")
    monkeypatch.setenv("SCRATCH", "/fast")
    site = load_site(name)
    assert site.run_folder == "/fast/runs"
    assert site.provider == {"account": "m1234", "worker_init": "source ${HOME}/env", "walltime": "01:00:00"}


WRONG = [
    ('scheduler = "slurm"', 'scheduler = "slrm"', "scheduler: Input should be 'local', 'slurm' or 'pbs', not 'slrm'"),
    (
        'launcher = "srun"',
        'launcher = "ibrun"',
        "launcher: Input should be 'mpiexec', 'openmpi', 'intelmpi', 'srun' or 'pals'",
    ),
    (
        'launcher = "srun"',
        'launcher = "srun"\nlauncher_options = ["--mpi=pmix", "-w", "node7"]',
        "launcher_options: '-w' would place ranks",
    ),
    ("nodes = 2", "nodes = 0", "nodes: Input should be greater than or equal to 1, not 0"),
    ("nodes = 2", "knots = 2", r"knots: unknown key \(did you mean 'nodes'\?\); allowed are description, "),
    ('description = "A cluster"', "", "description: is missing"),
    ("cores = 4", 'cores = "1-"', "node.cores: give .* ranges such as"),
    ("cores = 4", "cores = 0", "node.cores: give at least one core"),
    ("cores = 4", "cores = [1, 1]", "node.cores: .*each only once"),
    ("cores = 4", 'cores = "5-3"', "node.cores: give at least one core"),
    ("cores = 4", 'cores = "auto"', '"auto" reads this machine'),
    ('memory = "2GiB"', 'memory = "much"', "node.memory: give .* a size such as"),
    ('memory = "2GiB"', "memory = 0", "node.memory: give"),
    ('memory = "2GiB"', 'memory = "2GiB"\ncores_each = 1', "node.cores_each: unknown key"),
    (
        'memory = "2GiB"',
        'memory = "2GiB"\n[provider]\nwalltime = "1h"',
        "provider.walltime: give hours:minutes:seconds",
    ),
    ('memory = "2GiB"', 'memory = "2GiB"\n[provider]\npartition = "x"', "provider.partition: unknown key; .*queue"),
    ('memory = "2GiB"', 'memory = "2GiB"\n[provider]\nselect_options = "x"', 'goes with scheduler = "pbs" only'),
    ('scheduler = "slurm"', 'scheduler = "local"', 'scheduler = "local" has one node'),
    ('interface = "ib0"', "", "several nodes need a network interface"),
    ("nodes = 2", "nodes = 2 =", r"mine\.toml: .*line 4"),
]


@pytest.mark.parametrize(("right", "wrong", "message"), WRONG)
def test_a_wrong_file_is_named_with_the_key_and_what_is_allowed(
    sites: Path, right: str, wrong: str, message: str
) -> None:
    assert right in cluster()
    name = write(sites, cluster().replace(right, wrong))
    with pytest.raises(SiteError, match=message) as error:
        load_site(name)
    assert str(sites / "mine.toml") in str(error.value)


ENVIRONMENTS = """
[environments.cylon]
python = "${HOME}/cylon/bin/python"
domains = ["batch-write"]
[environments.torch]
python = "/sw/torch/bin/python"
domains = ["batch-worker", "vector-shard"]
"""


def test_an_environment_serves_the_stages_of_its_domains(sites: Path) -> None:
    site = load_site(write(sites, cluster() + ENVIRONMENTS))
    assert site.environments["cylon"].python == os.path.expanduser("~/cylon/bin/python")
    home = {domain.value: site.environment_of(domain.value) for domain in Domain}
    assert home == {
        **{"cpu-partition": None, "aggregation": None, "batch-write": "cylon"},
        **{"batch-worker": "torch", "vector-shard": "torch"},
    }
    backends = {domain.value: site.communicator_of(domain.value) for domain in Domain}
    assert {domain for domain, backend in backends.items() if backend == "cylon"} == {"batch-write"}, "as it is named"
    assert set(backends.values()) == {"cylon", "mpi"}


def test_an_environment_without_domains_serves_the_stages_of_the_sites_communicator(sites: Path) -> None:
    general = 'communicator = "cylon"\n[environments.cylon]\npython = "/sw/cylon/bin/python"\n'
    special = (
        '[environments.torch]\npython = "/sw/torch/bin/python"\ndomains = ["batch-worker"]\ncommunicator = "mpi"\n'
    )
    site = load_site(write(sites, cluster().replace("[node]", f"{general}{special}[node]")))
    homes = {domain.value: (site.environment_of(domain.value), site.communicator_of(domain.value)) for domain in Domain}
    assert homes.pop("batch-worker") == ("torch", "mpi")
    assert set(homes.values()) == {("cylon", "cylon")}


WRONG_ENVIRONMENTS = [
    ('python = "bin/python"\ndomains = ["aggregation"]', "environments.extra.python: give the absolute path"),
    ('python = "/p"\ndomains = ["writing"]', "environments.extra.domains.0: Input should be 'cpu-partition', "),
    ('python = "/p"\ndomains = ["batch-write"]', "extra: stages of the domain 'batch-write' have .* 'cylon' already"),
    ('python = "/p"\ncommunicator = "cylon"', "environments.extra: no stage would use it: give it domains"),
    ('python = "/p"\nversion = "3.10"', "environments.extra.version: unknown key; allowed are python, communicator"),
    ('domains = ["aggregation"]', "environments.extra.python: is missing"),
]


@pytest.mark.parametrize(("lines", "message"), WRONG_ENVIRONMENTS)
def test_a_wrong_environment_is_named(sites: Path, lines: str, message: str) -> None:
    name = write(sites, f"{cluster()}{ENVIRONMENTS}[environments.extra]\n{lines}\n")
    with pytest.raises(SiteError, match=message):
        load_site(name)


def test_a_wrong_file_is_listed_with_what_is_wrong(sites: Path) -> None:
    write(sites, "nodes = ")
    mine = next(entry for entry in list_sites() if entry.name == "mine")
    assert mine.description.startswith("can't be read")
    assert len(list_sites()) == len(SHIPPED) + 1


def test_a_site_can_be_told_apart_by_every_key(sites: Path) -> None:
    site = load_site(write(sites, cluster()))
    text = cluster() + '[provider]\nqueue = "q"\n'
    assert load_site(write(sites, text)) == dataclasses.replace(site, provider={"queue": "q", "walltime": "01:00:00"})
