"""Open the store that a folder, an address or the environment names."""

from pathlib import Path

from ..paths import expanded, is_address, store_place
from .artifacts import Store


def open_store(place: str | Path | None = None) -> Store:
    """Return the store at `place`: a folder, or an address that fsspec resolves (s3://bucket/...).

    None: the one that $DATADREAM_STORE names, else `artifacts` in the project's folder. Raises
    ConfigError if an address cannot be resolved here.
    """
    place = expanded(str(place or store_place()))
    if is_address(place):
        from .address import RemoteStore  # here: fsspec's file systems take a while to import

        return RemoteStore(place)
    return Store(place)
