-- The audit log of one or more clusters, and who may do what with it.

CREATE TABLE footplate.entries (
	cluster     text        NOT NULL,
	n           bigint      NOT NULL,
	at          timestamptz NOT NULL,
	log_index   bigint      NOT NULL,
	by          text        NOT NULL,
	approved_by text[]      NOT NULL,
	role        text        NOT NULL,
	via         text        NOT NULL,
	op          text        NOT NULL,
	objects     text[]      NOT NULL,
	key         text        NOT NULL,
	args        text        NOT NULL,
	reason      text        NOT NULL,
	incident    text        NOT NULL,
	plan        text        NOT NULL,
	outcome     text        NOT NULL,
	code        text        NOT NULL,
	text        text        NOT NULL,
	count       bigint      NOT NULL,
	erased      text[]      NOT NULL,
	prev        text        NOT NULL,
	hash        text        NOT NULL,
	body        text        NOT NULL,
	PRIMARY KEY (cluster, n, at)
) PARTITION BY RANGE (at);

COMMENT ON TABLE footplate.entries IS 'audit log of footplate: insert only, hash-chained, a partition for each month';
COMMENT ON COLUMN footplate.entries.n IS 'number of the entry, dense within its cluster';
COMMENT ON COLUMN footplate.entries.objects IS 'what the operation was about, as noun/name: host/ci-17, pool/linux, build/4711';
COMMENT ON COLUMN footplate.entries.count IS 'repeats of the same refusal before this one';
COMMENT ON COLUMN footplate.entries.erased IS 'fields whose value was erased';
COMMENT ON COLUMN footplate.entries.body IS 'the entry as it is exported and verified, byte for byte; the other columns repeat it';

CREATE INDEX entries_at ON footplate.entries (at);
-- By hash, because no other index takes a text of any length: an entry that the
-- database refuses would hold up all that come after it.
CREATE INDEX entries_incident ON footplate.entries USING hash (incident) WHERE incident <> '';
CREATE INDEX entries_objects ON footplate.entries USING gin (objects);

-- What the retention took away: entries up to n are gone, and n had this hash.
CREATE TABLE footplate.dropped (
	cluster text        NOT NULL,
	n       bigint      NOT NULL,
	hash    text        NOT NULL,
	at      timestamptz NOT NULL DEFAULT now(),
	by      text        NOT NULL DEFAULT session_user,
	PRIMARY KEY (cluster, n)
);

-- The month of a day has a partition when this returns. Any number of nodes may
-- call it at once. The table is made first and attached then, because that does
-- not wait for readers, nor make writers wait. (Not to_regclass: in the second
-- look it may answer from what it remembers of the first.)
CREATE FUNCTION footplate.add_month(day date) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' AS $$
DECLARE
	start date := date_trunc('month', day)::date;
	name  text := 'entries_' || to_char(start, 'YYYY_MM');
BEGIN
	IF day NOT BETWEEN '1970-01-01' AND '2999-12-31' THEN
		RAISE EXCEPTION 'no month of the audit log: %', day USING ERRCODE = 'invalid_parameter_value';
	END IF;
	IF EXISTS (SELECT FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = 'footplate.entries'::regclass AND c.relname = name) THEN
		RETURN;
	END IF;
	PERFORM pg_advisory_xact_lock(hashtextextended('footplate month', 0));
	IF EXISTS (SELECT FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = 'footplate.entries'::regclass AND c.relname = name) THEN
		RETURN;
	END IF;
	EXECUTE format('CREATE TABLE footplate.%I (LIKE footplate.entries INCLUDING ALL)', name);
	EXECUTE format('ALTER TABLE footplate.entries ATTACH PARTITION footplate.%I FOR VALUES FROM (%L) TO (%L)',
		name, start::timestamp AT TIME ZONE 'UTC', (start + interval '1 month') AT TIME ZONE 'UTC');
END
$$;

-- Takes away the months before the one of the day, for good, and keeps the hash
-- that the rest of the chain goes on from. The owner's alone.
CREATE FUNCTION footplate.drop_months_before(day date) RETURNS SETOF text
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' AS $$
DECLARE
	month text;
BEGIN
	LOCK TABLE footplate.entries IN SHARE ROW EXCLUSIVE MODE;
	INSERT INTO footplate.dropped (cluster, n, hash)
		SELECT DISTINCT ON (e.cluster) e.cluster, e.n, e.hash FROM footplate.entries e
		WHERE e.at < date_trunc('month', day::timestamp) AT TIME ZONE 'UTC' ORDER BY e.cluster, e.n DESC
		ON CONFLICT DO NOTHING;
	FOR month IN
		SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
		WHERE i.inhparent = 'footplate.entries'::regclass AND c.relname < 'entries_' || to_char(date_trunc('month', day::timestamp), 'YYYY_MM')
		ORDER BY 1
	LOOP
		EXECUTE format('DROP TABLE footplate.%I', month);
		RETURN NEXT month;
	END LOOP;
END
$$;

-- Erases fields of an entry: the one change that is allowed. new_body is the
-- entry with the values of the fields replaced by their leaves, as footplate
-- makes it; it is taken only if the hash of the entry still fits. See package
-- fleet, Entry, for the chain.
CREATE FUNCTION footplate.erase(of_cluster text, of_n bigint, new_body text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	fields CONSTANT text[] := '{by,args,reason,text}';
	rest   CONSTANT text[] := '{by,approved_by,args,reason,text,salt,salts,erased}';
	old_body text;
	old    jsonb;
	new    jsonb;
	salts  bytea;
	salt   bytea;
	value  bytea;
	gone   text[] := '{}';
	f      text;
BEGIN
	SELECT body INTO STRICT old_body FROM footplate.entries e WHERE e.cluster = of_cluster AND e.n = of_n FOR UPDATE;
	old := old_body;
	new := new_body;
	IF old - rest IS DISTINCT FROM new - rest OR new ? 'salt' OR jsonb_typeof(new->'erased') IS DISTINCT FROM 'object' THEN
		RAISE EXCEPTION 'not an erasure of entry %: something else differs', of_n USING ERRCODE = 'check_violation';
	END IF;
	salts := sha512(decode(coalesce(old->>'salt', ''), 'hex'));
	FOR i IN 1..4 LOOP
		f := fields[i];
		IF old->'erased' ? f THEN
			IF new->'erased'->>f IS DISTINCT FROM old->'erased'->>f THEN
				RAISE EXCEPTION 'not an erasure of entry %: % was erased before', of_n, f USING ERRCODE = 'check_violation';
			END IF;
			gone := gone || f;
			CONTINUE;
		END IF;
		salt := CASE WHEN old ? 'salts' THEN decode(old->'salts'->>f, 'hex') ELSE substr(salts, 16 * i - 15, 16) END;
		IF NOT new->'erased' ? f THEN
			IF new->'salts'->>f IS DISTINCT FROM encode(salt, 'hex') OR (new_body::json->f)::text IS DISTINCT FROM (old_body::json->f)::text
				OR f = 'by' AND new->'approved_by' IS DISTINCT FROM old->'approved_by' THEN
				RAISE EXCEPTION 'not an erasure of entry %: % differs', of_n, f USING ERRCODE = 'check_violation';
			END IF;
			CONTINUE;
		END IF;
		IF f = 'args' THEN
			value := convert_to(coalesce((old_body::json->f)::text, ''), 'UTF8');
		ELSE
			value := convert_to(coalesce(old->>f, ''), 'UTF8');
		END IF;
		IF f = 'by' THEN
			value := value || coalesce((SELECT string_agg('\x00'::bytea || convert_to(p, 'UTF8'), ''::bytea ORDER BY k)
				FROM jsonb_array_elements_text(old->'approved_by') WITH ORDINALITY AS a(p, k)), ''::bytea);
		END IF;
		IF new->'erased'->>f IS DISTINCT FROM encode(sha256(salt || value), 'hex') OR coalesce(new->>f, '') <> ''
			OR f = 'by' AND new ? 'approved_by' THEN
			RAISE EXCEPTION 'not an erasure of entry %: the leaf of % does not fit its value', of_n, f USING ERRCODE = 'check_violation';
		END IF;
		gone := gone || f;
	END LOOP;
	UPDATE footplate.entries e SET
		body = new_body,
		erased = gone,
		by = CASE WHEN 'by' = ANY (gone) THEN '' ELSE e.by END,
		approved_by = CASE WHEN 'by' = ANY (gone) THEN '{}' ELSE e.approved_by END,
		args = CASE WHEN 'args' = ANY (gone) THEN '' ELSE e.args END,
		objects = CASE WHEN 'args' = ANY (gone) THEN '{}' ELSE e.objects END,
		reason = CASE WHEN 'reason' = ANY (gone) THEN '' ELSE e.reason END,
		text = CASE WHEN 'text' = ANY (gone) THEN '' ELSE e.text END
	WHERE e.cluster = of_cluster AND e.n = of_n;
END
$$;

-- The roles are the server's, not the database's: another database may have
-- made them already.
DO $$
DECLARE
	r text;
BEGIN
	FOREACH r IN ARRAY '{footplate_writer,footplate_reader}'::text[] LOOP
		IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = r) THEN
			BEGIN
				EXECUTE format('CREATE ROLE %I NOLOGIN', r);
			EXCEPTION WHEN duplicate_object OR unique_violation THEN
				NULL; -- in the same moment, by another node
			END;
		END IF;
		IF NOT pg_has_role(r, 'MEMBER') THEN
			BEGIN
				EXECUTE format('GRANT %I TO CURRENT_USER', r);
			EXCEPTION WHEN unique_violation THEN
				NULL;
			END;
		END IF;
	END LOOP;
END
$$;

GRANT USAGE ON SCHEMA footplate TO footplate_writer, footplate_reader;
GRANT SELECT ON footplate.versions, footplate.dropped TO footplate_writer, footplate_reader;
GRANT SELECT, INSERT ON footplate.entries TO footplate_writer;
GRANT SELECT ON footplate.entries TO footplate_reader;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA footplate FROM PUBLIC;
GRANT EXECUTE ON FUNCTION footplate.add_month, footplate.erase TO footplate_writer;
