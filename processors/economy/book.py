"""The book: what tokens fetch, what watts and GPU-hours cost, and who may spend how much. One TOML file.

Amounts stand in the file as decimals and here as integer micro-units of the book's currency: nothing is a float.
"""

import datetime as dt
from decimal import Decimal
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

MICRO: Final = 1_000_000
_MOST: Final = 10**9
TOKENS: Final = "tokens"
CONSUMER_KINDS: Final = ("function", "team", "agent_family", "engineer")
ConsumerKind = Literal["function", "team", "agent_family", "engineer"]
Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]


def _micro(value: Any) -> int:
    """A decimal number of the file as exact millionths."""
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        raise ValueError("must be a plain number, without quotes or unit")
    if not (Decimal(value).is_finite() and 0 <= value <= _MOST):
        raise ValueError(f"must be 0 to {_MOST}; it is {value}")
    micro = value * MICRO
    if micro != int(micro):
        raise ValueError(f"can have at most six decimals; it is {value}")
    return int(micro)


def _positive(value: Any) -> int:
    if micro := _micro(value):
        return micro
    raise ValueError("must be above 0")


def _limit(value: Any) -> Decimal:
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        raise ValueError("must be a plain number, without quotes or unit")
    if not (Decimal(value).is_finite() and 0 < value <= 10**15):
        raise ValueError(f"must be above 0, at most 10^15; it is {value}")
    return Decimal(value)


def _quarter_hour(value: Any) -> int:
    """A time of day as minutes since midnight."""
    hour, _, minute = value.partition(":") if isinstance(value, str) else ("", "", "")
    if not (len(hour) == len(minute) == 2 and (hour + minute).isdecimal()):
        raise ValueError(f'must be a time such as "07:30"; it is {value!r}')
    minutes = int(hour) * 60 + int(minute)
    if minutes > 24 * 60 or int(minute) % 15:
        raise ValueError(f'must be a quarter of an hour, "00:00" to "24:00"; it is {value!r}')
    return minutes


Amount = Annotated[int, BeforeValidator(_micro)]
PositiveAmount = Annotated[int, BeforeValidator(_positive)]
Minutes = Annotated[int, BeforeValidator(_quarter_hour)]
Name = Annotated[str, Field(min_length=1, max_length=120)]


class Part(BaseModel):
    """A table of the file."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Tier(Part):
    """A name that tokens are sold under."""

    name: Name = Field(description="name of the tier")
    sold: bool = Field(True, description="false: a free tier, which has a cost and no revenue")


class Step(Part):
    """Prices of the tokens above a volume."""

    above_tokens: PositiveAmount = Field(
        alias="above_mtok", description="million tokens a billed consumer has spent in the month"
    )
    output: Amount | None = Field(
        None, description="price per million output tokens; as below it if left out"
    )
    input: Amount | None = Field(None, description="the same for input tokens computed")
    cached_input: Amount | None = Field(
        None,
        description="the same for input tokens answered from cache; that of input where the entry names none",
    )


class Price(Part):
    """What a model's tokens cost on a tier, in micro-units per million tokens, from a moment on."""

    model: Name = Field(description="model name, * and ? match")
    tier: Name | None = Field(None, description="tier; the default tier if left out")
    output: Amount = Field(description="price per million output tokens")
    input: Amount = Field(description="price per million input tokens computed")
    cached_input: Amount | None = Field(
        None, description="price per million input tokens answered from cache; that of input if left out"
    )
    effective_from: dt.datetime | dt.date | None = Field(
        None, description="date, or date and time, in the book's time zone; left out: always"
    )
    steps: tuple[Step, ...] = Field((), description="lower prices for large volumes")


class Period(Part):
    """Months, days and times of day that have their own price of electricity."""

    per_kwh: Amount = Field(description="price of a kilowatt-hour")
    months: tuple[Annotated[int, Field(ge=1, le=12)], ...] = Field(
        tuple(range(1, 13)), min_length=1, description="months, 1 to 12"
    )
    days: tuple[Day, ...] = Field(
        ("mon", "tue", "wed", "thu", "fri", "sat", "sun"),
        min_length=1,
        description="days of the week on which it begins",
    )
    begins: Minutes = Field(0, description="time of day it begins at")
    ends: Minutes = Field(
        24 * 60, description="time of day it ends at; before `begins`: it goes round midnight"
    )


class Tariff(Part):
    """What the site's electricity costs."""

    per_kwh: Amount | None = Field(None, description="one price of a kilowatt-hour for all the year")
    period: tuple[Period, ...] = Field((), description="prices by time")
    demand_charge_per_kw_month: Amount | None = Field(
        None, description="price of the month's highest kilowatt; in reports only"
    )
    # millionths
    pue: Amount | None = Field(None, description="facility watts per IT watt, 1 to 5")
    # micrograms
    carbon_g_per_kwh: Amount | None = Field(None, description="grams of CO2 per kilowatt-hour")


class Capital(Part):
    """What an hour of a GPU costs, its share of server, network and building included."""

    product: Name = Field(description="GPU product, * and ? match")
    per_gpu_hour: Amount | None = Field(None, description="price of a GPU-hour")
    price: PositiveAmount | None = Field(None, description="price of a GPU")
    # millionths of a year, of 1
    life_years: PositiveAmount | None = Field(None, description="years over which the price is paid off")
    interest: Amount = Field(0, description="yearly interest as a fraction, such as 0.08")


class Cost(Part):
    """How costs are told."""

    use_published: bool = Field(
        True, description="published GPU-hours serve for products without a [[capital]] entry"
    )
    # millionths
    output_weight: PositiveAmount = Field(
        4 * MICRO, description="an output token bears the cost of so many input tokens"
    )
    cached_input_weight: Amount = Field(
        MICRO // 10, description="an input token from cache bears the cost of so many computed ones"
    )


class Envelope(Part):
    """What consumers may spend in a period."""

    name: Name = Field(description="name of the envelope")
    kind: ConsumerKind = Field(description="what kind of consumer it is for")
    match: Name = Field(description="name of the consumer, * and ? match")
    each: bool = Field(False, description="true: the limit holds for each consumer that matches, by itself")
    limit: Annotated[Decimal, BeforeValidator(_limit)] = Field(description="tokens, or money")
    unit: str = Field(description='"tokens" or the book\'s currency')
    period: Literal["day", "week", "month"] = Field(description="how long the limit lasts")
    within: Name | None = Field(None, description="name of the envelope it lies in")
    roll_over: bool = Field(False, description="what was left of the period before is added")

    @property
    def limit_amount(self) -> int:
        """Tokens, or micro-units of the currency."""
        return int(self.limit if self.unit == TOKENS else self.limit * MICRO)


class Book(Part):
    """The whole file."""

    currency: str = Field("USD", description="ISO 4217 code of every amount in the file")
    time_zone: str = Field("UTC", description="zone of its dates, times of day, months and periods")
    default_tier: Name = Field("standard", description="tier of tokens that no usage names a tier for")
    billed: ConsumerKind = Field("team", description="kind of consumer that is billed, and has steps")
    tier: tuple[Tier, ...] = Field((), description="tiers")
    price: tuple[Price, ...] = Field((), description="prices of models")
    tariff: Tariff = Field(default_factory=lambda: Tariff(), description="price of electricity")
    capital: tuple[Capital, ...] = Field((), description="price of GPU-hours")
    cost: Cost = Field(default_factory=lambda: Cost(), description="how costs are told")
    envelope: tuple[Envelope, ...] = Field((), description="budgets")

    def is_sold(self, tier: str) -> bool:
        return next((found.sold for found in self.tier if found.name == tier), True)

    @property
    def tiers(self) -> tuple[str, ...]:
        """Every tier there is."""
        return tuple(dict.fromkeys((self.default_tier, *(tier.name for tier in self.tier))))

    @property
    def unsold(self) -> list[str]:
        """Those of them that are given away."""
        return [tier for tier in self.tiers if not self.is_sold(tier)]
