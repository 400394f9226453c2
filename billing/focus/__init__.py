"""FOCUS files of a tenant's month: what was charged and what of it was used, in the FinOps columns.

Versions and datasets: 1.4 with Cost and Usage, Contract Commitment, Invoice Detail and Billing Period; 1.2
with Cost and Usage, for readers that do not know 1.4 yet. `reading` asks the database, `charges` and others
are the rules, `columns` says what stands in which file, `files` writes the lines.

How money is told. A reservation is paid ahead: its purchase has the BilledCost and an EffectiveCost of 0;
the hours that are delivered have the EffectiveCost and a BilledCost of 0. What was not delivered, or was
given back, is a negative purchase; the fee that is kept of it is usage of a product of its own. Credits
beyond the price, and what promotions paid, have both. A price in two parts is two purchases, the first with
all hours. So over the months of a reservation both columns have the same sum, and in every month BilledCost
is what the ledger took from the tenant and EffectiveCost what it says was used up. Purchases and usage both
carry ListCost and ContractedCost, as FOCUS wants it: whoever adds them up leaves one of them out.
`ChargeClass` is `Correction` where something changes what was billed in an earlier month.

*Unused* is what was delivered and had no workload. What was not delivered is never called so: it is refunded.
Where nothing tells whether a workload was there, time counts as used, and what was measured is empty.

What the columns of ours say. Hours are GPU-hours; an empty cell is what nothing measured, and never 0.

| Column | Meaning |
|---|---|
| x_ReservationId, x_LeaseId, x_QuoteId | what was bought, what of it was handed over, and the price promise |
| x_LedgerEntryId, x_EventType | the entry of the ledger that a row tells, and its kind |
| x_GpuModel, x_Tier, x_Simulated | the product; `true` for GPUs that do not exist |
| x_SurgeMultiplier | locked price ÷ price without surge, when it was quoted |
| x_BoughtGpuHours, x_ReleasedGpuHours | bought, and given back before they were delivered |
| x_DeliveredGpuHours, x_UndeliveredGpuHours | handed over and working, and promised but not so |
| x_UndeliveredReason | why, in the words of the bill; a refund for several reasons is a row of each |
| x_AttachedGpuHours | of the delivered: a process held the GPU's memory |
| x_BusyGpuHours | of the delivered: a kernel ran. A weak signal: one kernel is enough, however small |
| x_EnergyKilowattHours | as the GPUs counted it |
| x_MeterCoverageRatio | share of the delivered hours that have readings; x_DeliveredGpuHours is its weight |

The readings behind a row of a lease are at `/v1/leases/{x_LeaseId}/utilization`.
"""

from billing.focus.columns import COLUMNS, Dataset, Version, file_name
from billing.focus.files import lines
from billing.focus.manifests import Manifest
from billing.focus.slots import InSlot, TooManyExports

__all__ = [
    "COLUMNS",
    "Dataset",
    "InSlot",
    "Manifest",
    "TooManyExports",
    "Version",
    "file_name",
    "lines",
]
