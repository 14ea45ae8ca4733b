"""What a new file gets. Made by ``make sql`` from ``schema.py`` and ``migrations/``."""

# fmt: off

CREATED_BY = "mandrake_sessions 0.1.0"
REVISIONS = ("0001",)
SCHEMA = (
    (
        "CREATE TABLE alembic_version (\n"
        "\tversion_num VARCHAR(32) NOT NULL, \n"
        "\tCONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)\n"
        ")\n"
        "\n"
    ),
    (
        "CREATE TABLE sessions (\n"
        "\tid TEXT NOT NULL, \n"
        "\ttitle TEXT, \n"
        "\tdescription TEXT, \n"
        "\tmetadata TEXT NOT NULL, \n"
        "\tnext_round_index INTEGER NOT NULL CONSTRAINT ck_sessions_next_round_index "
        'CHECK ("next_round_index" >= 0), \n'
        "\trevision INTEGER NOT NULL, \n"
        "\tcreated_at INTEGER NOT NULL, \n"
        "\tupdated_at INTEGER NOT NULL, \n"
        "\tCONSTRAINT pk_sessions PRIMARY KEY (id)\n"
        ")\n"
        " STRICT\n"
        "\n"
    ),
    "CREATE INDEX ix_sessions_updated_at_id ON sessions (updated_at, id)",
    (
        "CREATE TABLE rounds (\n"
        "\tid TEXT NOT NULL, \n"
        "\tsession_id TEXT NOT NULL, \n"
        '\t"index" INTEGER NOT NULL CONSTRAINT ck_rounds_index CHECK ("index" >= 0), \n'
        "\tcreated_at INTEGER NOT NULL, \n"
        "\tupdated_at INTEGER NOT NULL, \n"
        "\tCONSTRAINT pk_rounds PRIMARY KEY (id), \n"
        '\tCONSTRAINT uq_rounds_session_id_index UNIQUE (session_id, "index"), \n'
        "\tCONSTRAINT fk_rounds_session_id_sessions FOREIGN KEY(session_id) REFERENCES "
        "sessions (id) ON DELETE CASCADE\n"
        ")\n"
        " STRICT\n"
        "\n"
    ),
    (
        "CREATE TABLE requests (\n"
        "\tid TEXT NOT NULL, \n"
        "\tround_id TEXT NOT NULL, \n"
        "\tcontent TEXT NOT NULL, \n"
        "\tcreated_at INTEGER NOT NULL, \n"
        "\tupdated_at INTEGER NOT NULL, \n"
        "\tCONSTRAINT pk_requests PRIMARY KEY (id), \n"
        "\tCONSTRAINT uq_requests_round_id UNIQUE (round_id), \n"
        "\tCONSTRAINT fk_requests_round_id_rounds FOREIGN KEY(round_id) REFERENCES rounds "
        "(id) ON DELETE CASCADE\n"
        ")\n"
        " STRICT\n"
        "\n"
    ),
    (
        "CREATE TABLE responses (\n"
        "\tid TEXT NOT NULL, \n"
        "\tround_id TEXT NOT NULL, \n"
        "\tnext_turn_index INTEGER NOT NULL CONSTRAINT ck_responses_next_turn_index CHECK "
        '("next_turn_index" >= 0), \n'
        "\tcreated_at INTEGER NOT NULL, \n"
        "\tupdated_at INTEGER NOT NULL, \n"
        "\tCONSTRAINT pk_responses PRIMARY KEY (id), \n"
        "\tCONSTRAINT uq_responses_round_id UNIQUE (round_id), \n"
        "\tCONSTRAINT fk_responses_round_id_rounds FOREIGN KEY(round_id) REFERENCES "
        "rounds (id) ON DELETE CASCADE\n"
        ")\n"
        " STRICT\n"
        "\n"
    ),
    (
        "CREATE TABLE turns (\n"
        "\tid TEXT NOT NULL, \n"
        "\tresponse_id TEXT NOT NULL, \n"
        '\t"index" INTEGER NOT NULL CONSTRAINT ck_turns_index CHECK ("index" >= 0), \n'
        "\tstatus TEXT NOT NULL CONSTRAINT ck_turns_status CHECK (status IN ('streaming', "
        "'completed', 'error', 'interrupted')), \n"
        "\towner TEXT, \n"
        "\tstream_started_at INTEGER NOT NULL, \n"
        "\tstream_ended_at INTEGER, \n"
        "\tcurrent_tokens INTEGER NOT NULL CONSTRAINT ck_turns_current_tokens CHECK "
        '("current_tokens" >= 0), \n'
        "\texpected_tokens INTEGER CONSTRAINT ck_turns_expected_tokens CHECK "
        '("expected_tokens" >= 0), \n'
        "\tinput_tokens INTEGER NOT NULL CONSTRAINT ck_turns_input_tokens CHECK "
        '("input_tokens" >= 0), \n'
        "\toutput_tokens INTEGER NOT NULL CONSTRAINT ck_turns_output_tokens CHECK "
        '("output_tokens" >= 0), \n'
        "\tcache_read_tokens INTEGER CONSTRAINT ck_turns_cache_read_tokens CHECK "
        '("cache_read_tokens" >= 0), \n'
        "\tcache_write_tokens INTEGER CONSTRAINT ck_turns_cache_write_tokens CHECK "
        '("cache_write_tokens" >= 0), \n'
        "\tinput_cost REAL NOT NULL, \n"
        "\toutput_cost REAL NOT NULL, \n"
        "\tmodel TEXT, \n"
        "\trevision INTEGER NOT NULL, \n"
        "\tcreated_at INTEGER NOT NULL, \n"
        "\tupdated_at INTEGER NOT NULL, \n"
        "\terror_message TEXT, \n"
        "\ttool_calls TEXT NOT NULL, \n"
        "\tcontent TEXT NOT NULL, \n"
        "\traw_response TEXT NOT NULL, \n"
        "\tCONSTRAINT pk_turns PRIMARY KEY (id), \n"
        '\tCONSTRAINT uq_turns_response_id_index UNIQUE (response_id, "index"), \n'
        "\tCONSTRAINT ck_turns_ended_when_finished CHECK ((status = 'streaming') = "
        "(stream_ended_at IS NULL)), \n"
        "\tCONSTRAINT fk_turns_response_id_responses FOREIGN KEY(response_id) REFERENCES "
        "responses (id) ON DELETE CASCADE\n"
        ")\n"
        " STRICT\n"
        "\n"
    ),
    (
        "CREATE INDEX ix_turns_streaming ON turns (response_id) WHERE status = "
        "'streaming'"
    ),
    (
        "CREATE TABLE turn_chunks (\n"
        "\tturn_id TEXT NOT NULL, \n"
        "\tseq INTEGER NOT NULL, \n"
        "\tcontent TEXT NOT NULL, \n"
        "\traw_response TEXT NOT NULL, \n"
        "\tCONSTRAINT pk_turn_chunks PRIMARY KEY (turn_id, seq), \n"
        "\tCONSTRAINT fk_turn_chunks_turn_id_turns FOREIGN KEY(turn_id) REFERENCES turns "
        "(id) ON DELETE CASCADE\n"
        ")\n"
        " WITHOUT ROWID,\n"
        " STRICT\n"
        "\n"
    ),
    (
        "CREATE TABLE changes (\n"
        "\tseq INTEGER NOT NULL, \n"
        "\tsession_id TEXT NOT NULL, \n"
        "\tentity TEXT NOT NULL CONSTRAINT ck_changes_entity CHECK (entity IN ('session', "
        "'round', 'request', 'turn')), \n"
        "\tid TEXT NOT NULL, \n"
        "\top TEXT NOT NULL CONSTRAINT ck_changes_op CHECK (op IN ('create', 'update', "
        "'delete')), \n"
        "\tCONSTRAINT pk_changes PRIMARY KEY (seq)\n"
        ")\n"
        " STRICT\n"
        "\n"
    ),
    (
        "CREATE TABLE meta (\n"
        '\t"key" TEXT NOT NULL, \n'
        "\tvalue TEXT NOT NULL, \n"
        '\tCONSTRAINT pk_meta PRIMARY KEY ("key")\n'
        ")\n"
        " WITHOUT ROWID,\n"
        " STRICT\n"
        "\n"
    ),
    (
        "CREATE TABLE workspaces (\n"
        "\tid TEXT NOT NULL, \n"
        "\tname TEXT NOT NULL, \n"
        "\tpath TEXT NOT NULL, \n"
        "\tdescription TEXT, \n"
        "\tcreated_at INTEGER NOT NULL, \n"
        "\tlast_opened_at INTEGER, \n"
        "\tCONSTRAINT pk_workspaces PRIMARY KEY (id), \n"
        "\tCONSTRAINT uq_workspaces_name UNIQUE (name), \n"
        "\tCONSTRAINT uq_workspaces_path UNIQUE (path)\n"
        ")\n"
        " STRICT\n"
        "\n"
    ),
)
