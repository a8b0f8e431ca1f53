"""The sample book: what `idlewatt config --book` prints, the demo reads and deploy/ has."""

from typing import Final

SAMPLE_BOOK: Final = """\
# The book: what tokens fetch, what watts and GPU-hours cost, who may spend how much. Name this file in
# idlewatt.toml: [economy] book = "book.toml". It is read again when it changes; a bad one is refused.
# All figures are examples, not anybody's offer. Amounts are exact, with at most six decimals.

currency = "USD"            # ISO 4217; every amount in this file
time_zone = "America/New_York"  # of dates, times of day, months and periods here; daylight saving is heeded
default_tier = "standard"   # of tokens that no usage names a tier for
billed = "team"             # kind of consumer that is billed and has volume steps: team, function, agent_family, engineer

# Tiers have names of your choice. One that is not sold has a cost and no revenue: its list value is acquisition cost.
# Who gives default_tier another name keeps the old [[tier]], and its prices with tier = "...": past usage that named no
# tier is on it, and would be without revenue in reports.
[[tier]]
name = "free"
sold = false

[[tier]]
name = "standard"

[[tier]]
name = "premium"

# Prices per million tokens: of computed input, of input from cache (as input if left out), of output. * and ? match
# in model; of a tier's entries that are in force, those of the first glob that matches count, and of these the newest.
# A model or tier without a price is counted as unpriced: it is never free by accident.
[[price]]
model = "meta-llama/Llama-3.3-70B-Instruct"
input = 0.20
cached_input = 0.05
output = 0.60

[[price]]
model = "meta-llama/Llama-3.3-70B-Instruct"
tier = "premium"
input = 0.40
cached_input = 0.10
output = 1.20

[[price]]
model = "Qwen/Qwen3-32B"
input = 0.10
cached_input = 0.03
output = 0.30

[[price]]
model = "openai/gpt-oss-120b"
input = 0.10
cached_input = 0.03
output = 0.50

# from this day on, and cheaper above a volume: million tokens of a billed consumer in a calendar month
[[price]]
model = "openai/gpt-oss-120b"
effective_from = 2026-01-01
input = 0.10
cached_input = 0.03
output = 0.40
steps = [
  { above_mtok = 1_000, output = 0.36 },
  { above_mtok = 10_000, input = 0.08, output = 0.30 },
]

[[price]]
model = "openai/gpt-oss-120b"
tier = "premium"
input = 0.20
cached_input = 0.05
output = 0.80

[[price]]
model = "Qwen/Qwen3-235B-A22B-FP8"
input = 0.20
cached_input = 0.05
output = 0.80

[[price]]
model = "deepseek-ai/DeepSeek-V3.1"
input = 0.30
cached_input = 0.08
output = 1.20

# Electricity: per_kwh = 0.12 for one price, or periods by months, days and times of day (quarters of an hour) that
# cover the year once. A period may go round midnight: days = ["fri"] from 22:00 to 06:00 is the night to Saturday.
# Months are those of the calendar: a season begins and ends at midnight.
[tariff]
pue = 1.2                          # facility watts per IT watt; 1 if left out
carbon_g_per_kwh = 370             # of the grid; no grams are shown without it
demand_charge_per_kw_month = 9.50  # in reports only

[[tariff.period]]
months = [6, 7, 8, 9]
days = ["mon", "tue", "wed", "thu", "fri"]
begins = "14:00"
ends = "19:00"
per_kwh = 0.19

[[tariff.period]]
months = [6, 7, 8, 9]
days = ["mon", "tue", "wed", "thu", "fri"]
begins = "19:00"
per_kwh = 0.09

[[tariff.period]]
months = [6, 7, 8, 9]
days = ["mon", "tue", "wed", "thu", "fri"]
ends = "14:00"
per_kwh = 0.09

[[tariff.period]]
months = [6, 7, 8, 9]
days = ["sat", "sun"]
per_kwh = 0.08

[[tariff.period]]
months = [1, 2, 3, 4, 5, 10, 11, 12]
per_kwh = 0.09

# GPU-hours, the share of server, network and building included: per_gpu_hour, or what a GPU was bought for, its life
# and the yearly interest. Products that stand nowhere here have the published price, labelled so.
[[capital]]
product = "NVIDIA H100*"
price = 38_000
life_years = 5
interest = 0.08

[[capital]]
product = "NVIDIA B200*"
price = 52_000
life_years = 5
interest = 0.08

[cost]
use_published = true        # false: no published price ever serves
output_weight = 4           # an output token bears the cost of so many input tokens
cached_input_weight = 0.1   # an input token from cache bears the cost of so many computed ones

# Budgets in tokens or money by day, week or month, for the consumers of a kind that match; each = true: for each of
# them by itself. within names the envelope it lies in; roll_over = true adds what was left of the period before.
[[envelope]]
name = "engineering"
kind = "function"
match = "engineering"
limit = 250_000
unit = "USD"
period = "month"

[[envelope]]
name = "engineers"
kind = "engineer"
match = "*"
each = true
limit = 1_000
unit = "USD"
period = "day"
within = "engineering"

[[envelope]]
name = "new engineers"
kind = "engineer"
match = "new-*"
each = true
limit = 100
unit = "USD"
period = "day"
within = "engineers"

[[envelope]]
name = "support agents"
kind = "agent_family"
match = "support-*"
limit = 50_000_000_000
unit = "tokens"
period = "week"
roll_over = true
"""
