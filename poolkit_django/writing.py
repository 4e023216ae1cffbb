"""Whether a statement may write, read from its text alone; in doubt it may.

It is asked for statements on a primary that has replicas. A wrong yes costs a request one round trip, and has the rest
of it read the primary; a wrong no has a client miss what it wrote itself.

A text that only reads begins with a word that reads, at its start and after each semicolon, has no word in it that
changes rows, and calls only functions that are known to read. Literals, comments and quoted names are no words. The
text is read once from left to right: no part of the expression can match the same characters in two ways.
"""

from __future__ import annotations

import re
from functools import lru_cache

__all__ = ["surely_writes", "writes"]

_LONGEST = 10_000  # characters; a longer text is read each time, for to remember it would keep it in memory

_TOKEN = re.compile(
    r"""
      --[^\n]*+
    | /\*(?P<doubt>!)?+(?:[^*]|\*(?!/))*+(?:\*/|(?P<open>\Z))  # MySQL runs what stands in /*! */
    | '\\'                                                     # as in ESCAPE '\'
    | '(?:[^'\\]|'')*+(?:'|(?P<literal>\\|\Z))                 # a backslash ends a literal, or not, by a setting
    | (?P<quoted>"(?:[^"]|"")*+"|`[^`]*+`)(?P<called>\s*+\()?+
    | \$(?P<tag>(?:[^\W\d]\w*+)?+)\$(?P<dollar>)
    | (?P<word>[^\W\d][\w$]*+(?:\s*+\.\s*+[^\W\d][\w$]*+)*+)(?P<call>\s*+\()?+
    | \d[\w.]*+
    | (?P<end>;)
    """,
    re.VERBOSE,
)


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_FIRST = _words("""
    SELECT WITH VALUES TABLE EXPLAIN SHOW FETCH MOVE CLOSE DECLARE SET RESET BEGIN START SAVEPOINT RELEASE ROLLBACK
    COMMIT PRAGMA LISTEN UNLISTEN DEALLOCATE DISCARD LOCK DESCRIBE DESC USE
""")
_CHANGES = _words("""
    INSERT DELETE MERGE TRUNCATE INTO REPLACE CALL EXECUTE CREATE NEXTVAL
""")
_BEFORE_A_LOCK = frozenset({"FOR", "KEY"})  # FOR UPDATE, FOR NO KEY UPDATE

_SURE = _words("""
    INSERT UPDATE DELETE MERGE REPLACE TRUNCATE CREATE ALTER DROP
""")

# Words in front of a bracket that call nothing, and types with a length.
_NO_CALLS = _words("""
    ALL AND ANY ARRAY AS BETWEEN BY CASE CROSS CUBE DISTINCT ELSE ESCAPE EXCEPT EXISTS FETCH FILTER FROM GROUPING
    HAVING ILIKE IN INTERSECT IS JOIN LATERAL LIKE LIMIT MATERIALIZED NOT OFFSET ON OR OVER PARTITION RECURSIVE
    ROLLUP ROW SELECT SETS SIMILAR SOME TABLE THEN UNION USING VALUES WHEN WHERE WITH WITHIN GROUP BIGINT BINARY BIT
    BLOB BOOLEAN CHAR CHARACTER DATE DATETIME DECIMAL DOUBLE FLOAT INT INTEGER INTERVAL NUMERIC PRECISION REAL
    SIGNED SMALLINT TEXT TIME TIMESTAMP TIMESTAMPTZ UNSIGNED UUID VARBINARY VARCHAR VARYING ZONE COSTS FORMAT
    ANALYZE VERBOSE BUFFERS SUMMARY TIMING WAL SETTINGS EXPLAIN
""")
# Functions that only read: what the ORM of Django writes, and what is usual in SQL by hand.
_READING = _words("""
    COUNT SUM MAX MIN AVG STDDEV STDDEV_POP STDDEV_SAMP VARIANCE VAR_POP VAR_SAMP CORR COVAR_POP COVAR_SAMP
    REGR_AVGX REGR_AVGY REGR_COUNT REGR_INTERCEPT REGR_R2 REGR_SLOPE REGR_SXX REGR_SXY REGR_SYY ANY_VALUE ARRAY_AGG
    STRING_AGG GROUP_CONCAT BIT_AND BIT_OR BIT_XOR BOOL_AND BOOL_OR EVERY JSON_AGG JSONB_AGG JSON_OBJECT_AGG
    JSONB_OBJECT_AGG JSON_ARRAYAGG JSON_OBJECTAGG XMLAGG MODE PERCENTILE_CONT PERCENTILE_DISC ROW_NUMBER RANK
    DENSE_RANK PERCENT_RANK CUME_DIST NTILE LAG LEAD FIRST_VALUE LAST_VALUE NTH_VALUE CAST CONVERT TRY_CAST COALESCE
    NULLIF IFNULL ISNULL IF IIF GREATEST LEAST COLLATE LOWER UPPER INITCAP LENGTH CHAR_LENGTH CHARACTER_LENGTH
    OCTET_LENGTH BIT_LENGTH CONCAT CONCAT_WS SUBSTRING SUBSTR SUBSTRING_INDEX LEFT RIGHT LPAD RPAD LTRIM RTRIM TRIM
    BTRIM REPEAT REVERSE STRPOS POSITION LOCATE INSTR ASCII CHR ORD SPLIT_PART TRANSLATE STARTS_WITH FORMAT_TYPE
    TO_CHAR TO_DATE TO_NUMBER TO_TIMESTAMP TO_HEX HEX UNHEX QUOTE QUOTE_IDENT QUOTE_LITERAL QUOTE_NULLABLE
    REGEXP_MATCH REGEXP_MATCHES REGEXP_REPLACE REGEXP_SPLIT_TO_ARRAY REGEXP_SPLIT_TO_TABLE REGEXP_LIKE REGEXP_SUBSTR
    REGEXP_INSTR REGEXP_COUNT UNACCENT SIMILARITY WORD_SIMILARITY STRICT_WORD_SIMILARITY LEVENSHTEIN SOUNDEX MD5 SHA
    SHA1 SHA2 SHA224 SHA256 SHA384 SHA512 ENCODE DECODE DIGEST ABS ACOS ASIN ATAN ATAN2 CEIL CEILING COS COT DEGREES
    DIV EXP FLOOR LN LOG LOG10 LOG2 MOD PI POWER POW RADIANS RAND RANDOM ROUND SIGN SIN SQRT TAN TRUNC WIDTH_BUCKET
    GEN_RANDOM_UUID UUID NOW CURRENT_DATE CURRENT_TIME CURRENT_TIMESTAMP LOCALTIME LOCALTIMESTAMP
    STATEMENT_TIMESTAMP TRANSACTION_TIMESTAMP CLOCK_TIMESTAMP SYSDATE CURDATE CURTIME UTC_TIMESTAMP EXTRACT
    DATE_PART DATE_TRUNC DATE_BIN DATE_FORMAT DATE_ADD DATE_SUB DATEDIFF TIMESTAMPDIFF TIMESTAMPADD ADDDATE SUBDATE
    ADDTIME SUBTIME TIMEDIFF TIME_FORMAT STR_TO_DATE STRFTIME JULIANDAY UNIXEPOCH UNIX_TIMESTAMP FROM_UNIXTIME
    CONVERT_TZ TIMEZONE AGE MAKE_DATE MAKE_TIME MAKE_TIMESTAMP MAKE_INTERVAL ISFINITE DAY MONTH YEAR HOUR MINUTE
    SECOND MICROSECOND WEEK WEEKDAY DAYOFWEEK DAYOFMONTH DAYOFYEAR WEEKOFYEAR QUARTER LAST_DAY MAKEDATE MAKETIME
    GENERATE_SERIES UNNEST ARRAY_LENGTH ARRAY_POSITION ARRAY_TO_STRING ARRAY_TO_JSON ARRAY_REMOVE ARRAY_APPEND
    ARRAY_CAT ARRAY_UPPER CARDINALITY STRING_TO_ARRAY LOWER_INC UPPER_INC LOWER_INF UPPER_INF ISEMPTY RANGE_MERGE
    INT4RANGE INT8RANGE NUMRANGE TSRANGE TSTZRANGE DATERANGE TO_JSON TO_JSONB ROW_TO_JSON JSON JSON_ARRAY
    JSON_OBJECT JSON_BUILD_ARRAY JSON_BUILD_OBJECT JSONB_BUILD_ARRAY JSONB_BUILD_OBJECT JSON_EXTRACT JSON_UNQUOTE
    JSON_QUOTE JSON_VALID JSON_TYPE JSON_LENGTH JSON_CONTAINS JSON_CONTAINS_PATH JSON_KEYS JSON_VALUE JSON_EACH
    JSON_TREE JSON_ARRAY_LENGTH JSON_EXTRACT_PATH JSON_EXTRACT_PATH_TEXT JSONB_EXTRACT_PATH JSONB_EXTRACT_PATH_TEXT
    JSONB_SET JSONB_TYPEOF JSON_TYPEOF JSONB_ARRAY_LENGTH JSONB_ARRAY_ELEMENTS JSONB_ARRAY_ELEMENTS_TEXT
    JSON_ARRAY_ELEMENTS JSONB_EACH JSONB_EACH_TEXT JSON_OBJECT_KEYS JSONB_OBJECT_KEYS JSONB_PATH_QUERY
    JSONB_PATH_EXISTS JSONB_STRIP_NULLS TO_TSVECTOR TO_TSQUERY PLAINTO_TSQUERY PHRASETO_TSQUERY WEBSEARCH_TO_TSQUERY
    SETWEIGHT TS_RANK TS_RANK_CD TS_HEADLINE TSVECTOR TSQUERY MATCH AGAINST HSTORE AKEYS AVALS CURRENT_SETTING
    CURRENT_SCHEMA CURRENT_SCHEMAS CURRENT_DATABASE DATABASE SCHEMA USER VERSION PG_BACKEND_PID CONNECTION_ID
    PG_IS_IN_RECOVERY PG_GET_SERIAL_SEQUENCE PG_TYPEOF PG_TABLE_IS_VISIBLE PG_GET_EXPR PG_GET_INDEXDEF
    PG_GET_CONSTRAINTDEF PG_RELATION_SIZE PG_TOTAL_RELATION_SIZE PG_TABLE_SIZE PG_DATABASE_SIZE PG_SIZE_PRETTY
    OBJ_DESCRIPTION COL_DESCRIPTION FORMAT TO_REGCLASS HAS_TABLE_PRIVILEGE PG_LAST_WAL_REPLAY_LSN
    PG_CURRENT_WAL_INSERT_LSN PG_CURRENT_WAL_LSN PG_SLEEP PG_SLEEP_FOR PG_SLEEP_UNTIL
""")
# Functions whose names are also words that change rows: MySQL's and everybody's text functions.
_ALSO_CALLED = frozenset({"REPLACE", "INSERT", "TRUNCATE"})


def writes(statement: object) -> bool:
    """Return whether a statement may write; in doubt it may.

    What a view, a trigger or an operator does is not seen: that is for `poolkit_django.routers.wrote()`.

    Args:
        statement: The text, or bytes. What is composed by a library's own classes counts as a write.
    """
    if isinstance(statement, bytes):
        statement = statement.decode(errors="replace")
    if not isinstance(statement, str):
        return True
    return _remembered(statement) if len(statement) <= _LONGEST else _writes(statement)


def surely_writes(statement: object) -> bool:
    """Return whether a statement begins with a word that changes rows or tables; in doubt it does not.

    For a refusal: a read that calls an unknown function must not be refused as a write.

    Args:
        statement: The text, or bytes.
    """
    text = statement.decode(errors="replace") if isinstance(statement, bytes) else statement
    if not isinstance(text, str):
        return False
    at = 0
    while (token := _TOKEN.search(text, at)) is not None:
        if token.lastgroup in {"word", "call"}:
            return token["word"].upper() in _SURE
        if token.lastgroup is not None:
            return False
        at = token.end()
    return False


def _writes(text: str) -> bool:
    """Read a text token by token; each is read once."""
    first, before, at = True, "", 0
    while (token := _TOKEN.search(text, at)) is not None:
        at = token.end()
        kind = token.lastgroup
        if kind in {"word", "call"}:
            word = token["word"].upper()
            if first and word not in _FIRST:
                return True
            if _is_doubtful(word, before, called=kind == "call"):
                return True
            first, before = False, word
        elif kind == "end":
            first, before = True, ""
        elif kind == "dollar":
            at = _end_of_dollar_quote(text, token)
        elif kind is not None and kind != "quoted":  # a bracket after a quoted name, or what has no end
            return True
    return False


def _is_doubtful(word: str, before: str, *, called: bool) -> bool:
    if called:
        name = word.rpartition(".")[2].strip() if word.startswith("PG_CATALOG.") else word
        return not (name in _NO_CALLS or name in _READING or name in _ALSO_CALLED)
    return word in _CHANGES or (word == "UPDATE" and before not in _BEFORE_A_LOCK)


def _end_of_dollar_quote(text: str, start: re.Match[str]) -> int:
    end = text.find(start[0], start.end())
    return len(text) if end < 0 else end + len(start[0])


_remembered = lru_cache(maxsize=1024)(_writes)
