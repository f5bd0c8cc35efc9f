-- Who did what today?
SELECT at, by, op, outcome, text FROM footplate.today;

-- What did the automation do while we worked on this incident?
SELECT at, by, op, text FROM footplate.timeline WHERE incident = 'INC-7' AND automatic;

-- What is the timeline of this incident?
SELECT at, by, op, text, reason FROM footplate.timeline WHERE incident = 'INC-7';

-- Which incidents were there, and who worked on them?
SELECT incident, first_at, last_at, people FROM footplate.incidents ORDER BY first_at;

-- What was refused in the last week, and to whom?
SELECT at, by, op, times, text FROM footplate.refusals WHERE at > now() - interval '7 days';

-- How many operations did each person make, week by week?
SELECT week, by, done, failed, refused FROM footplate.weeks;

-- What happened to this host?
SELECT at, by, op, text FROM footplate.about('host', 'ci-17');

-- Who scaled this pool, to what, and why?
SELECT at, by, footplate.parsed(args)->>'size' AS size, reason FROM footplate.entries WHERE op = 'pool scale' AND objects @> '{pool/linux}';

-- What was done between two moments, by anybody?
SELECT at, by, op, text FROM footplate.entries WHERE at >= '2026-11-21 09:00Z' AND at < '2026-11-21 10:00Z' ORDER BY n;
