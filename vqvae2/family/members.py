"""The models of the family by name."""

from collections.abc import Callable

from vqvae2.errors import UserError
from vqvae2.family.member import Member, Setting
from vqvae2.family.vae import VAE

MEMBERS: dict[str, Callable[[Setting], Member]] = {
    "vae": VAE,
}


def check_names(names: list[str], key: str) -> None:
    """Raise a UserError if a name is not that of a model, or there are none; `key` names the flag or the field."""
    unknown = [name for name in names if name not in MEMBERS]
    if unknown or not names:
        said = ", ".join(map(repr, unknown)) or "an empty list"
        raise UserError(f"{key}: {said} is not valid: use names from {', '.join(MEMBERS)}")
