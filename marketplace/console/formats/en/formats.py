"""How pages write instants: ISO 8601 with seconds, in UTC, as the API does."""

DATETIME_FORMAT = "Y-m-d H:i:s"
DATE_FORMAT = "Y-m-d"
TIME_FORMAT = "H:i:s"
