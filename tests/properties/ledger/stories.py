"""Short stories that go together: what follows from something, told in the order in which it happens.

Rules in any order seldom tell a long one. Each story is a sequence of the machine's own rules, which other
rules come between: an event that finds nothing to happen to, or is refused, leaves nothing.
"""

from hypothesis import strategies as st
from hypothesis.stateful import rule

from billing import wallet
from billing.provider_states import PaymentMeans
from billing.states import ApprovalKind
from scheduler.states import PaymentMethod
from tests.properties.ledger.controls import Controls
from tests.properties.ledger.holding import FATES_OF_HOLDS
from tests.properties.ledger.model import SECONDS, WHO

PRICE = st.integers(1_000, 3_000)
TAXED = st.integers(1, 2)  # whose tax is more than nothing


class Stories(Controls):
    """The machine's rules, and stories of them."""

    @rule(data=st.data(), who=WHO, price=PRICE)
    def story_from_a_wallet(self, data: st.DataObject, who: int, price: int) -> None:
        """Spend a promotion and the rest, get a part back, and let the owner be paid."""
        self.deposit(amount=20_000, who=who)
        self.grant(amount=500, who=who, days=400)
        self.buy(price=price, gpus=2, fee=1500, who=who, is_promoted=True)
        self.start(data=data, nodes=1, handover=0)
        self.close_hours()
        self.finish(data=data, length=SECONDS // 4, compensation=None)
        self.settle()
        self.refund()
        self.release(is_late=False)
        self.pay_out(data=data, fate="failed")
        self.pay_out(data=data, fate="paid")
        self.release(is_late=True)

    @rule(data=st.data(), who=WHO, price=PRICE)
    def story_of_a_reclaim(self, data: st.DataObject, who: int, price: int) -> None:
        self.deposit(amount=20_000, who=who)
        self.buy(price=price, gpus=2, fee=1500, who=who, is_promoted=False)
        self.start(data=data, nodes=1, handover=0)
        self.finish(data=data, length=SECONDS // 2, compensation=100)
        self.settle()

    @rule(data=st.data(), who=WHO, price=PRICE)
    def story_of_a_card(self, data: st.DataObject, who: int, price: int) -> None:
        """Get a refund, whose card turns out to be closed days after it was through."""
        self.buy_by(PaymentMethod.CARD, price=price, who=who)
        self.start(data=data, nodes=0, handover=None)
        self.settle()
        self.refund()
        self.hear_of_a_refund(data=data, state="succeeded")
        self.match(data=data)
        self.hear_of_a_refund(data=data, state="failed")
        self.match(data=data)

    @rule(data=st.data(), who=WHO, price=PRICE)
    def story_of_a_lost_dispute(self, data: st.DataObject, who: int, price: int) -> None:
        """Let the owner bear what a bank took back, out of its reserve and of what it was sent.

        Of its GPUs late evidence tells, so that some of it is set off as well and the owner's again.
        """
        self.buy_by(PaymentMethod.CARD, price=price, who=who)
        self.start(data=data, nodes=1, handover=0)
        self.finish(data=data, length=SECONDS, compensation=None)
        self.settle()
        self.release(is_late=False)
        self.pay_out(data=data, fate="paid")
        self.dispute(data=data, fee=15, percent=100)
        self.decide(data=data, is_won=False, percent_of_owner=90)
        self.learn_late(data=data, seconds=1500, is_more=False)
        self.refund()
        self.take_back()
        self.hear_of_a_reversal(data=data, is_there=True)

    @rule(data=st.data(), who=WHO, price=PRICE)
    def story_of_a_set_off(self, data: st.DataObject, who: int, price: int) -> None:
        """Give back what a bank has given back already: to nobody."""
        self.buy_by(PaymentMethod.CARD, price=price, who=who)
        self.dispute(data=data, fee=15, percent=50)
        self.leave(data=data, kept=price // 10)
        self.refund()
        self.decide(data=data, is_won=False, percent_of_owner=0)
        self.refund()
        self.hear_of_a_refund(data=data, state="disputed")

    @rule(data=st.data(), who=WHO, price=PRICE)
    def story_of_top_ups(self, data: st.DataObject, who: int, price: int) -> None:
        """Withdraw a top-up and find its card closed; let a bank take another one back."""
        self.top_up(amount=price, who=who, means=PaymentMeans.CARD, is_paid=True)
        self.withdraw(data=data, who=who)
        self.hear_of_a_card_refund(data=data, state="succeeded")
        self.match(data=data)
        self.hear_of_a_card_refund(data=data, state="failed")
        self.match(data=data)
        for is_won in (True, False):
            self.top_up(amount=price, who=who, means=PaymentMeans.BANK_TRANSFER, is_paid=True)
            self.dispute(data=data, fee=15, percent=100)
            self.decide_of_a_top_up(data=data, is_won=is_won)

    @rule(data=st.data(), who=WHO, price=PRICE)
    def story_of_a_spent_top_up(self, data: st.DataObject, who: int, price: int) -> None:
        """Let a bank take back what is spent by half: out of what comes later, and then what is owed."""
        rest = wallet.balance(organization=self.tenants[who]).amount_minor
        self.top_up(amount=price + rest, who=who, means=PaymentMeans.CARD, is_paid=True)
        half = (price + 2 * rest) * 6 // 10  # more than that with its tax, and less than all
        self.buy(price=half, gpus=1, fee=1500, who=who, is_promoted=False)
        self.dispute(data=data, fee=15, percent=100)
        self.deposit(amount=100, who=who)
        self.square_disputes()
        self.decide_of_a_top_up(data=data, is_won=False)
        self.deposit(amount=20, who=who)
        self.square_disputes()
        self.deposit(amount=10_000, who=who)
        self.withdraw(data=data, who=who)

    @rule(data=st.data(), who=WHO, price=PRICE)
    def story_of_dunning(self, data: st.DataObject, who: int, price: int) -> None:
        """Owe for what begins far ahead until it is taken away, and pay the rest."""
        self.buy_on_account(price=price, gpus=2, fee=1500, who=who, is_far_ahead=True)
        for days in (0, 3, 10, 14):
            self.dun(days=days, is_late=False)
        self.pay_invoice(data=data, way="bank")
        self.write_off(data=data, percent=50)

    @rule(data=st.data(), who=TAXED, price=PRICE)
    def story_of_a_bad_debt(self, data: st.DataObject, who: int, price: int) -> None:
        """Give up a debt with its tax, get some all the same, and owe tax to nobody: nothing is delivered."""
        self.buy_on_account(price=price, gpus=2, fee=1500, who=who, is_far_ahead=False)
        self.pay_invoice(data=data, way="provider")
        self.write_off(data=data, percent=100)
        self.hear_of_a_payment(data=data, state="succeeded")
        self.pay_after_all(data=data, amount=price // 2)
        self.leave(data=data, kept=0)
        self.refund()

    @rule(data=st.data(), who=WHO, price=PRICE)
    def story_in_two_parts(self, data: st.DataObject, who: int, price: int) -> None:
        for is_paid in (True, False):
            self.buy_in_two_parts(price=price, gpus=2, share=2_500, who=who)
            self.collect_a_balance(data=data, is_paid=is_paid)

    @rule(data=st.data(), who=WHO, price=PRICE)
    def story_of_time_sold_twice(self, data: st.DataObject, who: int, price: int) -> None:
        """Leave for a fee what another tenant buys then, and get a share of what the owner had twice."""
        self.buy_in_two_parts(price=price, gpus=2, share=5_000, who=who)
        self.leave_before_the_balance(data=data, notice=20)
        other = (who + 1) % len(self.tenants)
        self.deposit(amount=20_000, who=other)
        self.sell_again(data=data, price=price, who=other)
        self.finish(data=data, length=SECONDS, compensation=None)
        self.settle()
        self.release(is_late=False)

    @rule(data=st.data(), who=WHO, price=PRICE)
    def story_of_added_hours(self, data: st.DataObject, who: int, price: int) -> None:
        """Add an hour by card to what a bank transfer paid; leave, and get all of it back."""
        self.buy_by(PaymentMethod.BANK_TRANSFER, price=price, who=who)
        self.extend_by_card(data=data, price=500, fate="paid")
        self.leave(data=data, kept=0)
        self.refund()
        self.hear_of_a_refund(data=data, state="pending")

    @rule(data=st.data(), who=WHO, price=PRICE)
    def story_of_held_hours(self, data: st.DataObject, who: int, price: int) -> None:
        """Hold what an hour more costs until a second person agrees to it, or does not."""
        self.deposit(amount=20_000, who=who)
        self.buy(price=price, gpus=2, fee=1500, who=who, is_promoted=False)
        for fate in FATES_OF_HOLDS:
            self.hold_an_hour(data=data, price=500)
            self.resolve(data=data, fate=fate)

    @rule(data=st.data(), who=WHO, price=PRICE)
    def story_of_moves(self, data: st.DataObject, who: int, price: int) -> None:
        """Move by card what is booked far ahead: the money comes in time, or too late."""
        for fate in ("paid", "late"):
            self.buy_on_account(price=price, gpus=2, fee=1500, who=who, is_far_ahead=True)
            self.move_by_card(data=data, price=500, hours=2, fate=fate)
        self.hear_of_a_card_refund(data=data, state="succeeded")

    @rule(data=st.data(), who=WHO, price=PRICE)
    def story_of_late_evidence(self, data: st.DataObject, who: int, price: int) -> None:
        """Learn after the owner was paid that more was delivered, and then that less was."""
        self.deposit(amount=20_000, who=who)
        self.buy(price=price, gpus=2, fee=1500, who=who, is_promoted=False)
        self.start(data=data, nodes=1, handover=0)
        self.finish(data=data, length=SECONDS // 3, compensation=None)
        self.settle()
        self.release(is_late=False)
        self.learn_late(data=data, seconds=600, is_more=True)
        self.release(is_late=False)
        self.learn_late(data=data, seconds=600, is_more=False)
        self.give_up_a_debt(data=data)

    @rule(data=st.data(), who=WHO, price=PRICE)
    def story_of_the_market(self, data: st.DataObject, who: int, price: int) -> None:
        """Keep the books: holds, gifts that nobody spent, tax, suspense, and money that is parked."""
        self.deposit(amount=20_000, who=who)
        for fate in FATES_OF_HOLDS:
            self.hold(price=price, who=who)
            self.resolve(data=data, fate=fate)
        self.grant(amount=100, who=who, days=2)
        self.end_promotions(days=10)
        self.remit_tax(data=data, month="2026-11", comes_back=True)
        self.put_aside(amount=price, is_received=True)
        self.find_out(data=data, kind=ApprovalKind.SUSPENSE_WALLET, who=who, amount=100)
        self.put_aside(amount=price, is_received=False)
        self.find_out(data=data, kind=ApprovalKind.SUSPENSE_FEES, who=who, amount=100)
        self.be_kind(amount=price, who=who)
        self.park(who=who, is_owner=False)
        self.buy(price=price, gpus=1, fee=1500, who=who, is_promoted=True)
        self.withdraw(data=data, who=who)
        self.deposit(amount=100, who=who)
        self.unpark(data=data)

    def buy_by(self, method: PaymentMethod, *, price: int, who: int) -> None:
        """Buy something, paid in time."""
        self.buy_through_the_provider(price=price, gpus=2, who=who, method=method, fate="paid")

    @classmethod
    def stories(cls) -> list[str]:
        """Return the names of all stories, in the order in which they stand here."""
        return [name for name in vars(Stories) if name.startswith("story_")]
