"""Limits that more than one room keeps to, each with its reason."""

# Capacity is sold at most this far ahead: six months, as the nearest peers do; `settings` may say less.
HORIZON_DAYS = 180
GPUS_PER_REQUEST_MAX = 100_000  # the largest fleet the calendar was measured with
TURN_ROUND_SECONDS_MAX = 86_400  # a machine that needs more than a day for itself is not on offer
LIST_LIMIT_DEFAULT = 50
LIST_LIMIT_MAX = 200
# The largest honest body is a reservation with 20 SSH keys: 20 KiB.
REQUEST_BODY_BYTES_MAX = 64 * 1024
SSH_KEYS_MAX = 20
SSH_KEY_LENGTH_MAX = 16_384  # an RSA-16384 key takes about 2,800 characters; certificates take more
TAGS_MAX = 50
TAG_KEY_LENGTH_MAX = 128  # of a required one, as AWS and FOCUS readers have it; others may have 200
TAG_VALUE_LENGTH_MAX = 256
NAME_LENGTH_MAX = 200
