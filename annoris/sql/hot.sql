-- The hot cache: a projection of master, dropped and made anew, never migrated.
-- A change in this file needs a new VERSION in hot.py.
--
-- sessions, projects and sync_log are the tables of the architecture, with what PostgreSQL and
-- the promises need: indexes stand apart; times carry their zone; content may be NULL, because
-- it is evicted and the rest stays; further columns follow the ones asked for.

CREATE TABLE state (
    one       BOOLEAN PRIMARY KEY DEFAULT TRUE CHECK (one),  -- there is one row
    version   INTEGER NOT NULL,
    master    TEXT NOT NULL DEFAULT '',      -- which repository this is a projection of
    commit    TEXT NOT NULL DEFAULT '',
    position  BIGINT NOT NULL DEFAULT 0,     -- of that commit
    proof     TEXT NOT NULL DEFAULT ''       -- an envelope that only the right key opens
);

CREATE TABLE sessions (
    id           UUID PRIMARY KEY,
    project      VARCHAR(255) NOT NULL DEFAULT '',
    file_path    TEXT NOT NULL DEFAULT '',
    content      TEXT,                       -- an envelope; NULL once evicted or deleted
    checksum     VARCHAR(32) NOT NULL DEFAULT '',       -- MD5 of the document on master
    github_sha   VARCHAR(64) NOT NULL DEFAULT '',       -- its git blob id
    priority     VARCHAR(255) NOT NULL DEFAULT '',
    status       VARCHAR(255) NOT NULL DEFAULT '',
    created_at   TIMESTAMPTZ,
    updated_at   TIMESTAMPTZ,                -- saved
    synced_at    TIMESTAMPTZ NOT NULL,       -- written here
    name         TEXT NOT NULL DEFAULT '',
    title        TEXT NOT NULL DEFAULT '',
    size         BIGINT NOT NULL DEFAULT 0,
    etag         TEXT NOT NULL DEFAULT '',
    literal      TEXT NOT NULL DEFAULT '',
    body_md5     TEXT NOT NULL DEFAULT '',
    position     BIGINT NOT NULL,            -- an older revision never overwrites a newer one
    accessed_at  TIMESTAMPTZ,                -- loaded, to the day
    deleted_at   TIMESTAMPTZ                 -- a tombstone, so that a late writer stays late
);

-- Envelopes do not compress; saying so spares the attempt.
ALTER TABLE sessions ALTER COLUMN content SET STORAGE EXTERNAL;

CREATE INDEX sessions_project ON sessions (project, updated_at DESC NULLS LAST, id DESC);
CREATE INDEX sessions_updated_at ON sessions (updated_at);
CREATE INDEX sessions_status_priority ON sessions (status, priority);
-- A name may be longer than an index entry may be.
CREATE INDEX sessions_name ON sessions (project, left(name, 200)) WHERE name <> '';
CREATE INDEX sessions_tail ON sessions (right(id::text, 8) COLLATE "C") WHERE deleted_at IS NULL;
-- Paths have no upper length that an ordinary index entry could hold.
CREATE INDEX sessions_path ON sessions USING hash (file_path);
CREATE INDEX sessions_position ON sessions (position);
CREATE INDEX sessions_evictable
    ON sessions (COALESCE(GREATEST(updated_at, accessed_at), synced_at)) WHERE content IS NOT NULL;

CREATE TABLE projects (
    id              UUID PRIMARY KEY,
    name            VARCHAR(255) NOT NULL UNIQUE,
    status          VARCHAR(255) NOT NULL,
    priority        VARCHAR(255) NOT NULL,
    target_revenue  NUMERIC(12, 2),
    current_revenue NUMERIC(12, 2),
    created_at      TIMESTAMPTZ NOT NULL DEFAULT now(),
    updated_at      TIMESTAMPTZ NOT NULL DEFAULT now()
);

-- Of which alerts people were told, so that of several machines one does it. Lost without harm.
CREATE TABLE alerts (
    key     TEXT PRIMARY KEY,
    holder  TEXT NOT NULL,
    over    BOOLEAN NOT NULL,                -- they were told that it is good again
    at      TIMESTAMPTZ NOT NULL             -- told of the trouble
);

-- Not a projection: it says what happened, and outlives the others.
CREATE TABLE IF NOT EXISTS sync_log (
    id          BIGSERIAL PRIMARY KEY,
    started_at  TIMESTAMPTZ NOT NULL,
    finished_at TIMESTAMPTZ,
    kind        TEXT NOT NULL,
    status      TEXT NOT NULL,
    source      TEXT NOT NULL,
    host        TEXT NOT NULL,
    details     JSONB NOT NULL,
    run         TEXT UNIQUE                  -- which run of which machine; a retry adds no row
);
ALTER TABLE sync_log ADD COLUMN IF NOT EXISTS run TEXT UNIQUE;
CREATE INDEX IF NOT EXISTS sync_log_started_at ON sync_log (started_at DESC);
CREATE INDEX IF NOT EXISTS sync_log_status ON sync_log (status);

-- Notes that a session was loaded, once a day. A read never fails or waits because of that: not
-- on a read-only replica, without the permission, on a full disk, nor beside another writer.
CREATE OR REPLACE FUNCTION touch(loaded uuid) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    IF current_setting('transaction_read_only') = 'off' THEN
        UPDATE sessions SET accessed_at = now() WHERE id IN (
            SELECT id FROM sessions
            WHERE id = loaded AND (accessed_at IS NULL OR accessed_at < now() - interval '1 day')
            FOR NO KEY UPDATE SKIP LOCKED
        );
    END IF;
    RETURN TRUE;
EXCEPTION WHEN OTHERS THEN
    RETURN FALSE;
END
$$;
