"""Options made from a struct's fields: every field has one, its help, its type, and its value arrives."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from typer.main import get_command
from typer.testing import CliRunner

from cutline.cli.fields import Without, with_options
from cutline.cli.main import app
from cutline.core.sampling import Sampling
from cutline.errors import InputError

runner = CliRunner()


class Inner(msgspec.Struct, frozen=True, kw_only=True):
    """What several have in common."""

    file_name: Annotated[str | None, "Which file."] = None
    many: Annotated[list[str] | None, "More of them."] = None
    own: Annotated[int, typer.Option("--other-name", min=0, help="Typer's own.")] = 1


class Outer(msgspec.Struct, frozen=True, kw_only=True):
    """A struct in a struct, and what must be given."""

    needed: Annotated[str, "Without a default."]
    inner: Inner
    on: Annotated[bool, "A flag without its contrary."] = False


class Made(msgspec.Struct, frozen=True, kw_only=True):
    """Fields of every kind that there may be."""

    share: Annotated[float, msgspec.Meta(ge=0, description="A share.")] = 0.5
    count: Annotated[int, msgspec.Meta(description="How many.")] = 3
    limit: Annotated[float, msgspec.Meta(description="None is none.")] | None = None
    hidden: int = 9


def ran(*arguments: str) -> Made:
    seen: list[Made] = []
    tried = typer.Typer()

    @tried.command()
    @with_options
    def command(made: Annotated[Made, Without({"hidden"})], other: Annotated[int, typer.Option()] = 1) -> None:
        assert other == 1
        seen.append(made)

    done = runner.invoke(tried, list(arguments))
    assert done.exit_code == 0, done.output
    return seen[0]


@given(st.floats(0, 1e6), st.integers(-(10**6), 10**6), st.none() | st.floats(-1e6, 1e6))
def test_what_is_given_arrives_and_what_is_not_is_the_default(share: float, count: int, limit: float | None) -> None:
    given_limit = [] if limit is None else [f"--limit={limit!r}"]
    assert ran(f"--share={share!r}", f"--count={count}", *given_limit) == Made(share=share, count=count, limit=limit)
    assert ran() == Made()


def test_structs_in_structs_are_options_of_one_command() -> None:
    seen: list[Outer] = []
    tried = typer.Typer(add_completion=False)

    @tried.command()
    @with_options
    def command(*, given: Outer) -> None:
        seen.append(given)

    given = ["--needed", "x", "--file-name", "f", "--many", "a", "--many", "b", "--other-name", "4", "--on"]
    assert runner.invoke(tried, given).exit_code == 0
    assert runner.invoke(tried, ["--needed", "y"]).exit_code == 0
    assert seen == [
        Outer(needed="x", inner=Inner(file_name="f", many=["a", "b"], own=4), on=True),
        Outer(needed="y", inner=Inner()),
    ]
    for refused in ([], ["--needed", "x", "--no-on"], ["--needed", "x", "--other-name", "-1"]):
        assert runner.invoke(tried, refused).exit_code == 2
    helped: Any = get_command(tried)
    assert [(one.name, one.help) for one in helped.params if one.name != "many"] == [
        ("needed", "Without a default."),
        ("file_name", "Which file."),
        ("own", "Typer's own."),
        ("on", "A flag without its contrary."),
    ]
    command(needed="z")
    assert seen[-1] == Outer(needed="z", inner=Inner()), "what a caller in Python leaves out has its default"


def test_every_field_of_a_requests_sampling_is_an_option_of_ask() -> None:
    command: Any = get_command(app)
    options = {name: one.help for one in command.commands["ask"].params for name in one.opts}
    for field in {*Sampling.__struct_fields__} - {"constraint"}:  # which has options of its own
        assert options[f"--{field.replace('_', '-')}"], "and says what it does"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--min-p", "2"], "min-p is 2.0; give 0 to 1"),
        (["--presence-penalty=-3"], "presence-penalty is -3.0; give -2 to 2"),
        (["--logit-bias", "5"], "--logit-bias 5 is not TOKEN:NUMBER"),
        (["--logit-bias", "5:200"], "logit-bias takes the ids of tokens"),
    ],
)
def test_a_value_out_of_its_range_is_refused_by_name(options: list[str], words: str, tmp_path: Any) -> None:
    card = tmp_path / "card.png"
    card.write_bytes(b"no picture")
    done = runner.invoke(app, ["ask", str(card), "What?", *options])
    assert isinstance(done.exception, InputError)
    assert words in str(done.exception)
