"""The demonstration behind `python3 run.py demo`: real servers, real traffic, pulled plugs, the database as witness."""
