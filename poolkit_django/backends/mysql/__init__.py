"""MySQL and MariaDB through mysqlclient or PyMySQL, pooled: ENGINE = "poolkit_django.backends.mysql"."""
