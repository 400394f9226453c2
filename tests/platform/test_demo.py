"""The demo's own reading of the market, where it does more than print."""

from typing import Any

from marketplace.management.commands.demo import GPUS, sellable_gpus


class Answers:
    """Answers of the market, by path."""

    def __init__(self, **answers: list[dict[str, Any]]) -> None:
        self._answers = answers

    def get(self, path: str, **query: object) -> dict[str, Any]:
        return {"data": self._answers[path.removeprefix("/v1/")]}


def node(node_id: str, *, last_report_at: str | None = "2026-11-23T12:00:00Z") -> dict[str, Any]:
    return {"id": node_id, "region": "us-east", "last_report_at": last_report_at}


def gpus(node_id: str, *, count: int = GPUS, leased: bool = False) -> list[dict[str, Any]]:
    return [{"gpu_model": "h100", "node_id": node_id, "leased": leased}] * count


class TestSellableGpus:
    def test_counts_by_model_and_region(self) -> None:
        owner = Answers(nodes=[node("a"), node("b")], gpus=[*gpus("a"), *gpus("b")])

        assert sellable_gpus(owner) == {("h100", "us-east"): 2 * GPUS}

    def test_passes_over_a_node_that_enrolled_between_the_two_lists(self) -> None:
        owner = Answers(nodes=[node("a")], gpus=[*gpus("a"), *gpus("new")])

        assert sellable_gpus(owner) == {("h100", "us-east"): GPUS}

    def test_leaves_out_silent_nodes_leased_gpus_and_places_with_too_few(self) -> None:
        owner = Answers(
            nodes=[node("silent", last_report_at=None), node("busy"), node("small")],
            gpus=[*gpus("silent"), *gpus("busy", leased=True), *gpus("small", count=GPUS - 1)],
        )

        assert sellable_gpus(owner) == {}
