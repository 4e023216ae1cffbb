"""One small shop, three times: Flask, Django, FastAPI. Copy from the one that is yours.

flask_shop  django_shop  fastapi_shop    the shops; each folder has a README of its own
serve        starts one of them with all that it needs: `python3 run.py serve flask`
database     the tables and the first products        pricing    an HTTP API to ask for prices
demo         what `python3 run.py demo` shows
"""
