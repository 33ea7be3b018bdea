"""The names of the engines and their optional addresses."""

from ..errors import ConfigError, did_you_mean

# Where cells run: in this process and its workers, or on a Ray cluster.
ENGINES = ("local", "ray")


def engine_parts(engine: str) -> tuple[str, str | None]:
    """Split an engine such as "ray:auto" into (name, address or None).

    Raises ConfigError on an unknown name, and on an address if the engine takes none.
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
