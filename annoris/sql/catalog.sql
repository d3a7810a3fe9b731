-- The catalog: a projection of master, dropped and made anew, never migrated.
-- A change in this file needs a new VERSION in catalog.py.

BEGIN IMMEDIATE;

CREATE TABLE state (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;

CREATE TABLE sessions (
    n          INTEGER PRIMARY KEY,         -- the row of its text has the same number
    layer      INTEGER NOT NULL,            -- 0: master's tip; 1: the outbox
    shown      INTEGER NOT NULL DEFAULT 1,  -- 0: of master, and hidden by the outbox
    claim      TEXT NOT NULL,               -- the id that its document asks for
    fallback   TEXT NOT NULL,               -- the id that it gets when another file keeps the claim
    folded     TEXT NOT NULL,               -- the status, without its case
    stated     TEXT NOT NULL,               -- the project as its document says it
    id         TEXT NOT NULL,
    path       TEXT NOT NULL,               -- a BLOB where the name is not UTF-8
    oid        TEXT NOT NULL,
    project    TEXT NOT NULL,               -- the name that the project has now
    name       TEXT NOT NULL,
    title      TEXT NOT NULL,
    status     TEXT NOT NULL,
    priority   TEXT NOT NULL,
    created    TEXT NOT NULL,
    saved      TEXT NOT NULL,
    size       INTEGER NOT NULL,
    etag       TEXT NOT NULL,
    literal    TEXT NOT NULL,
    body_md5   TEXT NOT NULL,
    pending    TEXT NOT NULL
);

-- Master holds a path once; the outbox may hold it again under another key.
CREATE UNIQUE INDEX by_path ON sessions (path, layer, pending);
CREATE INDEX by_id ON sessions (id, layer);
CREATE INDEX by_tail ON sessions (substr(id, -8));
CREATE INDEX by_claim ON sessions (claim, path) WHERE layer = 0;
CREATE INDEX by_refused_claim ON sessions (path) WHERE layer = 0 AND claim <> id;
CREATE INDEX by_fallback ON sessions (fallback) WHERE layer = 0;
CREATE INDEX by_time ON sessions (shown, saved, id);
CREATE INDEX by_project ON sessions (shown, project, saved, id);
CREATE INDEX by_status ON sessions (shown, folded, saved, id);
CREATE INDEX by_name ON sessions (shown, project, name) WHERE name <> '';
CREATE INDEX by_body ON sessions (shown, project, body_md5);
CREATE INDEX of_outbox ON sessions (layer) WHERE layer = 1;

-- Projects that have a file on master.
CREATE TABLE projects (
    path             TEXT PRIMARY KEY,
    name             TEXT NOT NULL,  -- empty where the file can't be read
    id               TEXT NOT NULL,
    status           TEXT NOT NULL,
    priority         TEXT NOT NULL,
    target_revenue   TEXT NOT NULL,
    current_revenue  TEXT NOT NULL,
    created          TEXT NOT NULL,
    problem          TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX projects_by_name ON projects (name, path);

-- Former names of projects; one that is a project's name again leads there and nowhere else.
CREATE TABLE aliases (alias TEXT NOT NULL, path TEXT NOT NULL, PRIMARY KEY (alias, path))
WITHOUT ROWID;
CREATE VIEW former AS
    SELECT alias, name, min(path) FROM aliases JOIN projects USING (path)
    WHERE alias NOT IN (SELECT name FROM projects) GROUP BY alias;

-- What the outbox holds, superseded entries and deletes included.
CREATE TABLE waiting (key TEXT PRIMARY KEY, id TEXT NOT NULL) WITHOUT ROWID;

-- What verify found out about documents. Neither a blob nor what it says ever changes.
CREATE TABLE examined (
    oid  TEXT NOT NULL,
    path TEXT NOT NULL,
    said TEXT NOT NULL,
    PRIMARY KEY (oid, path)
) WITHOUT ROWID;

-- Vowel signs (Mn, Mc) belong to words in the scripts of India and South-East Asia; the
-- separators named are the selectors of emoji, which would otherwise stick to the next word.
CREATE VIRTUAL TABLE texts USING fts5(
    title, name, body,
    tokenize = "unicode61 remove_diacritics 2 categories 'L* N* Co Mn Mc' separators '︎️'"
);

COMMIT;
