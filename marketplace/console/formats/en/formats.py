"""How pages write instants: ISO 8601 with seconds, and the zone that they are in, UTC."""

DATETIME_FORMAT = r"Y-m-d H:i:s \U\T\C"
DATE_FORMAT = "Y-m-d"
TIME_FORMAT = "H:i:s"
