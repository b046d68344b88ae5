"""`lookalike recipes`."""

from __future__ import annotations

import json

import click

from lookalike.cli.command import Command
from lookalike.cli.options import json_option


@click.command(cls=Command, short_help="List the recipes of training, their fields, and the losses.")
@json_option
def recipes(as_json: bool) -> None:
    """List the recipes of 'train' and 'benchmark': every field, what it means and its value in each; then the losses.

    'auto' takes the recipe that is named after the kind of network, and trains more gently where the test classes are
    not those of training. Single fields are changed by --set FIELD=VALUE.

    \b
    Examples:
      lookalike recipes
      lookalike train photos --recipe cnn --set pooling=gem --set ema=0.99 --out model
    """  # noqa: D301
    from lookalike.training.losses import LOSSES
    from lookalike.training.recipe import FIELDS, RECIPE_WORDS, UNSEEN
    from lookalike.training.recipe import recipes as all_recipes

    made = {name: recipe.to_dict() for name, recipe in all_recipes().items()}
    if as_json:
        explained = {name: own.metadata["help"] for name, own in FIELDS.items()}
        losses = {row.name: row.words for row in LOSSES.values()}
        known = {"recipes": made, "unseen": UNSEEN, "fields": explained, "losses": losses}
        click.echo(json.dumps(known, indent=2, ensure_ascii=False))
        return
    for name, words in RECIPE_WORDS.items():
        click.echo(f"{name}: {words}")
    click.echo("auto: the one of these that fits the network\n")
    for name, own in FIELDS.items():
        values = {recipe: _plain(value[name]) for recipe, value in made.items()}
        usual = max(set(values.values()), key=list(values.values()).count)
        others = [f"{recipe} {value}" for recipe, value in values.items() if value != usual]
        click.echo(f"{name} = {', '.join([usual, *others])}")
        click.echo(f"    {own.metadata['help']}{_allowed(own.metadata.get('choices'))}")
    gentle = ", ".join(f"{name} = {_plain(value)}" for name, value in UNSEEN.items())
    click.echo(f"\nauto, where the test classes are unseen: {gentle}")
    click.echo("\nlosses")
    for row in LOSSES.values():
        click.echo(f"  {row.name}: {row.words}")


def _plain(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


def _allowed(choices: tuple[str, ...] | None) -> str:
    return f" ({', '.join(choices)})" if choices else ""
