"""The apps that `benchmarks.requests` serves: a framework and a way to come by a connection each.

A file is called `<framework>_<peer>.py`, and its attribute `app` is what a server takes. It is written as the peer's
own documentation would have it; the first line of its docstring is the name of its row. In the environment it finds

    BENCH_DSN         the database, as libpq's URL
    BENCH_POOL_SIZE   how many connections the process may have

and the tables of `benchmarks.requests.database`: items (id, name), hits (id, item_id). It answers, in JSON,

    GET /hello        {"hello": "world"}, without a connection
    GET /item/{id}    {"id": .., "name": ..}: one SELECT by primary key
    GET /hit          {"id": ..}: one transaction of INSERT INTO hits (item_id) VALUES (1) RETURNING id,
                      and SELECT name FROM items WHERE id = 1
"""
