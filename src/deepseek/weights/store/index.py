"""Where each chunk is: one SQLite file, the store's only mutable state.

SQLite because its transactions outlive `kill -9` and power failures and work between processes.
A row is committed after the bytes it names are on disk, so what the index says is always true.
Not in WAL mode, whose readers must be able to write: models are served from read-only mounts too.
"""

import errno
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from deepseek.core.errors import ConfigurationError, CorruptWeights

_VERSION = 1
_BUSY_TIMEOUT_S = 60.0
"""Transactions take milliseconds; who waits longer has met a stopped process."""
_MAX_VARIABLES = 500  # of one statement; SQLite's own limit was 999 for long
_LOCATE = "SELECT digest, pack, start, num_bytes FROM chunks WHERE digest IN ({})"
_SCHEMA = """
CREATE TABLE packs (id INTEGER PRIMARY KEY AUTOINCREMENT, end INTEGER NOT NULL DEFAULT 0);
CREATE TABLE chunks (
    digest BLOB PRIMARY KEY,
    pack INTEGER NOT NULL, start INTEGER NOT NULL, num_bytes INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX chunks_by_place ON chunks (pack, start);
CREATE TABLE journal (
    import BLOB, position INTEGER, digest BLOB NOT NULL, PRIMARY KEY (import, position)
) WITHOUT ROWID;
CREATE TABLE models (path TEXT PRIMARY KEY) WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Location:
    """Where a chunk's stored bytes are."""

    pack: int
    start: int
    num_bytes: int

    @property
    def end(self) -> int:
        return self.start + self.num_bytes


class Index:
    """The index file; every method is one transaction on a connection of its own."""

    def __init__(self, file: Path) -> None:
        self._file = file

    @property
    def exists(self) -> bool:
        """Whether there are tables; a kill may have left a file without."""
        if not self._file.exists():
            return False
        with self._for_reading() as connection:
            return _version(connection) != 0

    def create(self) -> None:
        """Make the tables where there are none yet."""
        with self._writing() as connection:
            if _version(connection) == 0:
                for statement in _SCHEMA.strip().split(";\n"):
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {_VERSION}")

    def locate(self, digests: Iterable[str]) -> dict[str, Location]:
        """Return where these chunks are; those that are nowhere are left out."""
        if not self._file.exists():
            return {}
        keys = [bytes.fromhex(digest) for digest in digests]
        found: dict[str, Location] = {}
        with self._for_reading() as connection:
            if _version(connection) == 0:
                return {}  # a kill left a file without tables
            self._require_version(connection)
            for begin in range(0, len(keys), _MAX_VARIABLES):
                some = keys[begin : begin + _MAX_VARIABLES]
                query = _LOCATE.format(",".join("?" * len(some)))
                for digest, pack, start, num_bytes in connection.execute(query, some):
                    at = Location(pack=pack, start=start, num_bytes=num_bytes)
                    found[digest.hex()] = at
        return found

    def chunks_of_pack(self, pack: int) -> dict[str, Location]:
        """Return a pack's chunks by digest, in the order in which they lie."""
        query = "SELECT digest, start, num_bytes FROM chunks WHERE pack = ? ORDER BY start"
        with self._reading() as connection:
            rows = connection.execute(query, (pack,)).fetchall()
        return {row[0].hex(): Location(pack=pack, start=row[1], num_bytes=row[2]) for row in rows}

    def record(
        self, chunks: dict[str, Location], *, journal: dict[int, str], import_key: bytes
    ) -> None:
        """Say where chunks now are, and which position of an import each was needed for.

        Their bytes are on disk already.
        """
        with self._writing() as connection:
            _place(connection, chunks)
            connection.executemany(
                "INSERT OR REPLACE INTO journal VALUES (?, ?, ?)",
                [(import_key, position, bytes.fromhex(d)) for position, d in journal.items()],
            )

    def move(self, chunks: dict[str, Location]) -> None:
        """Say where chunks now are; their bytes are on disk there already."""
        with self._writing() as connection:
            _place(connection, chunks)

    def journal(self, import_key: bytes) -> dict[int, str]:
        """Return what an import that was broken off has done: digests by position."""
        query = "SELECT position, digest FROM journal WHERE import = ?"
        with self._reading() as connection:
            return {position: d.hex() for position, d in connection.execute(query, (import_key,))}

    def forget_import(self, import_key: bytes) -> None:
        """Drop the journal of an import that is done."""
        with self._writing() as connection:
            connection.execute("DELETE FROM journal WHERE import = ?", (import_key,))

    def packs(self) -> dict[int, int]:
        """Return by the packs' numbers where each ends: no chunk that ever was lies behind."""
        with self._reading() as connection:
            return dict(connection.execute("SELECT id, end FROM packs ORDER BY id").fetchall())

    def new_pack(self) -> int:
        """Return a number that no pack has or had."""
        with self._writing() as connection:
            number = connection.execute("INSERT INTO packs DEFAULT VALUES").lastrowid
        assert number is not None  # noqa: S101 - SQLite's promise for an INSERT
        return number

    def drop_pack(self, pack: int) -> None:
        """Forget a pack that has no chunks any more."""
        with self._writing() as connection:
            connection.execute("DELETE FROM packs WHERE id = ?", (pack,))

    def register(self, path: str) -> None:
        """Add a directory, relative to the store, whose manifest keeps chunks alive."""
        with self._writing() as connection:
            connection.execute("INSERT OR IGNORE INTO models VALUES (?)", (path,))

    def models(self) -> list[str]:
        """Return what was registered."""
        with self._reading() as connection:
            return [row[0] for row in connection.execute("SELECT path FROM models ORDER BY path")]

    def keep_only(self, digests: Iterable[str], *, models: Iterable[str]) -> int:
        """Drop all other chunks (returned: how many), registrations, and all journals."""
        with self._writing() as connection:
            connection.execute("CREATE TEMP TABLE live (digest BLOB PRIMARY KEY) WITHOUT ROWID")
            live = [(bytes.fromhex(digest),) for digest in set(digests)]
            connection.executemany("INSERT INTO live VALUES (?)", live)
            num_dropped = connection.execute(
                "DELETE FROM chunks WHERE digest NOT IN (SELECT digest FROM live)"
            ).rowcount
            connection.execute("DELETE FROM journal")
            connection.execute("DELETE FROM models")
            connection.executemany("INSERT INTO models VALUES (?)", [(path,) for path in models])
        return num_dropped

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._for_reading() as connection:
            self._require_version(connection)
            yield connection

    @contextmanager
    def _for_reading(self) -> Iterator[sqlite3.Connection]:
        # Not "ro": a transaction that a kill cut off is rolled back by who comes next. Where the
        # file is write-protected SQLite opens it for reading by itself.
        try:
            with self._connected("rw") as connection:
                yield connection
        except OSError as error:
            raise ConfigurationError(
                f"{self._file} cannot be read ({error.strerror}); if a program that wrote to the "
                "store was killed, let `deepseek models gc` run as a user who may write to it"
            ) from error

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """Yield a connection whose changes take effect together, or, after an error, not at all."""
        with self._connected("rwc") as connection:
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("BEGIN IMMEDIATE")
            if _version(connection):
                self._require_version(connection)
            yield connection
            connection.execute("COMMIT")  # closing without it rolls back

    @contextmanager
    def _connected(self, mode: str) -> Iterator[sqlite3.Connection]:
        try:
            connection = sqlite3.connect(
                f"{self._file.absolute().as_uri()}?mode={mode}",
                uri=True,
                timeout=_BUSY_TIMEOUT_S,
                isolation_level=None,
            )
            try:
                yield connection
            finally:
                connection.close()
        except sqlite3.Error as error:
            raise self._explained(error) from error

    def _require_version(self, connection: sqlite3.Connection) -> None:
        found = _version(connection)
        if found != _VERSION:
            raise CorruptWeights(
                f"{self._file} is a chunk store's index of version {found}, this program reads "
                f"version {_VERSION}; use the program that wrote it, or import the models again"
            )

    def _explained(self, error: sqlite3.Error) -> Exception:
        """Turn what SQLite says of the file system into `OSError`, which callers explain."""
        name = getattr(error, "sqlite_errorname", "")
        if name.startswith("SQLITE_FULL"):
            return OSError(errno.ENOSPC, "No space left on device", str(self._file))
        if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_ERROR")):
            return CorruptWeights(
                f"{self._file} is damaged ({error}); remove the store's directory and import the "
                "models again"
            )
        if name.startswith(("SQLITE_READONLY", "SQLITE_PERM")):
            return PermissionError(errno.EACCES, f"{error}", str(self._file))
        return OSError(errno.EIO, f"{error}", str(self._file))


def _version(connection: sqlite3.Connection) -> int:
    number: int = connection.execute("PRAGMA user_version").fetchone()[0]
    return number


def _place(connection: sqlite3.Connection, chunks: dict[str, Location]) -> None:
    connection.executemany(
        "INSERT OR REPLACE INTO chunks VALUES (?, ?, ?, ?)",
        [(bytes.fromhex(digest), at.pack, at.start, at.num_bytes) for digest, at in chunks.items()],
    )
    connection.executemany(
        "UPDATE packs SET end = MAX(end, ?) WHERE id = ?",
        [(at.end, at.pack) for at in chunks.values()],
    )
