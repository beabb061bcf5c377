"""Sweeps of the tiny configuration, and a temporary PostgreSQL server."""

import contextlib
import getpass
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from vispeft.sweep import Sweep, SweepDirectory, load_sweep
from vispeft.sweep.study import SharedStudy


class SweepFolder:
    """A folder for sweeps, with methods that write sweep files and open studies."""

    def __init__(self, root: Path, tiny: dict[str, Any]) -> None:
        self.root = root
        self.tiny = tiny

    def write(self, section: dict[str, Any], **base: Any) -> Path:
        """Write a sweep file of the tiny configuration and return its path."""
        path = self.root / "small.yaml"
        path.write_text(yaml.safe_dump({**self.tiny, **base, "sweep": section}, sort_keys=False))
        return path

    def sweep(self, section: dict[str, Any], **base: Any) -> Sweep:
        return load_sweep(self.write(section, **base))

    def study(self, section: dict[str, Any], *, session: str = "one", out: str = "out") -> SharedStudy:
        return SharedStudy(self.sweep(section), SweepDirectory(self.root / out), session)


@pytest.fixture
def folder(tmp_path: Path, tiny: dict[str, Any]) -> SweepFolder:
    return SweepFolder(tmp_path, tiny)


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """URL of an empty database on a server that is stopped after the tests."""
    pytest.importorskip("psycopg", reason="psycopg is not installed: pip install 'vispeft[postgresql]'")
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    found = shutil.which("initdb") or (str(programs[-1]) if programs else None)
    if found is None:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    user = _server_user()
    folder = Path(tempfile.mkdtemp(prefix="vispeft-postgresql-"))
    try:
        if os.getuid() == 0:
            shutil.chown(folder, user)
        yield from _served(Path(found).resolve().parent, folder, user)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _served(programs: Path, folder: Path, user: str) -> Iterator[str]:
    # the server refuses to run as root
    switch: dict[str, Any] = {"user": user} if os.getuid() == 0 else {}
    data, port = folder / "data", _free_port()
    quiet: dict[str, Any] = {"check": True, "capture_output": True, "cwd": folder, **switch}
    subprocess.run([programs / "initdb", "-D", data, "-U", "tester", "-A", "trust", "--no-sync"], **quiet)
    options = ["-c", "listen_addresses=127.0.0.1", "-c", "fsync=off", "-k", str(folder), "-p", str(port)]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen([programs / "postgres", "-D", data, *options], stdout=log, stderr=log, **switch)
    try:
        ready = [programs / "pg_isready", "-h", "127.0.0.1", "-p", str(port), "-t", "1"]
        for _ in range(200):
            if subprocess.run(ready, check=False, capture_output=True).returncode == 0:
                break
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(0.1)
        yield f"postgresql://tester@127.0.0.1:{port}/postgres"
    finally:
        server.terminate()
        server.wait(30)


def _server_user() -> str:
    if os.getuid() != 0:
        return getpass.getuser()
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    pytest.skip("PostgreSQL does not run as root, and there is no user `postgres` or `nobody`.")


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port
