"""Two primaries, each with a replica, and a third database with none; another router says what lives where."""

from replica_settings import *  # noqa: F403
from replica_settings import DATABASES as FOUND

DATABASES = {
    "default": FOUND["default"],
    "replica1": FOUND["replica1"],
    "second": {**FOUND["default"], "OPTIONS": {**FOUND["default"]["OPTIONS"], "application_name": "second"}},
    "second_replica": {**FOUND["replica2"], "TEST": {"MIRROR": "second"}},
    "archive": {**FOUND["default"], "OPTIONS": {**FOUND["default"]["OPTIONS"], "application_name": "archive"}},
}
DATABASE_ROUTERS = ["poolkit_django.routers.ReplicaRouter", "places.Places"]
POOLKIT_REPLICAS = {"default": ["replica1"], "second": ["second_replica"]}
