"""Claims of runs with a lease: several runners share a suite, and a dead runner blocks no run for long."""

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

    The results folder alone records which runs have ended, so the file may be deleted when no runner is active.
    """

    def __init__(self, path: Path, lease: float) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{path.parent}: cannot be written: {error.strerror}") from None
        self.owner = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self.lease = lease  # seconds
        self.path = path
        with self._as_user_error():
            self._database = sqlite3.connect(path, timeout=60, isolation_level=None)
        self._execute("PRAGMA journal_mode = WAL")
        self._execute(
            "CREATE TABLE IF NOT EXISTS claims "
            "(digest TEXT PRIMARY KEY, owner TEXT NOT NULL, until REAL NOT NULL, attempts INTEGER NOT NULL)"
        )

    def take(self, digest: str, ended: Callable[[], bool]) -> int | None:
        """Claim a run that is unclaimed and has not `ended`. Return its number of attempts so far, this one included.

        None if the run cannot be claimed.
        """
        with self._transaction():
            if ended():  # checked under the lock: a runner that has committed has written its result before
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
        """Extend the lease of all claims of this runner."""
        self._execute("UPDATE claims SET until = ? WHERE owner = ?", [time.time() + self.lease, self.owner])

    def commit(self, digest: str, write: Callable[[], object]) -> bool:
        """Call `write` and release the claim. Return False if another runner has claimed the run in the meantime."""
        with self._transaction():
            row = self._execute("SELECT owner FROM claims WHERE digest = ?", [digest]).fetchone()
            if row is None or row[0] != self.owner:
                return False
            write()
            self._execute("DELETE FROM claims WHERE digest = ?", [digest])
            return True

    def release(self, digest: str) -> None:
        """Release a run and keep its number of attempts."""
        self._execute("UPDATE claims SET until = 0, owner = '' WHERE digest = ? AND owner = ?", [digest, self.owner])

    def forget(self, digest: str) -> None:
        """Release a run and reset its number of attempts."""
        self._execute("DELETE FROM claims WHERE digest = ? AND owner = ?", [digest, self.owner])

    def close(self) -> None:
        self._database.close()

    def _execute(self, statement: str, values: Sequence[object] = ()) -> sqlite3.Cursor:
        with self._as_user_error():
            return self._database.execute(statement, values)

    @contextlib.contextmanager
    def _as_user_error(self) -> Iterator[None]:
        """Turn errors of SQLite (damaged, not writable, locked for too long) into a UserError."""
        try:
            yield
        except sqlite3.Error as error:
            raise UserError(f"{self.path}: {error}; it may be deleted when no runner of the suite is active") from None

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._execute("BEGIN IMMEDIATE")  # no other runner writes from here on
        try:
            yield
        except BaseException:
            self._execute("ROLLBACK")
            raise
        self._execute("COMMIT")
