"""The least that the work of a verb needs, as scripts for ``python -c``."""

SEARCH = """
import sqlite3, sys, typer
db = sqlite3.connect(sys.argv[1])
db.execute(
    "SELECT rowid, snippet(texts, -1, '', '', '', 12) FROM texts WHERE texts MATCH 'webhook'"
    " ORDER BY rank LIMIT 20"
).fetchall()
"""

UPSERT = """
import hashlib, sqlite3, sys, typer
db = sqlite3.connect(sys.argv[1])
db.executescript(
    "CREATE TABLE IF NOT EXISTS rows (path TEXT PRIMARY KEY, md5 TEXT);"
    "CREATE VIRTUAL TABLE IF NOT EXISTS texts USING fts5(title, body)"
)
with db:
    for path in sys.argv[2:]:
        with open(path, "rb") as file:
            data = file.read()
        md5 = hashlib.md5(data).hexdigest()
        db.execute("INSERT OR REPLACE INTO rows VALUES (?, ?)", [path, md5])
        db.execute("INSERT INTO texts VALUES (?, ?)", [path, data.decode()])
"""

# One row by its id, and what opening an envelope costs; the row itself is sealed for another key.
HOT = """
import hashlib, os, sys, zlib, typer, psycopg
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
with psycopg.connect(sys.argv[1]) as db:
    db.execute("SELECT * FROM annoris.sessions WHERE id = %s", [sys.argv[2]]).fetchone()
box, nonce, text = AESGCM(bytes(32)), bytes(12), os.urandom(4096)
zlib.decompress(box.decrypt(nonce, box.encrypt(nonce, zlib.compress(text, 0), b""), b""))
hashlib.md5(text).hexdigest()
"""

_BLOBS = """
import hashlib, os, subprocess, sys, zlib, psycopg
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
box, nonce = AESGCM(bytes(32)), bytes(12)

def blobs(clone):
    command = ["git", "-C", clone, "cat-file", "--batch-all-objects", "--unordered", "--batch"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as git:
        while head := git.stdout.readline():
            oid, kind, size = head.split()
            data = git.stdout.read(int(size) + 1)[:-1]
            if kind == b"blob":
                yield oid.decode(), data, hashlib.md5(data).hexdigest()
"""

BULK = (
    _BLOBS
    + """
with psycopg.connect(sys.argv[2]) as db:
    db.execute("DROP TABLE IF EXISTS floor; CREATE TABLE floor (oid text, md5 text, body bytea)")
    with db.cursor().copy("COPY floor FROM STDIN (FORMAT BINARY)") as copy:
        copy.set_types(["text", "text", "bytea"])
        for oid, data, md5 in blobs(sys.argv[1]):
            copy.write_row((oid, md5, box.encrypt(nonce, zlib.compress(data), b"")))
"""
)

CHECK = (
    _BLOBS  # noqa: S608 - constants only
    + """
known = {md5 for _, _, md5 in blobs(sys.argv[1])}
with psycopg.connect(sys.argv[2]) as db, db.cursor("rows", binary=True) as rows:
    for (body,) in rows.execute("SELECT body FROM floor"):
        hashlib.md5(zlib.decompress(box.decrypt(nonce, bytes(body), b""))).hexdigest() in known
"""
)

# One connection for each thread: nobody waits for another's.
ROUTE = """
import sys, threading, psycopg, uvicorn
from fastapi import FastAPI
app, held = FastAPI(), threading.local()

@app.get("/{id}")
def read(id: str):
    if not hasattr(held, "db"):
        held.db = psycopg.connect(sys.argv[1], autocommit=True)
    return held.db.execute(
        "SELECT id::text, title, content FROM annoris.sessions WHERE id = %s", [id]
    ).fetchone()

uvicorn.run(app, port=int(sys.argv[2]), log_level="warning")
"""
