"""`POST /webhooks/stripe`: what the payment provider calls. It signs; there is no key of ours."""

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.http.request import UnreadablePostError
from django.utils import timezone
from django.views.decorators.csrf import csrf_exempt

from billing import webhooks
from marketplace.api.errors import problem_response, refusal_response

SIGNATURE_HEADER = "Stripe-Signature"


@csrf_exempt
def receive(request: HttpRequest) -> HttpResponse:
    """Verify the bytes as they came, store the event once, and answer before anything is done about it."""
    if request.method != "POST":
        response = problem_response(
            request, code="method_not_allowed", detail="only POST exists here"
        )
        response["Allow"] = "POST"
        return response
    try:
        body = request.read(webhooks.BODY_BYTES_MAX + 1)
    except UnreadablePostError:
        return problem_response(request, code="bad_request", detail="the body broke off")
    if len(body) > webhooks.BODY_BYTES_MAX:
        return problem_response(
            request,
            code="body_too_large",
            detail=f"an event has at most {webhooks.BODY_BYTES_MAX} bytes",
        )
    try:
        is_news = webhooks.receive(
            body=body, signature=request.headers.get(SIGNATURE_HEADER, ""), at=timezone.now()
        )
    except webhooks.WebhookRefused as refusal:
        return refusal_response(request, refusal)
    return JsonResponse({"stored": is_news})
