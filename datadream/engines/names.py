"""The names of the engines, and the address that one may have."""

from ..errors import ConfigError, did_you_mean

# Where cells are computed: this process and its workers, or a Ray cluster.
ENGINES = ("local", "ray")


def engine_parts(engine):
    """Return (name, address or None) of an engine. Raises ConfigError on an unknown name, and on
    an address of what has none.
    """
    name, _, address = str(engine).partition(":")
    if name not in ENGINES:
        raise ConfigError(
            f"engine={engine!r} is unknown; accepted: {', '.join(ENGINES)}, and "
            f"ray:<address>{did_you_mean(name, ENGINES)}"
        )
    if address and name != "ray":
        raise ConfigError(
            f"engine={engine!r}: {name!r} has no address; give {name!r}, or 'ray:{address}'"
        )
    return name, address or None
