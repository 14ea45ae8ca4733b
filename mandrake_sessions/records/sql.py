"""Every statement as it is run. Made by ``make sql`` from ``mandrake_sessions.statements``."""

# fmt: off

from mandrake_sessions.database.statement import Statement
from mandrake_sessions.records.forms import InsertMany, Piece, RecordInsert, UpdateSome

# -- changes --------------------------------------------------------------------------------------

TRIM_CHANGES = Statement(
    "TRIM_CHANGES",
    "DELETE FROM changes WHERE changes.seq <= ?",
    ("last",),
)
INSERT_CHANGE = Statement(
    "INSERT_CHANGE",
    "INSERT INTO changes (session_id, entity, id, op) VALUES (?, ?, ?, ?)",
    ("session_id", "entity", "id", "op"),
)
INSERT_CHANGE_OF_ROUND = Statement(
    "INSERT_CHANGE_OF_ROUND",
    "INSERT INTO changes (session_id, entity, id, op) SELECT rounds.session_id, ? AS "
    "entity, ? AS id, ? AS op \n"
    "FROM rounds \n"
    "WHERE rounds.id = ? RETURNING seq, session_id",
    ("entity", "id", "op", "parent_id"),
)
INSERT_CHANGE_OF_RESPONSE = Statement(
    "INSERT_CHANGE_OF_RESPONSE",
    "INSERT INTO changes (session_id, entity, id, op) SELECT rounds.session_id, ? AS "
    "entity, ? AS id, ? AS op \n"
    "FROM responses JOIN rounds ON rounds.id = responses.round_id \n"
    "WHERE responses.id = ? RETURNING seq, session_id",
    ("entity", "id", "op", "parent_id"),
)

# -- chunks ---------------------------------------------------------------------------------------

TEXTS = ("content", "raw_response")
DELETE_CHUNKS = Statement(
    "DELETE_CHUNKS",
    "DELETE FROM turn_chunks WHERE turn_chunks.turn_id = ?",
    ("id",),
)

# -- feed -----------------------------------------------------------------------------------------

CHANGES_FROM = Statement(
    "CHANGES_FROM",
    "SELECT changes.seq, changes.session_id, changes.entity, changes.id, changes.op \n"
    "FROM changes \n"
    "WHERE changes.seq >= ? ORDER BY changes.seq\n"
    " LIMIT ? OFFSET 0",
    ("seq", "limit"),
    is_read=True,
)
LAST_CHANGE = Statement(
    "LAST_CHANGE",
    "SELECT changes.seq, changes.session_id, changes.entity, changes.id, changes.op \n"
    "FROM changes ORDER BY changes.seq DESC\n"
    " LIMIT 1 OFFSET 0",
    is_read=True,
)
TURNS_BY_ID = Statement(
    "TURNS_BY_ID",
    'SELECT turns.id, turns.response_id, turns."index", CASE WHEN (turns.status = '
    "'streaming') THEN turns.content || coalesce((SELECT "
    "group_concat(turn_chunks.content, '' ORDER BY turn_chunks.seq) AS chunks \n"
    "FROM turn_chunks \n"
    "WHERE turn_chunks.turn_id = turns.id), '') ELSE turns.content END AS content, "
    "CASE WHEN (turns.status = 'streaming') THEN turns.raw_response || "
    "coalesce((SELECT group_concat(turn_chunks.raw_response, '' ORDER BY "
    "turn_chunks.seq) AS chunks \n"
    "FROM turn_chunks \n"
    "WHERE turn_chunks.turn_id = turns.id), '') ELSE turns.raw_response END AS "
    "raw_response, turns.tool_calls, turns.status, turns.error_message, "
    "turns.stream_started_at, turns.stream_ended_at, turns.current_tokens, "
    "turns.expected_tokens, turns.input_tokens, turns.output_tokens, "
    "turns.cache_read_tokens, turns.cache_write_tokens, turns.input_cost, "
    "turns.output_cost, turns.model, turns.revision, turns.created_at, "
    "turns.updated_at, turns.owner, (SELECT max(turn_chunks.seq) AS seq \n"
    "FROM turn_chunks \n"
    "WHERE turn_chunks.turn_id = turns.id) AS last_chunk, rounds.session_id, "
    "rounds.id AS id_1 \n"
    "FROM rounds JOIN responses ON rounds.id = responses.round_id JOIN turns ON "
    "responses.id = turns.response_id \n"
    "WHERE turns.id IN (SELECT anon_1.value \n"
    'FROM json_each(?) AS anon_1) ORDER BY rounds."index", turns."index"',
    ("ids",),
    is_read=True,
)
TURNS_OF_RESPONSE = Statement(
    "TURNS_OF_RESPONSE",
    'SELECT turns.id, turns.response_id, turns."index", CASE WHEN (turns.status = '
    "'streaming') THEN turns.content || coalesce((SELECT "
    "group_concat(turn_chunks.content, '' ORDER BY turn_chunks.seq) AS chunks \n"
    "FROM turn_chunks \n"
    "WHERE turn_chunks.turn_id = turns.id), '') ELSE turns.content END AS content, "
    "CASE WHEN (turns.status = 'streaming') THEN turns.raw_response || "
    "coalesce((SELECT group_concat(turn_chunks.raw_response, '' ORDER BY "
    "turn_chunks.seq) AS chunks \n"
    "FROM turn_chunks \n"
    "WHERE turn_chunks.turn_id = turns.id), '') ELSE turns.raw_response END AS "
    "raw_response, turns.tool_calls, turns.status, turns.error_message, "
    "turns.stream_started_at, turns.stream_ended_at, turns.current_tokens, "
    "turns.expected_tokens, turns.input_tokens, turns.output_tokens, "
    "turns.cache_read_tokens, turns.cache_write_tokens, turns.input_cost, "
    "turns.output_cost, turns.model, turns.revision, turns.created_at, "
    "turns.updated_at, turns.owner, (SELECT max(turn_chunks.seq) AS seq \n"
    "FROM turn_chunks \n"
    "WHERE turn_chunks.turn_id = turns.id) AS last_chunk, rounds.session_id, "
    "rounds.id AS id_1 \n"
    "FROM rounds JOIN responses ON rounds.id = responses.round_id JOIN turns ON "
    "responses.id = turns.response_id \n"
    'WHERE turns.response_id = ? ORDER BY turns."index"',
    ("response_id",),
    is_read=True,
)
TURNS_OF_ROUNDS = Statement(
    "TURNS_OF_ROUNDS",
    'SELECT turns.id, turns.response_id, turns."index", CASE WHEN (turns.status = '
    "'streaming') THEN turns.content || coalesce((SELECT "
    "group_concat(turn_chunks.content, '' ORDER BY turn_chunks.seq) AS chunks \n"
    "FROM turn_chunks \n"
    "WHERE turn_chunks.turn_id = turns.id), '') ELSE turns.content END AS content, "
    "CASE WHEN (turns.status = 'streaming') THEN turns.raw_response || "
    "coalesce((SELECT group_concat(turn_chunks.raw_response, '' ORDER BY "
    "turn_chunks.seq) AS chunks \n"
    "FROM turn_chunks \n"
    "WHERE turn_chunks.turn_id = turns.id), '') ELSE turns.raw_response END AS "
    "raw_response, turns.tool_calls, turns.status, turns.error_message, "
    "turns.stream_started_at, turns.stream_ended_at, turns.current_tokens, "
    "turns.expected_tokens, turns.input_tokens, turns.output_tokens, "
    "turns.cache_read_tokens, turns.cache_write_tokens, turns.input_cost, "
    "turns.output_cost, turns.model, turns.revision, turns.created_at, "
    "turns.updated_at, turns.owner, (SELECT max(turn_chunks.seq) AS seq \n"
    "FROM turn_chunks \n"
    "WHERE turn_chunks.turn_id = turns.id) AS last_chunk, rounds.session_id, "
    "rounds.id AS id_1 \n"
    "FROM rounds JOIN responses ON rounds.id = responses.round_id JOIN turns ON "
    "responses.id = turns.response_id \n"
    "WHERE rounds.id IN (SELECT anon_1.value \n"
    'FROM json_each(?) AS anon_1) ORDER BY rounds."index", turns."index"',
    ("ids",),
    is_read=True,
)
PLACE_OF_RESPONSE = Statement(
    "PLACE_OF_RESPONSE",
    "SELECT rounds.session_id, rounds.id \n"
    "FROM rounds JOIN responses ON rounds.id = responses.round_id \n"
    "WHERE responses.id = ?",
    ("response_id",),
    is_read=True,
)
ROUNDS_BY_ID = Statement(
    "ROUNDS_BY_ID",
    'SELECT rounds.id, rounds.session_id, rounds."index", rounds.created_at, '
    "rounds.updated_at, requests.id AS id_1, requests.round_id, requests.content, "
    "requests.created_at AS created_at_1, requests.updated_at AS updated_at_1, "
    "responses.id AS id_2, responses.round_id AS round_id_1, responses.created_at AS "
    "created_at_2, responses.updated_at AS updated_at_2 \n"
    "FROM rounds JOIN requests ON rounds.id = requests.round_id JOIN responses ON "
    "rounds.id = responses.round_id \n"
    "WHERE rounds.id IN (SELECT anon_1.value \n"
    'FROM json_each(?) AS anon_1) ORDER BY rounds."index"',
    ("ids",),
    is_read=True,
)
ROUNDS_BY_REQUEST = Statement(
    "ROUNDS_BY_REQUEST",
    'SELECT rounds.id, rounds.session_id, rounds."index", rounds.created_at, '
    "rounds.updated_at, requests.id AS id_1, requests.round_id, requests.content, "
    "requests.created_at AS created_at_1, requests.updated_at AS updated_at_1, "
    "responses.id AS id_2, responses.round_id AS round_id_1, responses.created_at AS "
    "created_at_2, responses.updated_at AS updated_at_2 \n"
    "FROM rounds JOIN requests ON rounds.id = requests.round_id JOIN responses ON "
    "rounds.id = responses.round_id \n"
    "WHERE requests.id IN (SELECT anon_1.value \n"
    'FROM json_each(?) AS anon_1) ORDER BY rounds."index"',
    ("ids",),
    is_read=True,
)
ROUNDS_FROM = Statement(
    "ROUNDS_FROM",
    'SELECT rounds.id, rounds.session_id, rounds."index", rounds.created_at, '
    "rounds.updated_at, requests.id AS id_1, requests.round_id, requests.content, "
    "requests.created_at AS created_at_1, requests.updated_at AS updated_at_1, "
    "responses.id AS id_2, responses.round_id AS round_id_1, responses.created_at AS "
    "created_at_2, responses.updated_at AS updated_at_2 \n"
    "FROM rounds JOIN requests ON rounds.id = requests.round_id JOIN responses ON "
    "rounds.id = responses.round_id \n"
    'WHERE rounds.session_id = ? AND rounds."index" >= ? ORDER BY rounds."index"\n'
    " LIMIT ? OFFSET 0",
    ("session_id", "index", "limit"),
    is_read=True,
)
CHUNKS_AFTER = Statement(
    "CHUNKS_AFTER",
    "SELECT turn_chunks.seq, turn_chunks.content \n"
    "FROM turn_chunks \n"
    "WHERE turn_chunks.turn_id = ? AND turn_chunks.seq > ? ORDER BY turn_chunks.seq",
    ("turn_id", "seq"),
    is_read=True,
)

# -- history --------------------------------------------------------------------------------------

ROUNDS_AFTER = Statement(
    "ROUNDS_AFTER",
    'SELECT rounds.id, rounds.session_id, rounds."index", rounds.created_at, '
    "rounds.updated_at, requests.id AS id_1, requests.round_id, requests.content, "
    "requests.created_at AS created_at_1, requests.updated_at AS updated_at_1, "
    "responses.id AS id_2, responses.round_id AS round_id_1, responses.created_at AS "
    "created_at_2, responses.updated_at AS updated_at_2 \n"
    "FROM rounds JOIN requests ON rounds.id = requests.round_id JOIN responses ON "
    "rounds.id = responses.round_id \n"
    'WHERE rounds.session_id = ? AND rounds."index" > ? ORDER BY rounds."index"\n'
    " LIMIT ? OFFSET 0",
    ("session_id", "after", "limit"),
    is_read=True,
)
LAST_ROUNDS = Statement(
    "LAST_ROUNDS",
    'SELECT rounds.id, rounds.session_id, rounds."index", rounds.created_at, '
    "rounds.updated_at, requests.id AS id_1, requests.round_id, requests.content, "
    "requests.created_at AS created_at_1, requests.updated_at AS updated_at_1, "
    "responses.id AS id_2, responses.round_id AS round_id_1, responses.created_at AS "
    "created_at_2, responses.updated_at AS updated_at_2 \n"
    "FROM rounds JOIN requests ON rounds.id = requests.round_id JOIN responses ON "
    "rounds.id = responses.round_id \n"
    'WHERE rounds.session_id = ? ORDER BY rounds."index" DESC\n'
    " LIMIT ? OFFSET 0",
    ("session_id", "limit"),
    is_read=True,
)
TURNS_BETWEEN = Statement(
    "TURNS_BETWEEN",
    'SELECT turns.id, turns.response_id, turns."index", CASE WHEN (turns.status = '
    "'streaming') THEN turns.content || coalesce((SELECT "
    "group_concat(turn_chunks.content, '' ORDER BY turn_chunks.seq) AS chunks \n"
    "FROM turn_chunks \n"
    "WHERE turn_chunks.turn_id = turns.id), '') ELSE turns.content END AS content, "
    "CASE WHEN (turns.status = 'streaming') THEN turns.raw_response || "
    "coalesce((SELECT group_concat(turn_chunks.raw_response, '' ORDER BY "
    "turn_chunks.seq) AS chunks \n"
    "FROM turn_chunks \n"
    "WHERE turn_chunks.turn_id = turns.id), '') ELSE turns.raw_response END AS "
    "raw_response, turns.tool_calls, turns.status, turns.error_message, "
    "turns.stream_started_at, turns.stream_ended_at, turns.current_tokens, "
    "turns.expected_tokens, turns.input_tokens, turns.output_tokens, "
    "turns.cache_read_tokens, turns.cache_write_tokens, turns.input_cost, "
    "turns.output_cost, turns.model, turns.revision, turns.created_at, "
    "turns.updated_at \n"
    "FROM rounds JOIN responses ON rounds.id = responses.round_id JOIN turns ON "
    "responses.id = turns.response_id \n"
    'WHERE rounds.session_id = ? AND rounds."index" BETWEEN ? AND ? ORDER BY '
    'rounds."index", turns."index"',
    ("session_id", "first", "last"),
    is_read=True,
)

# -- recovery -------------------------------------------------------------------------------------

STREAMING_OWNERS = Statement(
    "STREAMING_OWNERS",
    "SELECT turns.owner \n"
    "FROM turns \n"
    "WHERE turns.status = 'streaming'",
    is_read=True,
)
ABANDONED_TURNS = Statement(
    "ABANDONED_TURNS",
    'SELECT turns.response_id, turns."index", turns.id, turns.tool_calls \n'
    "FROM turns \n"
    "WHERE turns.status = 'streaming' AND (EXISTS (SELECT anon_1.value \n"
    "FROM json_each(?) AS anon_1 \n"
    "WHERE anon_1.value IS turns.owner))",
    ("owners",),
    is_read=True,
)
STREAMING_TURNS = Statement(
    "STREAMING_TURNS",
    'SELECT turns.owner, turns.response_id, turns."index", turns.id, '
    "turns.tool_calls \n"
    "FROM turns \n"
    "WHERE turns.status = 'streaming'",
    is_read=True,
)
STILL_STREAMING = Statement(
    "STILL_STREAMING",
    'SELECT turns.response_id, turns."index", turns.id, turns.tool_calls \n'
    "FROM turns \n"
    "WHERE turns.id = ? AND turns.status = 'streaming'",
    ("id",),
    is_read=True,
)
INTERRUPT_TURN = Statement(
    "INTERRUPT_TURN",
    "UPDATE turns SET status='interrupted', owner=NULL, "
    "stream_ended_at=max(turns.stream_started_at, ?), revision=(turns.revision + 1), "
    "updated_at=max(turns.updated_at, ?), tool_calls=?, content=(turns.content || "
    "coalesce((SELECT group_concat(turn_chunks.content, '' ORDER BY turn_chunks.seq) "
    "AS chunks \n"
    "FROM turn_chunks \n"
    "WHERE turn_chunks.turn_id = turns.id), '')), raw_response=(turns.raw_response "
    "|| coalesce((SELECT group_concat(turn_chunks.raw_response, '' ORDER BY "
    "turn_chunks.seq) AS chunks \n"
    "FROM turn_chunks \n"
    "WHERE turn_chunks.turn_id = turns.id), '')) WHERE turns.id = ? AND turns.status "
    "= 'streaming' RETURNING id, response_id, \"index\", CASE WHEN (status = "
    "'streaming') THEN content || coalesce((SELECT group_concat(turn_chunks.content, "
    "'' ORDER BY turn_chunks.seq) AS chunks \n"
    "FROM turn_chunks \n"
    "WHERE turn_id = id), '') ELSE content END AS content, CASE WHEN (status = "
    "'streaming') THEN raw_response || coalesce((SELECT "
    "group_concat(turn_chunks.raw_response, '' ORDER BY turn_chunks.seq) AS chunks \n"
    "FROM turn_chunks \n"
    "WHERE turn_id = id), '') ELSE raw_response END AS raw_response, tool_calls, "
    "status, error_message, stream_started_at, stream_ended_at, current_tokens, "
    "expected_tokens, input_tokens, output_tokens, cache_read_tokens, "
    "cache_write_tokens, input_cost, output_cost, model, revision, created_at, "
    "updated_at",
    ("now", "now", "tool_calls", "id"),
)

# -- requests -------------------------------------------------------------------------------------

REQUEST_BY_ID = Statement(
    "REQUEST_BY_ID",
    "SELECT requests.id, requests.round_id, requests.content, requests.created_at, "
    "requests.updated_at \n"
    "FROM requests \n"
    "WHERE requests.id = ?",
    ("id",),
    is_read=True,
)
RESPONSE_BY_ID = Statement(
    "RESPONSE_BY_ID",
    "SELECT responses.id, responses.round_id, responses.created_at, "
    "responses.updated_at \n"
    "FROM responses \n"
    "WHERE responses.id = ?",
    ("id",),
    is_read=True,
)
UPDATE_REQUEST = Statement(
    "UPDATE_REQUEST",
    "UPDATE requests SET content=?, updated_at=max(requests.updated_at, ?) WHERE "
    "requests.id = ? RETURNING id, round_id, content, created_at, updated_at",
    ("content", "now", "id"),
)

# -- rounds ---------------------------------------------------------------------------------------

ROUND_ID = "rounds.id"
ROUND_INDEX = "rounds.index"
REQUEST_ID = "requests.id"
RESPONSE_ID = "responses.id"
TAKE_ROUND_INDEX = Statement(
    "TAKE_ROUND_INDEX",
    "UPDATE sessions SET next_round_index=(sessions.next_round_index + 1), "
    "updated_at=max(sessions.updated_at, ?) WHERE sessions.id = ? AND "
    "sessions.next_round_index = coalesce(?, sessions.next_round_index) RETURNING "
    "next_round_index",
    ("now", "session_id", "expected_index"),
)
NEXT_ROUND_INDEX = Statement(
    "NEXT_ROUND_INDEX",
    "SELECT sessions.next_round_index \n"
    "FROM sessions \n"
    "WHERE sessions.id = ?",
    ("session_id",),
    is_read=True,
)
INSERT_ROUND = Statement(
    "INSERT_ROUND",
    'INSERT INTO rounds (id, session_id, "index", created_at, updated_at) VALUES (?, '
    "?, ?, ?, ?)",
    ("id", "session_id", "index", "created_at", "updated_at"),
)
INSERT_REQUEST = RecordInsert(
    "INSERT_REQUEST",
    "INSERT INTO requests (id, round_id, content, created_at, updated_at) VALUES (?, "
    "?, ?, ?, ?)",
    ("id", "round_id", "content", "created_at", "updated_at"),
    ("id", "round_id", "content", "created_us", "updated_us"),
)
INSERT_RESPONSE = RecordInsert(
    "INSERT_RESPONSE",
    "INSERT INTO responses (id, round_id, next_turn_index, created_at, updated_at) "
    "VALUES (?, ?, ?, ?, ?)",
    ("id", "round_id", "next_turn_index", "created_at", "updated_at"),
    ("id", "round_id", "created_us", "updated_us"),
    ("next_turn_index",),
)
ROUND_BY_ID = Statement(
    "ROUND_BY_ID",
    'SELECT rounds.id, rounds.session_id, rounds."index", rounds.created_at, '
    "rounds.updated_at, requests.id AS id_1, requests.round_id, requests.content, "
    "requests.created_at AS created_at_1, requests.updated_at AS updated_at_1, "
    "responses.id AS id_2, responses.round_id AS round_id_1, responses.created_at AS "
    "created_at_2, responses.updated_at AS updated_at_2 \n"
    "FROM rounds JOIN requests ON rounds.id = requests.round_id JOIN responses ON "
    "rounds.id = responses.round_id \n"
    "WHERE rounds.id = ?",
    ("id",),
    is_read=True,
)
ROUND_BY_RESPONSE = Statement(
    "ROUND_BY_RESPONSE",
    'SELECT rounds.id, rounds.session_id, rounds."index", rounds.created_at, '
    "rounds.updated_at, requests.id AS id_1, requests.round_id, requests.content, "
    "requests.created_at AS created_at_1, requests.updated_at AS updated_at_1, "
    "responses.id AS id_2, responses.round_id AS round_id_1, responses.created_at AS "
    "created_at_2, responses.updated_at AS updated_at_2 \n"
    "FROM rounds JOIN requests ON rounds.id = requests.round_id JOIN responses ON "
    "rounds.id = responses.round_id \n"
    "WHERE responses.id = ?",
    ("response_id",),
    is_read=True,
)
LAST_ROUND = Statement(
    "LAST_ROUND",
    'SELECT rounds.id, rounds.session_id, rounds."index", rounds.created_at, '
    "rounds.updated_at, requests.id AS id_1, requests.round_id, requests.content, "
    "requests.created_at AS created_at_1, requests.updated_at AS updated_at_1, "
    "responses.id AS id_2, responses.round_id AS round_id_1, responses.created_at AS "
    "created_at_2, responses.updated_at AS updated_at_2 \n"
    "FROM rounds JOIN requests ON rounds.id = requests.round_id JOIN responses ON "
    "rounds.id = responses.round_id \n"
    'WHERE rounds.session_id = ? ORDER BY rounds."index" DESC\n'
    " LIMIT 1 OFFSET 0",
    ("session_id",),
    is_read=True,
)
ROUND_PAGE = Statement(
    "ROUND_PAGE",
    'SELECT rounds.id, rounds.session_id, rounds."index", rounds.created_at, '
    "rounds.updated_at, requests.id AS id_1, requests.round_id, requests.content, "
    "requests.created_at AS created_at_1, requests.updated_at AS updated_at_1, "
    "responses.id AS id_2, responses.round_id AS round_id_1, responses.created_at AS "
    "created_at_2, responses.updated_at AS updated_at_2 \n"
    "FROM rounds JOIN requests ON rounds.id = requests.round_id JOIN responses ON "
    "rounds.id = responses.round_id \n"
    'WHERE rounds.session_id = ? AND rounds."index" > ? ORDER BY rounds."index"\n'
    " LIMIT ? OFFSET ?",
    ("session_id", "after", "limit", "offset"),
    is_read=True,
)
SESSION_OF_ROUND = Statement(
    "SESSION_OF_ROUND",
    "SELECT rounds.session_id \n"
    "FROM rounds \n"
    "WHERE rounds.id = ?",
    ("id",),
    is_read=True,
)
DELETE_ROUND = Statement("DELETE_ROUND", "DELETE FROM rounds WHERE rounds.id = ?", ("id",))

# -- sessions -------------------------------------------------------------------------------------

SESSION_ID = "sessions.id"
INSERT_SESSION = RecordInsert(
    "INSERT_SESSION",
    "INSERT INTO sessions (id, title, description, metadata, next_round_index, "
    "revision, created_at, updated_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
    (
        "id", "title", "description", "metadata", "next_round_index", "revision",
        "created_at", "updated_at",
    ),
    (
        "id", "title", "description", "next_round_index", "revision", "created_us",
        "updated_us",
    ),
    ("metadata",),
)
SESSION_BY_ID = Statement(
    "SESSION_BY_ID",
    "SELECT sessions.id, sessions.title, sessions.description, sessions.metadata, "
    "sessions.next_round_index, sessions.revision, sessions.created_at, "
    "sessions.updated_at \n"
    "FROM sessions \n"
    "WHERE sessions.id = ?",
    ("id",),
    is_read=True,
)
SESSION_EXISTS = Statement(
    "SESSION_EXISTS",
    "SELECT sessions.id \n"
    "FROM sessions \n"
    "WHERE sessions.id = ?",
    ("id",),
    is_read=True,
)
IDS_WITH_PART = Statement(
    "IDS_WITH_PART",
    "SELECT sessions.id \n"
    "FROM sessions \n"
    "WHERE substr(sessions.id, 1, length(?)) = ? OR substr(sessions.id, -length(?)) "
    "= ? ORDER BY sessions.id\n"
    " LIMIT ? OFFSET 0",
    ("part", "part", "part", "part", "limit"),
    is_read=True,
)
IDS_ENDING_AS = Statement(
    "IDS_ENDING_AS",
    "SELECT sessions.id \n"
    "FROM sessions \n"
    "WHERE substr(sessions.id, -?) IN (SELECT anon_1.value \n"
    "FROM json_each(?) AS anon_1)",
    ("length", "endings"),
    is_read=True,
)
COUNT_SESSIONS = Statement(
    "COUNT_SESSIONS",
    "SELECT count(*) AS count_1 \n"
    "FROM sessions",
    is_read=True,
)
SESSION_PAGE = Statement(
    "SESSION_PAGE",
    "SELECT sessions.id, sessions.title, sessions.description, sessions.metadata, "
    "sessions.next_round_index, sessions.revision, sessions.created_at, "
    "sessions.updated_at \n"
    "FROM sessions \n"
    "WHERE (sessions.updated_at, sessions.id) < (?, ?) ORDER BY sessions.updated_at "
    "DESC, sessions.id DESC\n"
    " LIMIT ? OFFSET ?",
    ("before_time", "before_id", "limit", "offset"),
    is_read=True,
)
TOUCH_SESSION = Statement(
    "TOUCH_SESSION",
    "UPDATE sessions SET updated_at=max(sessions.updated_at, ?) WHERE sessions.id = ?",
    ("now", "id"),
)
DELETE_SESSION = Statement(
    "DELETE_SESSION",
    "DELETE FROM sessions WHERE sessions.id = ?",
    ("id",),
)
UPDATE_SESSION = UpdateSome(
    "UPDATE_SESSION",
    "UPDATE sessions SET ",
    (
        Piece("title=?", ("title",), when={"title"}),
        Piece("description=?", ("description",), when={"description"}),
        Piece("metadata=?", ("metadata",), when={"metadata"}),
        Piece("revision=(sessions.revision + 1)"),
        Piece("updated_at=max(sessions.updated_at, ?)", ("now",)),
    ),
    (
        Piece("sessions.id = ?", ("id",)),
        Piece(
            "sessions.revision = coalesce(?, sessions.revision)",
            ("expected_revision",),
        ),
    ),
    " RETURNING id, title, description, metadata, next_round_index, revision, "
    "created_at, updated_at",
    settable={"description", "metadata", "title"},
)

# -- streaming ------------------------------------------------------------------------------------

INSERT_CHUNKS = InsertMany(
    "INSERT_CHUNKS",
    "INSERT INTO turn_chunks (turn_id, seq, content, raw_response) ",
    "SELECT ? AS turn_id, ? AS seq, ? AS content, ? AS raw_response \n"
    "FROM turns \n"
    "WHERE turns.id = ? AND turns.owner = ? AND turns.status = 'streaming'",
    (
        "turn_id_{at}", "seq_{at}", "content_{at}", "raw_response_{at}", "turn_id_{at}",
        "owner",
    ),
    " ON CONFLICT DO NOTHING",
)
INSERT_FIRST_CHUNK = Statement(
    "INSERT_FIRST_CHUNK",
    "INSERT INTO turn_chunks (turn_id, seq, content, raw_response) VALUES (?, ?, ?, "
    "?)",
    ("turn_id", "seq", "content", "raw_response"),
)
STANDING = Statement(
    "STANDING",
    "SELECT turns.status, turns.owner \n"
    "FROM turns \n"
    "WHERE turns.id = ?",
    ("id",),
    is_read=True,
)
APPEND_REMAINDER = Statement(
    "APPEND_REMAINDER",
    "UPDATE turns SET revision=(turns.revision + 1), "
    "updated_at=max(turns.updated_at, ?), content=(turns.content || ?), "
    "raw_response=(turns.raw_response || ?) WHERE turns.id = ? AND turns.status != "
    "'streaming' AND octet_length(turns.content) = ? AND "
    "octet_length(turns.raw_response) = ? RETURNING response_id",
    ("now", "rest", "raw_rest", "id", "content_bytes", "raw_bytes"),
)
UPDATE_STREAMED = UpdateSome(
    "UPDATE_STREAMED",
    "UPDATE turns SET ",
    (
        Piece("current_tokens=?", ("current_tokens",), when={"current_tokens"}),
        Piece("expected_tokens=?", ("expected_tokens",), when={"expected_tokens"}),
        Piece("input_tokens=?", ("input_tokens",), when={"input_tokens"}),
        Piece("output_tokens=?", ("output_tokens",), when={"output_tokens"}),
        Piece(
            "cache_read_tokens=?",
            ("cache_read_tokens",),
            when={"cache_read_tokens"},
        ),
        Piece(
            "cache_write_tokens=?",
            ("cache_write_tokens",),
            when={"cache_write_tokens"},
        ),
        Piece("input_cost=?", ("input_cost",), when={"input_cost"}),
        Piece("output_cost=?", ("output_cost",), when={"output_cost"}),
        Piece("model=?", ("model",), when={"model"}),
        Piece("revision=(turns.revision + 1)"),
        Piece("updated_at=max(turns.updated_at, ?)", ("now",)),
        Piece("error_message=?", ("error_message",), when={"error_message"}),
        Piece("tool_calls=?", ("tool_calls",), when={"tool_calls"}),
    ),
    (
        Piece("turns.id = ?", ("id",)),
        Piece("turns.revision = coalesce(?, turns.revision)", ("expected_revision",)),
        Piece("turns.owner = ?", ("owner",)),
        Piece("turns.status = 'streaming'"),
    ),
    "",
    settable={
        "cache_read_tokens", "cache_write_tokens", "current_tokens", "error_message",
        "expected_tokens", "input_cost", "input_tokens", "model", "output_cost",
        "output_tokens", "tool_calls",
    },
)
FINISH_STREAMED = UpdateSome(
    "FINISH_STREAMED",
    "UPDATE turns SET ",
    (
        Piece("status=?", ("status",)),
        Piece("owner=NULL"),
        Piece("stream_ended_at=max(turns.stream_started_at, ?)", ("now",)),
        Piece("current_tokens=?", ("current_tokens",), when={"current_tokens"}),
        Piece("expected_tokens=?", ("expected_tokens",), when={"expected_tokens"}),
        Piece("input_tokens=?", ("input_tokens",), when={"input_tokens"}),
        Piece("output_tokens=?", ("output_tokens",), when={"output_tokens"}),
        Piece(
            "cache_read_tokens=?",
            ("cache_read_tokens",),
            when={"cache_read_tokens"},
        ),
        Piece(
            "cache_write_tokens=?",
            ("cache_write_tokens",),
            when={"cache_write_tokens"},
        ),
        Piece("input_cost=?", ("input_cost",), when={"input_cost"}),
        Piece("output_cost=?", ("output_cost",), when={"output_cost"}),
        Piece("model=?", ("model",), when={"model"}),
        Piece("revision=(turns.revision + 1)"),
        Piece("updated_at=max(turns.updated_at, ?)", ("now",)),
        Piece("error_message=?", ("error_message",), when={"error_message"}),
        Piece("tool_calls=?", ("tool_calls",), when={"tool_calls"}),
        Piece(
            "content=(turns.content || coalesce((SELECT group_concat(turn_chunks.content, '' "
            "ORDER BY turn_chunks.seq) AS chunks \n"
            "FROM turn_chunks \n"
            "WHERE turn_chunks.turn_id = turns.id), '') || ?)",
            ("rest",),
        ),
        Piece(
            "raw_response=(turns.raw_response || coalesce((SELECT "
            "group_concat(turn_chunks.raw_response, '' ORDER BY turn_chunks.seq) AS chunks \n"
            "FROM turn_chunks \n"
            "WHERE turn_chunks.turn_id = turns.id), '') || ?)",
            ("raw_rest",),
        ),
    ),
    (
        Piece("turns.id = ?", ("id",)),
        Piece("turns.owner = ?", ("owner",)),
        Piece("turns.status = 'streaming'"),
    ),
    " RETURNING id, response_id, \"index\", CASE WHEN (status = 'streaming') THEN "
    "content || coalesce((SELECT group_concat(turn_chunks.content, '' ORDER BY "
    "turn_chunks.seq) AS chunks \n"
    "FROM turn_chunks \n"
    "WHERE turn_id = id), '') ELSE content END AS content, CASE WHEN (status = "
    "'streaming') THEN raw_response || coalesce((SELECT "
    "group_concat(turn_chunks.raw_response, '' ORDER BY turn_chunks.seq) AS chunks \n"
    "FROM turn_chunks \n"
    "WHERE turn_id = id), '') ELSE raw_response END AS raw_response, tool_calls, "
    "status, error_message, stream_started_at, stream_ended_at, current_tokens, "
    "expected_tokens, input_tokens, output_tokens, cache_read_tokens, "
    "cache_write_tokens, input_cost, output_cost, model, revision, created_at, "
    "updated_at",
    settable={
        "cache_read_tokens", "cache_write_tokens", "current_tokens", "error_message",
        "expected_tokens", "input_cost", "input_tokens", "model", "output_cost",
        "output_tokens", "tool_calls",
    },
)

# -- transfer -------------------------------------------------------------------------------------

INDEX_BY_ROUND = Statement(
    "INDEX_BY_ROUND",
    'SELECT rounds."index" \n'
    "FROM rounds \n"
    "WHERE rounds.id = ?",
    ("id",),
    is_read=True,
)
INDEX_BY_REQUEST = Statement(
    "INDEX_BY_REQUEST",
    'SELECT rounds."index" \n'
    "FROM rounds JOIN requests ON rounds.id = requests.round_id \n"
    "WHERE requests.id = ?",
    ("request_id",),
    is_read=True,
)
INDEX_BY_RESPONSE = Statement(
    "INDEX_BY_RESPONSE",
    'SELECT rounds."index" \n'
    "FROM rounds JOIN responses ON rounds.id = responses.round_id \n"
    "WHERE responses.id = ?",
    ("response_id",),
    is_read=True,
)
ROUND_AT_INDEX = Statement(
    "ROUND_AT_INDEX",
    "SELECT rounds.id \n"
    "FROM rounds \n"
    'WHERE rounds.session_id = ? AND rounds."index" = ?',
    ("session_id", "index"),
    is_read=True,
)
RAISE_ROUND_INDEX = Statement(
    "RAISE_ROUND_INDEX",
    "UPDATE sessions SET next_round_index=max(sessions.next_round_index, ?) WHERE "
    "sessions.id = ?",
    ("next_round_index", "session_id"),
)

# -- turns ----------------------------------------------------------------------------------------

TURN_ID = "turns.id"
INSERT_TURN = RecordInsert(
    "INSERT_TURN",
    'INSERT INTO turns (id, response_id, "index", status, owner, stream_started_at, '
    "stream_ended_at, current_tokens, expected_tokens, input_tokens, output_tokens, "
    "cache_read_tokens, cache_write_tokens, input_cost, output_cost, model, "
    "revision, created_at, updated_at, error_message, tool_calls, content, "
    "raw_response) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, "
    "?, ?, ?, ?)",
    (
        "id", "response_id", "index", "status", "owner", "stream_started_at",
        "stream_ended_at", "current_tokens", "expected_tokens", "input_tokens",
        "output_tokens", "cache_read_tokens", "cache_write_tokens", "input_cost",
        "output_cost", "model", "revision", "created_at", "updated_at", "error_message",
        "tool_calls", "content", "raw_response",
    ),
    (
        "id", "response_id", "index", "status", "stream_started_us", "stream_ended_us",
        "current_tokens", "expected_tokens", "input_tokens", "output_tokens",
        "cache_read_tokens", "cache_write_tokens", "input_cost", "output_cost", "model",
        "revision", "created_us", "updated_us", "error_message", "content",
        "raw_response",
    ),
    ("tool_calls", "owner"),
)
TAKE_TURN_INDEX = Statement(
    "TAKE_TURN_INDEX",
    "UPDATE responses SET next_turn_index=(coalesce(?, responses.next_turn_index) + "
    "1), updated_at=max(responses.updated_at, ?) WHERE responses.id = ? AND "
    "responses.next_turn_index <= coalesce(?, responses.next_turn_index) RETURNING "
    "next_turn_index",
    ("index", "now", "response_id", "index"),
)
RESPONSE_EXISTS = Statement(
    "RESPONSE_EXISTS",
    "SELECT responses.id \n"
    "FROM responses \n"
    "WHERE responses.id = ?",
    ("response_id",),
    is_read=True,
)
TURN_AT_INDEX = Statement(
    "TURN_AT_INDEX",
    "SELECT turns.id \n"
    "FROM turns \n"
    'WHERE turns.response_id = ? AND turns."index" = ?',
    ("response_id", "index"),
    is_read=True,
)
TURN_BY_ID = Statement(
    "TURN_BY_ID",
    'SELECT turns.id, turns.response_id, turns."index", CASE WHEN (turns.status = '
    "'streaming') THEN turns.content || coalesce((SELECT "
    "group_concat(turn_chunks.content, '' ORDER BY turn_chunks.seq) AS chunks \n"
    "FROM turn_chunks \n"
    "WHERE turn_chunks.turn_id = turns.id), '') ELSE turns.content END AS content, "
    "CASE WHEN (turns.status = 'streaming') THEN turns.raw_response || "
    "coalesce((SELECT group_concat(turn_chunks.raw_response, '' ORDER BY "
    "turn_chunks.seq) AS chunks \n"
    "FROM turn_chunks \n"
    "WHERE turn_chunks.turn_id = turns.id), '') ELSE turns.raw_response END AS "
    "raw_response, turns.tool_calls, turns.status, turns.error_message, "
    "turns.stream_started_at, turns.stream_ended_at, turns.current_tokens, "
    "turns.expected_tokens, turns.input_tokens, turns.output_tokens, "
    "turns.cache_read_tokens, turns.cache_write_tokens, turns.input_cost, "
    "turns.output_cost, turns.model, turns.revision, turns.created_at, "
    "turns.updated_at \n"
    "FROM turns \n"
    "WHERE turns.id = ?",
    ("id",),
    is_read=True,
)
LATEST_TURN = Statement(
    "LATEST_TURN",
    'SELECT turns.id, turns.response_id, turns."index", CASE WHEN (turns.status = '
    "'streaming') THEN turns.content || coalesce((SELECT "
    "group_concat(turn_chunks.content, '' ORDER BY turn_chunks.seq) AS chunks \n"
    "FROM turn_chunks \n"
    "WHERE turn_chunks.turn_id = turns.id), '') ELSE turns.content END AS content, "
    "CASE WHEN (turns.status = 'streaming') THEN turns.raw_response || "
    "coalesce((SELECT group_concat(turn_chunks.raw_response, '' ORDER BY "
    "turn_chunks.seq) AS chunks \n"
    "FROM turn_chunks \n"
    "WHERE turn_chunks.turn_id = turns.id), '') ELSE turns.raw_response END AS "
    "raw_response, turns.tool_calls, turns.status, turns.error_message, "
    "turns.stream_started_at, turns.stream_ended_at, turns.current_tokens, "
    "turns.expected_tokens, turns.input_tokens, turns.output_tokens, "
    "turns.cache_read_tokens, turns.cache_write_tokens, turns.input_cost, "
    "turns.output_cost, turns.model, turns.revision, turns.created_at, "
    "turns.updated_at \n"
    "FROM turns \n"
    'WHERE turns.response_id = ? ORDER BY turns."index" DESC\n'
    " LIMIT 1 OFFSET 0",
    ("response_id",),
    is_read=True,
)
TURN_PAGE = Statement(
    "TURN_PAGE",
    'SELECT turns.id, turns.response_id, turns."index", CASE WHEN (turns.status = '
    "'streaming') THEN turns.content || coalesce((SELECT "
    "group_concat(turn_chunks.content, '' ORDER BY turn_chunks.seq) AS chunks \n"
    "FROM turn_chunks \n"
    "WHERE turn_chunks.turn_id = turns.id), '') ELSE turns.content END AS content, "
    "CASE WHEN (turns.status = 'streaming') THEN turns.raw_response || "
    "coalesce((SELECT group_concat(turn_chunks.raw_response, '' ORDER BY "
    "turn_chunks.seq) AS chunks \n"
    "FROM turn_chunks \n"
    "WHERE turn_chunks.turn_id = turns.id), '') ELSE turns.raw_response END AS "
    "raw_response, turns.tool_calls, turns.status, turns.error_message, "
    "turns.stream_started_at, turns.stream_ended_at, turns.current_tokens, "
    "turns.expected_tokens, turns.input_tokens, turns.output_tokens, "
    "turns.cache_read_tokens, turns.cache_write_tokens, turns.input_cost, "
    "turns.output_cost, turns.model, turns.revision, turns.created_at, "
    "turns.updated_at \n"
    "FROM turns \n"
    'WHERE turns.response_id = ? AND turns."index" > ? ORDER BY turns."index"\n'
    " LIMIT ? OFFSET ?",
    ("response_id", "after", "limit", "offset"),
    is_read=True,
)
RESPONSE_OF_TURN = Statement(
    "RESPONSE_OF_TURN",
    "SELECT turns.response_id \n"
    "FROM turns \n"
    "WHERE turns.id = ?",
    ("id",),
    is_read=True,
)
DELETE_TURN = Statement("DELETE_TURN", "DELETE FROM turns WHERE turns.id = ?", ("id",))
STREAMING_STATUS = Statement(
    "STREAMING_STATUS",
    "SELECT responses.id, (SELECT count(*) AS count_1 \n"
    "FROM turns \n"
    "WHERE turns.response_id = responses.id) AS anon_1, (SELECT count(*) AS count_1 \n"
    "FROM turns \n"
    "WHERE turns.response_id = responses.id AND turns.status = 'streaming') AS "
    "anon_2 \n"
    "FROM responses \n"
    "WHERE responses.id = ?",
    ("response_id",),
    is_read=True,
)
UPDATE_TURN = UpdateSome(
    "UPDATE_TURN",
    "UPDATE turns SET ",
    (
        Piece("status=?", ("status",), when={"status"}),
        Piece("current_tokens=?", ("current_tokens",), when={"current_tokens"}),
        Piece("expected_tokens=?", ("expected_tokens",), when={"expected_tokens"}),
        Piece("input_tokens=?", ("input_tokens",), when={"input_tokens"}),
        Piece("output_tokens=?", ("output_tokens",), when={"output_tokens"}),
        Piece(
            "cache_read_tokens=?",
            ("cache_read_tokens",),
            when={"cache_read_tokens"},
        ),
        Piece(
            "cache_write_tokens=?",
            ("cache_write_tokens",),
            when={"cache_write_tokens"},
        ),
        Piece("input_cost=?", ("input_cost",), when={"input_cost"}),
        Piece("output_cost=?", ("output_cost",), when={"output_cost"}),
        Piece("model=?", ("model",), when={"model"}),
        Piece("revision=(turns.revision + 1)"),
        Piece("updated_at=max(turns.updated_at, ?)", ("now",)),
        Piece("error_message=?", ("error_message",), when={"error_message"}),
        Piece("tool_calls=?", ("tool_calls",), when={"tool_calls"}),
        Piece("content=?", ("content",), when={"content"}),
        Piece("raw_response=?", ("raw_response",), when={"raw_response"}),
    ),
    (
        Piece("turns.id = ?", ("id",)),
        Piece("turns.revision = coalesce(?, turns.revision)", ("expected_revision",)),
        Piece(
            "(turns.status = 'streaming' OR turns.status = ?)",
            ("status",),
            when={"status"},
        ),
        Piece(
            "NOT (EXISTS (SELECT * \n"
            "FROM turn_chunks \n"
            "WHERE turn_chunks.turn_id = turns.id))",
            when={"content", "raw_response"},
        ),
    ),
    " RETURNING id, response_id, \"index\", CASE WHEN (status = 'streaming') THEN "
    "content || coalesce((SELECT group_concat(turn_chunks.content, '' ORDER BY "
    "turn_chunks.seq) AS chunks \n"
    "FROM turn_chunks \n"
    "WHERE turn_id = id), '') ELSE content END AS content, CASE WHEN (status = "
    "'streaming') THEN raw_response || coalesce((SELECT "
    "group_concat(turn_chunks.raw_response, '' ORDER BY turn_chunks.seq) AS chunks \n"
    "FROM turn_chunks \n"
    "WHERE turn_id = id), '') ELSE raw_response END AS raw_response, tool_calls, "
    "status, error_message, stream_started_at, stream_ended_at, current_tokens, "
    "expected_tokens, input_tokens, output_tokens, cache_read_tokens, "
    "cache_write_tokens, input_cost, output_cost, model, revision, created_at, "
    "updated_at, EXISTS (SELECT * \n"
    "FROM turn_chunks \n"
    "WHERE turn_id = id) AS has_chunks",
    settable={
        "cache_read_tokens", "cache_write_tokens", "content", "current_tokens",
        "error_message", "expected_tokens", "input_cost", "input_tokens", "model",
        "output_cost", "output_tokens", "raw_response", "status", "tool_calls",
    },
)
END_TURN = UpdateSome(
    "END_TURN",
    "UPDATE turns SET ",
    (
        Piece("status=?", ("status",)),
        Piece("owner=NULL"),
        Piece(
            "stream_ended_at=coalesce(turns.stream_ended_at, max(turns.stream_started_at, ?))",
            ("now",),
        ),
        Piece("current_tokens=?", ("current_tokens",), when={"current_tokens"}),
        Piece("expected_tokens=?", ("expected_tokens",), when={"expected_tokens"}),
        Piece("input_tokens=?", ("input_tokens",), when={"input_tokens"}),
        Piece("output_tokens=?", ("output_tokens",), when={"output_tokens"}),
        Piece(
            "cache_read_tokens=?",
            ("cache_read_tokens",),
            when={"cache_read_tokens"},
        ),
        Piece(
            "cache_write_tokens=?",
            ("cache_write_tokens",),
            when={"cache_write_tokens"},
        ),
        Piece("input_cost=?", ("input_cost",), when={"input_cost"}),
        Piece("output_cost=?", ("output_cost",), when={"output_cost"}),
        Piece("model=?", ("model",), when={"model"}),
        Piece("revision=(turns.revision + 1)"),
        Piece("updated_at=max(turns.updated_at, ?)", ("now",)),
        Piece("error_message=?", ("error_message",), when={"error_message"}),
        Piece("tool_calls=?", ("tool_calls",), when={"tool_calls"}),
        Piece(
            "content=CASE WHEN (turns.status = 'streaming') THEN turns.content || "
            "coalesce((SELECT group_concat(turn_chunks.content, '' ORDER BY turn_chunks.seq) "
            "AS chunks \n"
            "FROM turn_chunks \n"
            "WHERE turn_chunks.turn_id = turns.id), '') ELSE turns.content END",
            unless={"content"},
        ),
        Piece("content=?", ("content",), when={"content"}),
        Piece(
            "raw_response=CASE WHEN (turns.status = 'streaming') THEN turns.raw_response || "
            "coalesce((SELECT group_concat(turn_chunks.raw_response, '' ORDER BY "
            "turn_chunks.seq) AS chunks \n"
            "FROM turn_chunks \n"
            "WHERE turn_chunks.turn_id = turns.id), '') ELSE turns.raw_response END",
            unless={"raw_response"},
        ),
        Piece("raw_response=?", ("raw_response",), when={"raw_response"}),
    ),
    (
        Piece("turns.id = ?", ("id",)),
        Piece("turns.revision = coalesce(?, turns.revision)", ("expected_revision",)),
        Piece("(turns.status = 'streaming' OR turns.status = ?)", ("status",)),
        Piece(
            "NOT (EXISTS (SELECT * \n"
            "FROM turn_chunks \n"
            "WHERE turn_chunks.turn_id = turns.id))",
            when={"content", "raw_response"},
        ),
    ),
    " RETURNING id, response_id, \"index\", CASE WHEN (status = 'streaming') THEN "
    "content || coalesce((SELECT group_concat(turn_chunks.content, '' ORDER BY "
    "turn_chunks.seq) AS chunks \n"
    "FROM turn_chunks \n"
    "WHERE turn_id = id), '') ELSE content END AS content, CASE WHEN (status = "
    "'streaming') THEN raw_response || coalesce((SELECT "
    "group_concat(turn_chunks.raw_response, '' ORDER BY turn_chunks.seq) AS chunks \n"
    "FROM turn_chunks \n"
    "WHERE turn_id = id), '') ELSE raw_response END AS raw_response, tool_calls, "
    "status, error_message, stream_started_at, stream_ended_at, current_tokens, "
    "expected_tokens, input_tokens, output_tokens, cache_read_tokens, "
    "cache_write_tokens, input_cost, output_cost, model, revision, created_at, "
    "updated_at, EXISTS (SELECT * \n"
    "FROM turn_chunks \n"
    "WHERE turn_id = id) AS has_chunks",
    settable={
        "cache_read_tokens", "cache_write_tokens", "content", "current_tokens",
        "error_message", "expected_tokens", "input_cost", "input_tokens", "model",
        "output_cost", "output_tokens", "raw_response", "status", "tool_calls",
    },
)
MARK_TOOL_CALLS = Statement(
    "MARK_TOOL_CALLS",
    "UPDATE turns SET tool_calls=? WHERE turns.id = ?",
    ("tool_calls", "id"),
)

# -- usage ----------------------------------------------------------------------------------------

LOW_BITS = 32
SESSION_USAGE = Statement(
    "SESSION_USAGE",
    "SELECT (SELECT count(*) AS count_1 \n"
    "FROM rounds \n"
    "WHERE rounds.session_id = sessions.id) AS anon_1, count(turns.id) AS count_2, "
    "coalesce(sum(turns.input_tokens >> 32), 0) AS coalesce_1, "
    "coalesce(sum(turns.input_tokens & 4294967295), 0) AS coalesce_2, "
    "coalesce(sum(turns.output_tokens >> 32), 0) AS coalesce_3, "
    "coalesce(sum(turns.output_tokens & 4294967295), 0) AS coalesce_4, "
    "coalesce(sum(turns.cache_read_tokens >> 32), 0) AS coalesce_5, "
    "coalesce(sum(turns.cache_read_tokens & 4294967295), 0) AS coalesce_6, "
    "coalesce(sum(turns.cache_write_tokens >> 32), 0) AS coalesce_7, "
    "coalesce(sum(turns.cache_write_tokens & 4294967295), 0) AS coalesce_8, "
    "coalesce(sum(turns.input_cost), 0.0) AS coalesce_9, "
    "coalesce(sum(turns.output_cost), 0.0) AS coalesce_10 \n"
    "FROM sessions LEFT OUTER JOIN rounds ON sessions.id = rounds.session_id LEFT "
    "OUTER JOIN responses ON rounds.id = responses.round_id LEFT OUTER JOIN turns ON "
    "responses.id = turns.response_id \n"
    "WHERE sessions.id = ? GROUP BY sessions.id",
    ("session_id",),
    is_read=True,
)

# -- workspaces -----------------------------------------------------------------------------------

WORKSPACES = "workspaces"
INSERT_WORKSPACE = RecordInsert(
    "INSERT_WORKSPACE",
    "INSERT INTO workspaces (id, name, path, description, created_at, "
    "last_opened_at) VALUES (?, ?, ?, ?, ?, ?)",
    ("id", "name", "path", "description", "created_at", "last_opened_at"),
    ("id", "name", "path", "description", "created_us", "last_opened_us"),
)
WORKSPACE_BY_ID = Statement(
    "WORKSPACE_BY_ID",
    "SELECT workspaces.id, workspaces.name, workspaces.path, workspaces.description, "
    "workspaces.created_at, workspaces.last_opened_at \n"
    "FROM workspaces \n"
    "WHERE workspaces.id = ?",
    ("id",),
    is_read=True,
)
WORKSPACE_BY_NAME = Statement(
    "WORKSPACE_BY_NAME",
    "SELECT workspaces.id, workspaces.name, workspaces.path, workspaces.description, "
    "workspaces.created_at, workspaces.last_opened_at \n"
    "FROM workspaces \n"
    "WHERE workspaces.name = ?",
    ("name",),
    is_read=True,
)
ALL_WORKSPACES = Statement(
    "ALL_WORKSPACES",
    "SELECT workspaces.id, workspaces.name, workspaces.path, workspaces.description, "
    "workspaces.created_at, workspaces.last_opened_at \n"
    "FROM workspaces ORDER BY workspaces.name",
    is_read=True,
)
OPEN_WORKSPACE = Statement(
    "OPEN_WORKSPACE",
    "UPDATE workspaces SET path=?, last_opened_at=? WHERE workspaces.id = ? "
    "RETURNING id, name, path, description, created_at, last_opened_at",
    ("path", "now", "id"),
)
MOVE_WORKSPACE = Statement(
    "MOVE_WORKSPACE",
    "UPDATE workspaces SET path=?, description=coalesce(?, workspaces.description) "
    "WHERE workspaces.id = ? RETURNING id, name, path, description, created_at, "
    "last_opened_at",
    ("path", "description", "id"),
)
DELETE_WORKSPACE = Statement(
    "DELETE_WORKSPACE",
    "DELETE FROM workspaces WHERE workspaces.id = ?",
    ("id",),
)
REGISTRAR = Statement(
    "REGISTRAR",
    "SELECT meta.value \n"
    "FROM meta \n"
    'WHERE meta."key" = ?',
    ("key",),
    is_read=True,
)
REGISTRARS = Statement(
    "REGISTRARS",
    'SELECT meta."key", meta.value \n'
    "FROM meta \n"
    'WHERE meta."key" >= ? AND meta."key" < ?',
    ("first", "end"),
    is_read=True,
)
PUT_REGISTRAR = Statement(
    "PUT_REGISTRAR",
    'INSERT INTO meta ("key", value) VALUES (?, ?) ON CONFLICT ("key") DO UPDATE SET '
    "value = excluded.value",
    ("key", "value"),
)
DELETE_REGISTRAR = Statement(
    "DELETE_REGISTRAR",
    'DELETE FROM meta WHERE meta."key" = ?',
    ("key",),
)
