"""The functions of MySQL's and MariaDB's own that change nothing in the session, and the words that are no function.

MariaDB lists its functions in information_schema.SQL_FUNCTIONS; the rest is in the manuals.
Not among them, as it changes the session: GET_LOCK. `LAST_INSERT_ID` and `LASTVAL` are: what they show is overwritten
by the next statement that makes such a number.
"""

from __future__ import annotations

__all__ = ["HARMLESS_FUNCTIONS", "HARMLESS_PREFIXES", "NOT_CALLS"]

HARMLESS_PREFIXES = ("st_", "mbr")
"""Of geometry: there are more than a hundred."""

HARMLESS_FUNCTIONS = frozenset(
    """
    abs acos add_months adddate addtime aes_decrypt aes_encrypt against any_value ascii asin atan atan2 avg
    benchmark bin bin_to_uuid binlog_gtid_pos bit_and bit_count bit_length bit_or bit_xor boolean cast ceil ceiling
    char char_length character_length charset chr coalesce coercibility collation column_add column_check
    column_create column_delete column_exists column_get column_json column_list compress concat concat_ws
    connection_id conv convert convert_tz cos cot count crc32 crc32c cume_dist curdate current_date current_role
    current_time current_timestamp current_user curtime database date date_add date_format date_sub datediff
    datetime day dayname dayofmonth dayofweek dayofyear decode decode_histogram degrees dense_rank des_decrypt
    des_encrypt elt encode encrypt enum exp export_set extract extractvalue field find_in_set first_value floor
    format format_bytes format_pico_time found_rows from_base64 from_days from_unixtime from_vector
    geometrycollection get_format greatest group_concat grouping gtid_subset gtid_subtract hex hour icu_version if
    ifnull inet4 inet6 inet6_aton inet6_ntoa inet_aton inet_ntoa insert instr interval is_free_lock is_ipv4
    is_ipv4_compat is_ipv4_mapped is_ipv6 is_used_lock is_uuid isnull json_array json_array_append json_array_insert
    json_arrayagg json_compact json_contains json_contains_path json_depth json_detailed json_equals json_exists
    json_extract json_insert json_keys json_length json_loose json_merge json_merge_patch json_merge_preserve
    json_normalize json_object json_objectagg json_overlaps json_pretty json_query json_quote json_remove
    json_replace json_schema_valid json_schema_validation_report json_search json_set json_storage_free
    json_storage_size json_table json_type json_unquote json_valid json_value kdf lag last_day last_insert_id
    last_value lastval lcase lead least left length lengthb linestring ln load_file localtime localtimestamp locate
    log log10 log2 lower lpad ltrim make_set makedate maketime master_gtid_wait master_pos_wait match max md5 median
    microsecond mid min minute mod month monthname multilinestring multipoint multipolygon name_const
    natural_sort_key nextval now nth_value ntile nullif nvl nvl2 oct octet_length old_password ord password
    percent_rank percentile_cont percentile_disc period_add period_diff pi point polygon position pow power
    ps_current_thread_id ps_thread_id quarter quote radians rand random_bytes rank regexp_instr regexp_like
    regexp_replace regexp_substr release_all_locks release_lock repeat replace reverse right round row row_count
    row_number rownum rpad rtrim schema schemas sec_to_time second session_user setval sformat sha sha1 sha2 sign
    sin sleep soundex source_pos_wait space sqrt statement_digest statement_digest_text std stddev stddev_pop
    stddev_samp str_to_date strcmp string_to_vector subdate substr substring substring_index subtime sum sys_guid
    sysdate system_user tan time time_format time_to_sec timediff timestamp timestampadd timestampdiff to_base64
    to_char to_date to_days to_number to_seconds to_vector trim truncate ucase uncompress uncompressed_length unhex
    unix_timestamp updatexml upper user utc_date utc_time utc_timestamp uuid uuid_short uuid_to_bin uuid_v4 uuid_v7
    validate_password_strength value values var_pop var_samp variance vec_distance vec_distance_cosine
    vec_distance_euclidean vec_fromtext vec_totext vector_dim vector_to_string version wait_for_executed_gtid_set
    week weekday weekofyear weight_string wsrep_last_seen_gtid wsrep_last_written_gtid wsrep_sync_wait_upto_gtid
    year yearweek
    """.split()  # noqa: SIM905
)

NOT_CALLS = frozenset(
    """
    all always and any as between bigint binary bit blob by case char check collate columns constraint cross data
    dec decimal default delayed distinct distinctrow div double dual duplicate else end escape except exists fields
    fixed float for force foreign from fulltext generated group having high_priority identified ignore in index
    infile inner int integer intersect into is join json key keys lateral like limit lines low_priority mediumint
    minus mod natural nchar not numeric nvarchar offset on or order outer over partition path primary quick real
    recursive references regexp return returning rlike row rows select set signed smallint some sounds spatial
    sql_big_result sql_buffer_result sql_calc_found_rows sql_no_cache sql_small_result starting straight_join table
    terminated text then tinyint union unique unsigned update use using value values varbinary varchar when where
    window with within xor
    """.split()  # noqa: SIM905
)
"""Words that may stand before a bracket without being called."""
