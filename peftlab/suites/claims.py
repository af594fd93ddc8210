"""Who is at which run: claims with a lease, so that several runners share a suite and a dead one holds up nobody."""

from __future__ import annotations

import contextlib
import os
import socket
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from peftlab.errors import UserError


class Claims:
    """The claims of one runner, in a SQLite file (WAL mode) that all runners of the machine share.

    What has ended is told by the results folder, never by this file: it may be deleted whenever nobody runs.
    """

    def __init__(self, path: Path, lease: float) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{path.parent}: cannot be written: {error.strerror}") from None
        self.owner = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self.lease = lease  # seconds
        self.path = path
        with self._told():
            self._database = sqlite3.connect(path, timeout=60, isolation_level=None)
        self._execute("PRAGMA journal_mode = WAL")
        self._execute(
            "CREATE TABLE IF NOT EXISTS claims "
            "(digest TEXT PRIMARY KEY, owner TEXT NOT NULL, until REAL NOT NULL, attempts INTEGER NOT NULL)"
        )

    def take(self, digest: str, ended: Callable[[], bool]) -> int | None:
        """Claim a run that has not `ended` and is nobody's; how often it has been begun now, or None."""
        with self._transaction():
            if ended():  # asked under the lock: whoever committed has written before
                return None
            now = time.time()
            row = self._execute("SELECT until, attempts FROM claims WHERE digest = ?", [digest]).fetchone()
            if row is not None and row[0] > now:
                return None
            attempts = 1 if row is None else int(row[1]) + 1
            self._execute(
                "INSERT OR REPLACE INTO claims VALUES (?, ?, ?, ?)", [digest, self.owner, now + self.lease, attempts]
            )
            return attempts

    def renew(self) -> None:
        """Say that this runner is alive."""
        self._execute("UPDATE claims SET until = ? WHERE owner = ?", [time.time() + self.lease, self.owner])

    def commit(self, digest: str, write: Callable[[], object]) -> bool:
        """Call `write` if the run is still this runner's, and give the claim up. False: it was taken over."""
        with self._transaction():
            row = self._execute("SELECT owner FROM claims WHERE digest = ?", [digest]).fetchone()
            if row is None or row[0] != self.owner:
                return False
            write()
            self._execute("DELETE FROM claims WHERE digest = ?", [digest])
            return True

    def release(self, digest: str) -> None:
        """Give a run back; how often it was begun is kept."""
        self._execute("UPDATE claims SET until = 0, owner = '' WHERE digest = ? AND owner = ?", [digest, self.owner])

    def forget(self, digest: str) -> None:
        """Give a run back as if it had never been begun."""
        self._execute("DELETE FROM claims WHERE digest = ? AND owner = ?", [digest, self.owner])

    def close(self) -> None:
        self._database.close()

    def _execute(self, statement: str, values: Sequence[object] = ()) -> sqlite3.Cursor:
        with self._told():
            return self._database.execute(statement, values)

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """A file that is damaged, cannot be written or was kept by another for too long is a line."""
        try:
            yield
        except sqlite3.Error as error:
            raise UserError(f"{self.path}: {error}; it may be deleted when no runner is at the suite") from None

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._execute("BEGIN IMMEDIATE")  # no other runner writes from here on
        try:
            yield
        except BaseException:
            self._execute("ROLLBACK")
            raise
        self._execute("COMMIT")
