-- The usual questions, so that each is one line. Days and weeks are those of
-- the session's time zone.

-- What people did today.
CREATE VIEW footplate.today AS
	SELECT cluster, n, at, by, via, op, objects, outcome, reason, text
	FROM footplate.entries
	WHERE at >= date_trunc('day', now()) AND role NOT IN ('system', 'agent')
	ORDER BY cluster, n;

-- What the control plane did by itself.
CREATE VIEW footplate.automation AS
	SELECT cluster, n, at, by, op, objects, outcome, incident, reason, text
	FROM footplate.entries
	WHERE role = 'system'
	ORDER BY cluster, n;

-- One row an incident: how long operations were made for it, and by whom.
CREATE VIEW footplate.incidents AS
	SELECT cluster, incident, min(at) AS first_at, max(at) AS last_at, count(*) AS entries,
		array_agg(DISTINCT by ORDER BY by) FILTER (WHERE role <> 'system') AS people
	FROM footplate.entries
	WHERE incident <> ''
	GROUP BY cluster, incident;

-- All that was done for an incident, and what the automation did between the
-- first of it and the last.
CREATE VIEW footplate.timeline AS
	SELECT i.cluster, i.incident, e.n, e.at, e.by, e.role = 'system' AS automatic, e.via, e.op, e.objects, e.outcome, e.reason, e.text
	FROM footplate.incidents i
	JOIN footplate.entries e ON e.cluster = i.cluster AND e.at BETWEEN i.first_at AND i.last_at
		AND (e.incident = i.incident OR e.role = 'system')
	ORDER BY e.cluster, e.n;

-- What was not allowed. times counts the repeats.
CREATE VIEW footplate.refusals AS
	SELECT cluster, n, at, by, role, via, op, objects, code, count + 1 AS times, text
	FROM footplate.entries
	WHERE outcome = 'refused'
	ORDER BY cluster, n;

-- How many operations each person made in each week, which begins on Monday.
CREATE VIEW footplate.weeks AS
	SELECT cluster, date_trunc('week', at)::date AS week, by,
		count(*) FILTER (WHERE outcome = 'done') AS done,
		count(*) FILTER (WHERE outcome = 'failed') AS failed,
		coalesce(sum(count + 1) FILTER (WHERE outcome = 'refused'), 0)::bigint AS refused
	FROM footplate.entries
	WHERE role NOT IN ('system', 'agent')
	GROUP BY cluster, week, by
	ORDER BY cluster, week, by;

-- What happened to an object, named as noun and name: about('host', 'ci-17').
CREATE FUNCTION footplate.about(noun text, name text)
RETURNS TABLE (cluster text, n bigint, at timestamptz, by text, via text, op text, outcome text, incident text, reason text, text text)
LANGUAGE sql STABLE AS $$
	SELECT cluster, n, at, by, via, op, outcome, incident, reason, text
	FROM footplate.entries
	WHERE objects @> ARRAY[$1 || '/' || $2]
	ORDER BY cluster, n
$$;

-- The arguments of an operation, for questions that nobody has thought of yet;
-- null for what jsonb cannot hold.
CREATE FUNCTION footplate.parsed(json text) RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	RETURN nullif(json, '')::jsonb;
EXCEPTION WHEN data_exception OR program_limit_exceeded THEN
	RETURN NULL;
END
$$;

GRANT SELECT ON footplate.today, footplate.automation, footplate.incidents, footplate.timeline, footplate.refusals, footplate.weeks
	TO footplate_writer, footplate_reader;
REVOKE ALL ON FUNCTION footplate.about, footplate.parsed FROM PUBLIC;
GRANT EXECUTE ON FUNCTION footplate.about, footplate.parsed TO footplate_writer, footplate_reader;
