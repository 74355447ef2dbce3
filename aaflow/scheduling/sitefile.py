"""Site files: one TOML schema for local machines, Slurm and PBS, read into :class:`~aaflow.scheduling.site.Site`."""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from aaflow.errors import SiteError
from aaflow.operators.operator import Domain
from aaflow.scheduling.launch import check_options
from aaflow.scheduling.machine import usable_cores, usable_memory
from aaflow.scheduling.site import AcceleratorKind, Environment, Node, Site

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_VARIABLES = {"cuda": "CUDA_VISIBLE_DEVICES", "rocm": "ROCR_VISIBLE_DEVICES", "level-zero": "ZE_AFFINITY_MASK"}


@dataclass(frozen=True)
class SiteEntry:
    """One site that can be named.

    Attributes:
        name: the word for ``--site``.
        description: its one line, or why its file can't be read.
        path: its file.
        origin: ``AAFLOW_SITES``, ``user`` or ``aaflow`` (shipped).
    """

    name: str
    description: str
    path: Path
    origin: str


def _core_ids(value: Any) -> Any:
    """Core ids from a count, a list of ids, or ranges such as ``"1-7,9-15"``, in the order given."""
    if value == "auto":
        return value
    if isinstance(value, str):
        if not re.fullmatch(r"\s*\d+(\s*-\s*\d+)?(\s*,\s*\d+(\s*-\s*\d+)?)*\s*", value):
            raise ValueError('give "auto", a number of cores, a list of core ids, or ranges such as "1-7,9-15"')
        ends = [[int(end) for end in part.split("-")] for part in value.split(",")]
        value = [core for end in ends for core in range(end[0], end[-1] + 1)]
    elif isinstance(value, int) and not isinstance(value, bool):
        value = list(range(value))
    if isinstance(value, list) and (not value or len(set(map(str, value))) < len(value)):
        raise ValueError("give at least one core, and each only once")
    return value


def _bytes(value: Any) -> Any:
    """A number of bytes, or a size with its unit such as ``"480GiB"``."""
    if value == "auto":
        return value
    try:
        size = TypeAdapter(ByteSize).validate_python(value)
    except ValidationError:
        size = ByteSize(0)
    if isinstance(value, bool) or size <= 0:
        raise ValueError('give "auto", a number of bytes, or a size such as "480GiB"')
    return int(size)


def _walltime(value: str) -> str:
    if not re.fullmatch(r"\d+:[0-5]\d:[0-5]\d", value):
        raise ValueError('give hours:minutes:seconds, such as "01:30:00"')
    return value


def _interpreter(value: str) -> str:
    path = os.path.expanduser(os.path.expandvars(value))
    if not os.path.isabs(path) and "$" not in path:
        raise ValueError("give the absolute path of a Python interpreter, which ranks on every node start")
    return path


_Text = Annotated[str, Field(min_length=1)]
_Name = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
_Communicator = Literal["mpi", "serial", "cylon"]
_Cores = Annotated[tuple[Annotated[int, Field(ge=0)], ...] | Literal["auto"], BeforeValidator(_core_ids)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _AcceleratorTable(_Table):
    kind: Literal["cuda", "rocm", "level-zero"]
    ids: Annotated[tuple[_Text, ...], Field(min_length=1)]
    variable: str = ""


class _NodeTable(_Table):
    cores: _Cores
    memory: Annotated[int | Literal["auto"], BeforeValidator(_bytes)]
    accelerators: _AcceleratorTable | None = None


class _ProviderTable(_Table):
    account: str = ""
    queue: str = ""
    qos: str = ""
    constraint: str = ""
    walltime: Annotated[str, AfterValidator(_walltime)] = "01:00:00"
    worker_init: str = ""
    scheduler_options: str = ""
    select_options: str = ""


class _EnvironmentTable(_Table):
    python: Annotated[str, AfterValidator(_interpreter)]
    communicator: _Communicator | None = None
    domains: tuple[Domain, ...] = ()


class _SiteTable(_Table):
    description: _Text
    scheduler: Literal["local", "slurm", "pbs"]
    nodes: Annotated[int, Field(ge=1)] = 1
    node: _NodeTable
    oversubscribe: bool = False
    launcher: Literal["mpiexec", "openmpi", "intelmpi", "srun", "pals"]
    launcher_options: tuple[str, ...] = ()
    communicator: _Communicator = "mpi"
    pilot: _Text = "parsl"
    run_folder: _Text = "~/.aaflow/runs"
    interface: _Text = "lo"
    interconnect: _Text | None = None
    encrypted_edges: bool = True
    provider: _ProviderTable = _ProviderTable()
    environments: Mapping[_Name, _EnvironmentTable] = {}

    @model_validator(mode="after")
    def _fits_its_scheduler(self) -> _SiteTable:
        if self.scheduler == "local":
            if self.nodes > 1:
                raise ValueError('nodes: scheduler = "local" has one node; Slurm and PBS have more')
        elif "auto" in (self.node.cores, self.node.memory):
            raise ValueError('node: "auto" reads this machine, so it goes with scheduler = "local" only')
        elif self.nodes > 1 and self.interface == "lo":
            raise ValueError("interface: several nodes need a network interface that all of them have, not lo")
        elif self.nodes > 1 and self.interconnect == "lo":
            raise ValueError("interconnect: several nodes need a network interface that joins them, not lo")
        if self.provider.select_options and self.scheduler != "pbs":
            raise ValueError('provider.select_options: goes with scheduler = "pbs" only')
        if (self.provider.qos or self.provider.constraint) and self.scheduler != "slurm":
            raise ValueError('provider.qos and provider.constraint: go with scheduler = "slurm" only')
        try:
            check_options(self.launcher, self.launcher_options)
        except SiteError as error:
            raise ValueError(f"launcher_options: {error}") from error
        return self

    @model_validator(mode="after")
    def _gives_each_stage_one_environment(self) -> _SiteTable:
        home: dict[Domain | None, str] = {}
        for name, environment in self.environments.items():
            key = f"environments.{name}"
            if not environment.domains and _communicator(name, environment, self) != self.communicator:
                domains = ", ".join(domain.value for domain in Domain)
                raise ValueError(
                    f"{key}: no stage would use it: give it domains ({domains}), or the site its communicator"
                )
            for domain in environment.domains or (None,):
                if domain in home:
                    whose = f"stages of the domain {domain.value!r}" if domain else "stages that no domain names"
                    raise ValueError(f"{key}: {whose} have the environment {home[domain]!r} already")
                home[domain] = name
        return self


def _communicator(name: str, table: _EnvironmentTable, site: _SiteTable) -> str:
    """An environment that bears a backend's name has that backend; another one has the site's."""
    return table.communicator or (name if name in get_args(_Communicator) else site.communicator)


def load_site(name_or_path: str | None = None) -> Site:
    """The site of that name, or of that file.

    ``${NAME}`` in the run folder and in what goes to the scheduler becomes the environment variable's value; where it
    is not set the words stay as they are, and ``check_site`` reports them.

    Args:
        name_or_path: a name of :func:`list_sites`, or the path of a ``.toml`` file; None for ``local``.

    Raises:
        SiteError: no such site, or its file is wrong; names the file, the key and what is allowed.
    """
    path = site_path(name_or_path or "local")
    table = _read(path)
    provider: dict[str, Any] = {}
    if table.scheduler != "local":
        given = table.provider.model_dump(exclude_defaults=True)
        # worker_init is a script: its variables are the compute node's.
        provider = {
            k: os.path.expandvars(v) if isinstance(v, str) and k != "worker_init" else v for k, v in given.items()
        }
        provider.setdefault("walltime", table.provider.walltime)
    return Site(
        name=path.stem,
        description=table.description,
        nodes=table.nodes,
        node=_node(table.node),
        oversubscribe=table.oversubscribe,
        scheduler=table.scheduler,
        launcher=table.launcher,
        launcher_options=table.launcher_options,
        communicator=table.communicator,
        pilot=table.pilot,
        provider=provider,
        run_folder=os.path.expanduser(os.path.expandvars(table.run_folder)),
        interface=table.interface,
        interconnect=table.interconnect or "",
        encrypted_edges=table.encrypted_edges,
        environments={
            name: Environment(
                environment.python,
                _communicator(name, environment, table),
                tuple(domain.value for domain in environment.domains),
            )
            for name, environment in table.environments.items()
        },
    )


def list_sites() -> list[SiteEntry]:
    """Every site that can be named, by name; of two files with one name, the one that is found first."""
    entries: dict[str, SiteEntry] = {}
    for folder, origin in _folders():
        for path in sorted(folder.glob("*.toml")):
            if path.stem not in entries:
                entries[path.stem] = SiteEntry(path.stem, _description(path), path, origin)
    return [entries[name] for name in sorted(entries)]


def site_path(name: str) -> Path:
    """The file of a site.

    The folders of ``AAFLOW_SITES`` come first, then the user's own (``~/.config/aaflow/sites``, or under
    ``XDG_CONFIG_HOME``), then the sites that come with aaflow.

    Args:
        name: a site's name, or the path of a ``.toml`` file.

    Raises:
        SiteError: there is none; names those that there are.
    """
    if name.endswith(".toml") or os.sep in name:
        path = Path(name).expanduser()
        if path.is_file():
            return path
        raise SiteError(f"there is no site file {path}")
    for folder, _ in _folders():
        if (folder / f"{name}.toml").is_file():
            return folder / f"{name}.toml"
    known = [entry.name for entry in list_sites()]
    near = difflib.get_close_matches(name, known, 1)
    raise SiteError(
        f"there is no site {name!r}{f' (did you mean {near[0]!r}?)' if near else ''}; known are {', '.join(known)}. "
        f"A site of your own is a file {name}.toml in {user_folder()}, or a path ending in .toml"
    )


def user_folder() -> Path:
    """Where a user's own site files are; it need not exist."""
    config = os.environ.get("XDG_CONFIG_HOME", "")
    return (Path(config) if os.path.isabs(config) else Path("~/.config").expanduser()) / "aaflow" / "sites"


def _folders() -> Iterator[tuple[Path, str]]:
    for folder in os.environ.get("AAFLOW_SITES", "").split(os.pathsep):
        if folder:
            yield Path(folder).expanduser(), "AAFLOW_SITES"
    yield user_folder(), "user"
    # A link to the top-level folder in a checkout, real files in a wheel. Wheels are installed unpacked.
    yield Path(str(files("aaflow") / "site_configs")), "aaflow"


def _description(path: Path) -> str:
    try:
        return _read(path).description
    except SiteError as error:
        return f"can't be read: {error}"


def _read(path: Path) -> _SiteTable:
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SiteError(f"site file {path}: {error}") from error
    try:
        return _SiteTable.model_validate(data)
    except ValidationError as error:
        lines = sorted({_explain(dict(item)) for item in error.errors(include_url=False)})
        raise SiteError("\n".join([f"site file {path}:", *(f"  {line}" for line in lines)])) from error


def _explain(error: dict[str, Any]) -> str:
    """One line per error: the key, what is wrong with it and what is allowed."""
    keys = [str(key) for key in error["loc"]]
    if error["type"] == "extra_forbidden":
        allowed = list(_table_of(keys[:-1]).model_fields)
        near = difflib.get_close_matches(keys[-1], allowed, 1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        return f"{'.'.join(keys)}: unknown key{hint}; allowed are {', '.join(allowed)}"
    if error["type"] == "missing":
        return f"{'.'.join(keys)}: is missing"
    message = str(error["msg"]).removeprefix("Value error, ")
    # Pydantic appends which branch of a union it tried; a person only knows the keys of the file.
    known = [key for key in keys if key.isidentifier() or key.isdigit()]
    if not known:
        return message
    return f"{'.'.join(known)}: {message}, not {error['input']!r}"


def _table_of(keys: list[str]) -> type[BaseModel]:
    tables: dict[tuple[str, ...], type[BaseModel]] = {
        ("node",): _NodeTable,
        ("node", "accelerators"): _AcceleratorTable,
        ("provider",): _ProviderTable,
    }
    if keys[:1] == ["environments"]:
        return _EnvironmentTable
    return tables.get(tuple(keys), _SiteTable)


def _node(table: _NodeTable) -> Node:
    accelerators = None
    if table.accelerators is not None:
        kind = table.accelerators.kind
        accelerators = AcceleratorKind(kind, table.accelerators.ids, table.accelerators.variable or _VARIABLES[kind])
    return Node(
        cores=usable_cores() if table.cores == "auto" else table.cores,
        memory=usable_memory() if table.memory == "auto" else table.memory,
        accelerators=accelerators,
    )
