"""All settings of the market in one file. Each is read from the environment through a typed reader."""

import re
from pathlib import Path

from django.core.exceptions import ImproperlyConfigured

from marketplace.core import limits
from marketplace.env import env

BASE_DIR = Path(__file__).resolve().parent.parent

# `demo` is what `manage.py up` runs on a bare machine; `production` refuses what only a demo may do.
PROFILE = env.choice(
    "HEADROOM_PROFILE", default="production", choices=("demo", "production", "test")
)
IS_PRODUCTION = PROFILE == "production"
DATA_DIR = Path(env.text("HEADROOM_DATA_DIR", default=str(BASE_DIR / "var")))
BASE_URL = env.text("HEADROOM_BASE_URL", default="http://127.0.0.1:8000")

DEMO_SECRET_KEY = "headroom-demo-secret-key-that-production-refuses"  # noqa: S105 - refused below
SECRET_KEY = env.text(
    "SECRET_KEY", default=None if IS_PRODUCTION else DEMO_SECRET_KEY, secret_length_min=32
)
if IS_PRODUCTION and SECRET_KEY == DEMO_SECRET_KEY:
    raise ImproperlyConfigured(
        "SECRET_KEY is the demo's; set one of your own of 50 random characters"
    )
DEBUG = env.switch("DEBUG", default=False)
if IS_PRODUCTION and DEBUG:
    raise ImproperlyConfigured("DEBUG must be false in production: its error pages show secrets")
ALLOWED_HOSTS = env.words(
    "ALLOWED_HOSTS", default=() if IS_PRODUCTION else ("127.0.0.1", "localhost", "[::1]")
)
if IS_PRODUCTION and not ALLOWED_HOSTS:
    raise ImproperlyConfigured("ALLOWED_HOSTS is not set; it should look like market.example.com")
CSRF_TRUSTED_ORIGINS = [BASE_URL]
SECURE_PROXY_SSL_HEADER = (
    ("HTTP_X_FORWARDED_PROTO", "https")
    if env.switch("TRUST_FORWARDED_PROTO", default=False)
    else None
)
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = IS_PRODUCTION

# --- the market ------------------------------------------------------------------------------------
GRID_SECONDS = env.integer(
    "HEADROOM_GRID_SECONDS", default=60 if PROFILE == "demo" else 3600, minimum=60, maximum=3600
)
if 3600 % GRID_SECONDS:
    raise ImproperlyConfigured(
        "HEADROOM_GRID_SECONDS must divide an hour: 60, 300, 900, 1800 or 3600"
    )
CURRENCY = env.choice(
    "HEADROOM_CURRENCY", default="usd", choices=("usd", "eur", "gbp", "jpy", "kwd")
)
ALLOW_SIMULATED_HARDWARE = env.switch(
    "HEADROOM_ALLOW_SIMULATED_HARDWARE", default=not IS_PRODUCTION
)
if IS_PRODUCTION and ALLOW_SIMULATED_HARDWARE:
    raise ImproperlyConfigured(
        "HEADROOM_ALLOW_SIMULATED_HARDWARE must be false in production: nobody may buy a simulated GPU"
    )
AGENT_REPORT_INTERVAL_SECONDS = env.integer(
    "HEADROOM_AGENT_REPORT_INTERVAL_SECONDS",
    default=2 if PROFILE == "demo" else 15,
    minimum=1,
    maximum=300,
)
# A test looks at what it has just reported; elsewhere what says nothing new is written once a second.
AGENT_BEATS_AT_ONCE = PROFILE == "test"
# Money becomes payable to the owner once a tenant can no longer reasonably dispute the lease.
PAYOUT_DELAY_SECONDS = env.integer(
    "HEADROOM_PAYOUT_DELAY_SECONDS",
    default=0 if PROFILE == "demo" else 14 * 86_400,
    minimum=0,
    maximum=90 * 86_400,
)
# A part of what an owner earned is kept back for longer, against disputes that come late.
OWNER_RESERVE_BASIS_POINTS = env.integer(
    "HEADROOM_OWNER_RESERVE_BASIS_POINTS",
    default=1000 if IS_PRODUCTION else 0,
    minimum=0,
    maximum=9000,
)
OWNER_RESERVE_SECONDS = env.integer(
    "HEADROOM_OWNER_RESERVE_SECONDS", default=90 * 86_400, minimum=0, maximum=365 * 86_400
)
# How long what an owner owes is only netted with what it earns, before transfers to it are taken back for it:
# one that sells earns within a fortnight what most debts are about, and a reversal may leave its own account
# at the provider below zero.
OWNER_DEBT_PATIENCE_SECONDS = env.integer(
    "HEADROOM_OWNER_DEBT_PATIENCE_SECONDS", default=14 * 86_400, minimum=0, maximum=365 * 86_400
)
# Another account for an owner's money is used so long after its approval: a mail is read over a weekend.
PAYOUT_ACCOUNT_COOL_OFF_SECONDS = env.integer(
    "HEADROOM_PAYOUT_ACCOUNT_COOL_OFF_SECONDS",
    default=72 * 3600,
    minimum=3600,
    maximum=30 * 86_400,
)
# How long after its beginning a dispute is compared with what the provider says: banks decide for months, and
# card schemes let one be opened until about 120 days after the delivery, some for 540.
DISPUTE_WINDOW_SECONDS = env.integer(
    "HEADROOM_DISPUTE_WINDOW_SECONDS", default=120 * 86_400, minimum=86_400, maximum=540 * 86_400
)
# How long a lease whose readings are not complete waits for them, beyond what a silent node gets anyway.
SETTLEMENT_PATIENCE_SECONDS = env.integer(
    "HEADROOM_SETTLEMENT_PATIENCE_SECONDS",
    default=86_400 if IS_PRODUCTION else 0,
    minimum=0,
    maximum=30 * 86_400,
)
# What a tenant gets beyond its refund: for what was not delivered, and for what its owner took back.
UNDELIVERED_CREDIT_BASIS_POINTS = env.integer(
    "HEADROOM_UNDELIVERED_CREDIT_BASIS_POINTS", default=1000, minimum=0, maximum=10_000
)
RECLAIM_COMPENSATION_BASIS_POINTS = env.integer(
    "HEADROOM_RECLAIM_COMPENSATION_BASIS_POINTS", default=2500, minimum=0, maximum=10_000
)
# Of what an owner gets twice for the same time, once as its part of a fee and once by selling it again: the
# share of the tenant that left. What is left of it is the market's; 0: the owner keeps both.
RESALE_SHARE_BASIS_POINTS = env.integer(
    "HEADROOM_RESALE_SHARE_BASIS_POINTS", default=8000, minimum=0, maximum=10_000
)
# A refund that a person decides takes a second one above this, in minor units of the market's currency.
REFUND_ALONE_MINOR_MAX = env.integer(
    "HEADROOM_REFUND_ALONE_MINOR_MAX", default=10_000, minimum=0, maximum=10_000_000
)
# Likewise a promotion; both limits count what single persons let happen lately.
PROMOTION_ALONE_MINOR_MAX = env.integer(
    "HEADROOM_PROMOTION_ALONE_MINOR_MAX", default=10_000, minimum=0, maximum=10_000_000
)
# What a tenant withdraws from its wallet in a day without anybody of the market's looking at it.
WITHDRAWAL_ALONE_MINOR_MAX = env.integer(
    "HEADROOM_WITHDRAWAL_ALONE_MINOR_MAX", default=100_000, minimum=0, maximum=1_000_000_000
)
# How far ahead capacity is sold. Real money is taken no earlier than a payment provider agrees to: whoever
# has its word that it waits longer for a delivery may set more.
HORIZON_DAYS = env.integer(
    "HEADROOM_HORIZON_DAYS",
    default=90 if IS_PRODUCTION else limits.HORIZON_DAYS,
    minimum=1,
    maximum=limits.HORIZON_DAYS,
)
# Who is named as the host of the GPUs in FOCUS files; empty: whoever issues the invoices.
HOST_PROVIDER_NAME = env.text("HEADROOM_HOST_PROVIDER_NAME", default="")
# A price may be paid in two parts, by card: a share at booking, and the rest on the saved card some time
# before the start. In basis points (0: nobody may), from a price with tax, for starts that far ahead.
DEPOSIT_BASIS_POINTS = env.integer(
    "HEADROOM_DEPOSIT_BASIS_POINTS", default=2500, minimum=0, maximum=9000
)
DEPOSIT_PRICE_MINOR_MIN = env.integer(
    "HEADROOM_DEPOSIT_PRICE_MINOR_MIN", default=100_000, minimum=1000, maximum=100_000_000
)
DEPOSIT_AHEAD_SECONDS = env.integer(
    "HEADROOM_DEPOSIT_AHEAD_SECONDS", default=30 * 86_400, minimum=86_400, maximum=365 * 86_400
)
BALANCE_AHEAD_SECONDS = env.integer(
    "HEADROOM_BALANCE_AHEAD_SECONDS", default=14 * 86_400, minimum=43_200, maximum=180 * 86_400
)
# Told this long before the balance is charged; who is asked to return to pay it has so much time for that.
BALANCE_NOTICE_SECONDS = env.integer(
    "HEADROOM_BALANCE_NOTICE_SECONDS", default=3 * 86_400, minimum=0, maximum=30 * 86_400
)
BALANCE_RETURN_SECONDS = env.integer(
    "HEADROOM_BALANCE_RETURN_SECONDS", default=3 * 86_400, minimum=3600, maximum=30 * 86_400
)
if not BALANCE_RETURN_SECONDS + 3600 < BALANCE_AHEAD_SECONDS < DEPOSIT_AHEAD_SECONDS:
    raise ImproperlyConfigured(
        "HEADROOM_BALANCE_RETURN_SECONDS and an hour must be less than HEADROOM_BALANCE_AHEAD_SECONDS, "
        "and that less than HEADROOM_DEPOSIT_AHEAD_SECONDS: a balance is paid, or given up, before the start"
    )
# From the due date of an invoice: it is asked for twice, and then what has not started is cancelled.
DUNNING_REMINDER_SECONDS = env.integer(
    "HEADROOM_DUNNING_REMINDER_SECONDS", default=3 * 86_400, minimum=0, maximum=90 * 86_400
)
DUNNING_WARNING_SECONDS = env.integer(
    "HEADROOM_DUNNING_WARNING_SECONDS", default=10 * 86_400, minimum=0, maximum=90 * 86_400
)
DUNNING_SUSPENSION_SECONDS = env.integer(
    "HEADROOM_DUNNING_SUSPENSION_SECONDS", default=14 * 86_400, minimum=0, maximum=90 * 86_400
)
# Share of the price that the platform keeps, in basis points; a listing's floor is what the owner receives.
PLATFORM_FEE_BASIS_POINTS = env.integer(
    "HEADROOM_PLATFORM_FEE_BASIS_POINTS", default=1500, minimum=0, maximum=9000
)
# Whether the tax of an invoice that is written off is owed no more: only where a law says so.
TAX_RELIEF_ON_BAD_DEBT = env.switch("HEADROOM_TAX_RELIEF_ON_BAD_DEBT", default=False)
# Who issues invoices: a short code that begins their numbers.
INVOICE_ISSUER = env.text("HEADROOM_INVOICE_ISSUER", default="HR")
if not re.fullmatch(r"[A-Z0-9]{1,12}", INVOICE_ISSUER, flags=re.ASCII):
    raise ImproperlyConfigured("HEADROOM_INVOICE_ISSUER must be 1 to 12 capital letters and digits")
# A month's documents are issued this long after its end: what its last leases still add is in by then.
MONTH_CLOSE_DELAY_SECONDS = env.integer(
    "HEADROOM_MONTH_CLOSE_DELAY_SECONDS",
    default=2 * 86_400 if IS_PRODUCTION else 0,
    minimum=0,
    maximum=20 * 86_400,
)
# What the law wants to read on an invoice.
SELLER = {
    "name": env.text("HEADROOM_SELLER_NAME", default="Headroom"),
    "street": env.text("HEADROOM_SELLER_STREET", default=""),
    "postal_code": env.text("HEADROOM_SELLER_POSTAL_CODE", default=""),
    "city": env.text("HEADROOM_SELLER_CITY", default=""),
    "region": env.text("HEADROOM_SELLER_REGION", default=""),
    "country": env.text("HEADROOM_SELLER_COUNTRY", default=""),
    "tax_id": env.text("HEADROOM_SELLER_TAX_ID", default=""),
    "email": env.text("HEADROOM_SELLER_EMAIL", default=""),
    # How an open invoice is paid: a bank account, in one line.
    "payment_details": env.text("HEADROOM_SELLER_PAYMENT_DETAILS", default=""),
}
# TrueType files in the place of the built-in font of documents; names in other scripts need none of them.
PDF_FONT = env.text("HEADROOM_PDF_FONT", default="")
PDF_FONT_BOLD = env.text("HEADROOM_PDF_FONT_BOLD", default="")
STRIPE_SECRET_KEY = env.text("STRIPE_SECRET_KEY", default="")
# Several while one replaces another, separated by commas.
STRIPE_WEBHOOK_SECRETS = env.words("STRIPE_WEBHOOK_SECRET")
# What a browser may know: with it the payment page shows the provider's own fields.
STRIPE_PUBLISHABLE_KEY = env.text("STRIPE_PUBLISHABLE_KEY", default="")
STRIPE_JS_URL = env.text("STRIPE_JS_URL", default="https://js.stripe.com/v3/")
# Where a stand-in for the provider answers; empty: the provider itself.
STRIPE_API_BASE = env.text("STRIPE_API_BASE", default="")
if STRIPE_SECRET_KEY and not STRIPE_SECRET_KEY.startswith(("sk_", "rk_")):
    raise ImproperlyConfigured("STRIPE_SECRET_KEY should look like sk_live_… or rk_live_…")
if STRIPE_SECRET_KEY.startswith(("sk_live_", "rk_live_")) and not IS_PRODUCTION:
    raise ImproperlyConfigured(
        f"STRIPE_SECRET_KEY moves real money, which the profile {PROFILE} calls simulated"
    )
if not all(secret.startswith("whsec_") for secret in STRIPE_WEBHOOK_SECRETS):
    raise ImproperlyConfigured("STRIPE_WEBHOOK_SECRET should look like whsec_…")
if STRIPE_API_BASE and IS_PRODUCTION:
    raise ImproperlyConfigured(
        "STRIPE_API_BASE must not be set in production: a stand-in moves no money"
    )
# Money is play money outside production, and with a test key of the payment provider.
# An endpoint on this machine may be called without TLS where nothing here is real.
WEBHOOKS_TO_LOOPBACK = not IS_PRODUCTION
SIMULATED_PAYMENTS = not IS_PRODUCTION or STRIPE_SECRET_KEY.startswith(("sk_test_", "rk_test_"))

# --- Django ----------------------------------------------------------------------------------------
INSTALLED_APPS = [
    "unfold",
    "unfold.contrib.filters",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django.contrib.postgres",
    "rest_framework",
    "django_filters",
    "drf_spectacular",
    "drf_spectacular_sidecar",
    "marketplace",
    "agents",
    "scheduler",
    "billing",
]
MIDDLEWARE = [
    "marketplace.api.middleware.RequestFrame",
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]
ROOT_URLCONF = "marketplace.urls"
WSGI_APPLICATION = "marketplace.wsgi.application"
ASGI_APPLICATION = "marketplace.asgi.application"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "marketplace" / face / "templates" for face in ("api", "console")],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
# Calls a minute from one address without a key, per web process; how many proxies of ours stand before us.
KEYLESS_CALLS_PER_MINUTE = env.integer(
    "HEADROOM_KEYLESS_CALLS_PER_MINUTE", default=300, minimum=1, maximum=1_000_000
)
TRUSTED_PROXIES = env.integer("HEADROOM_TRUSTED_PROXIES", default=0, minimum=0, maximum=10)
REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": ["marketplace.api.authentication.ApiKeyAuthentication"],
    "DEFAULT_PERMISSION_CLASSES": [],  # `ApiView.scopes` decides, per method
    "DEFAULT_PARSER_CLASSES": ["marketplace.api.parsing.StrictJsonParser"],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_METADATA_CLASS": None,
    "DEFAULT_SCHEMA_CLASS": "drf_spectacular.openapi.AutoSchema",
    "EXCEPTION_HANDLER": "marketplace.api.errors.exception_handler",
    "UNAUTHENTICATED_USER": None,
    "URL_FORMAT_OVERRIDE": None,
}
SPECTACULAR_SETTINGS = {
    "TITLE": "Headroom",
    "DESCRIPTION": (
        "Reserve idle GPUs for a window, and sell yours.\n\n"
        "Send your API key as `Authorization: Bearer hr_live_…`; the market, GPU models, offerings and the "
        "price curve also answer without one. To buy: `GET /v1/offerings`, `POST /v1/quotes`, "
        "`POST /v1/reservations`. A POST that moves capacity or money needs an `Idempotency-Key` header of "
        "your choice: the same key again gives the first answer again. Every error is a problem document "
        "with a stable `code`."
    ),
    # In the order in which a tenant needs them, then the owner's; what is not named here follows.
    "TAGS": [
        {"name": name}
        for name in (
            *(
                "market",
                "gpu-models",
                "offerings",
                "price-curve",
                "price-history",
                "quotes",
                "reservations",
                "leases",
            ),
            *(
                "wallet",
                "bills",
                "nodes",
                "gpus",
                "enrolment-tokens",
                "listings",
                "owner",
                "payouts",
            ),
        )
    ],
    "VERSION": "1.3.0",
    "OAS_VERSION": "3.1.0",
    "SCHEMA_PATH_PREFIX": "/v1",
    "SERVE_INCLUDE_SCHEMA": False,
    "COMPONENT_SPLIT_REQUEST": True,
    "ENUM_GENERATE_CHOICE_DESCRIPTION": False,
    "PREPROCESSING_HOOKS": ["marketplace.api.schema.only_v1"],
    "POSTPROCESSING_HOOKS": [
        "marketplace.api.schema.close_requests",
    ],
    "SWAGGER_UI_DIST": "SIDECAR",
    "SWAGGER_UI_FAVICON_HREF": "SIDECAR",
}
DATABASES = {
    "default": {
        **env.database("DATABASE_URL"),
        "CONN_MAX_AGE": 60,
        "CONN_HEALTH_CHECKS": True,  # a restarted PostgreSQL must cost no request
    }
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
AUTH_USER_MODEL = "marketplace.User"
AUTH_PASSWORD_VALIDATORS = [
    {
        "NAME": "django.contrib.auth.password_validation.MinimumLengthValidator",
        "OPTIONS": {"min_length": 12},
    },
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]
LANGUAGE_CODE = "en-us"
TIME_ZONE = "UTC"
USE_TZ = True
USE_I18N = False
FORMAT_MODULE_PATH = ["marketplace.console.formats"]
STATIC_URL = "/static/"
STATIC_ROOT = DATA_DIR / "static"
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "whitenoise.storage.CompressedManifestStaticFilesStorage"},
}
# Above every body that a view accepts; views set lower limits.
DATA_UPLOAD_MAX_MEMORY_SIZE = 512 * 1024

# --- the admin -------------------------------------------------------------------------------------
UNFOLD = {
    "SITE_TITLE": "Headroom",
    "SITE_HEADER": "Headroom",
    "SITE_SUBHEADER": "GPU market",
    "SITE_URL": "/",
    "SITE_SYMBOL": "memory",
    "SHOW_HISTORY": True,
    "ENVIRONMENT": "marketplace.console.admin_menu.environment",
    "DASHBOARD_CALLBACK": "marketplace.console.dashboard.context",
    "STYLES": ["marketplace.console.admin_menu.stylesheet"],
    "BORDER_RADIUS": "6px",
    "COLORS": {
        "primary": {  # a teal of one hue, light to dark
            "50": "oklch(97.5% .02 180)",
            "100": "oklch(94% .045 180)",
            "200": "oklch(88% .075 181)",
            "300": "oklch(80% .1 182)",
            "400": "oklch(72% .115 183)",
            "500": "oklch(63% .11 184)",
            "600": "oklch(53% .095 185)",
            "700": "oklch(45% .08 186)",
            "800": "oklch(38% .066 187)",
            "900": "oklch(33% .055 188)",
            "950": "oklch(24% .042 190)",
        }
    },
    "SIDEBAR": {
        "show_search": True,
        "show_all_applications": False,
        "navigation": "marketplace.console.admin_menu.navigation",
    },
}

# --- Celery: figures measured in a kill test, see scheduler/README.md ----------------------------------
CELERY_BROKER_URL = env.broker("CELERY_BROKER_URL")
CELERY_TASK_ACKS_LATE = True
CELERY_TASK_REJECT_ON_WORKER_LOST = True
# The broker gives an unacknowledged task to the next worker once the connection is gone, so what
# still runs here would run beside its own repetition and could not acknowledge its end.
CELERY_WORKER_CANCEL_LONG_RUNNING_TASKS_ON_CONNECTION_LOSS = True
CELERY_TASK_IGNORE_RESULT = True
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
CELERY_WORKER_SOFT_SHUTDOWN_TIMEOUT = 20
CELERY_WORKER_HIJACK_ROOT_LOGGER = False
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_TIMEZONE = "UTC"
CELERY_BROKER_TRANSPORT_OPTIONS = (
    {"visibility_timeout": 300, "unacked_restore_interval": 5, "unacked_restore_throttle": 1}
    if "redis" in CELERY_BROKER_URL
    else {}
)
