"""Flags, environment and env file → Settings: the one file that imports pydantic.

Order: flags, then `SIDECAR_*` variables, then the env file, then defaults. pydantic-settings reads the environment
and validates; flags are handed to it as initial values, which win. Their grammar is Go's (pflag.py), which no
argparse speaks. Nothing on the node is touched here, and all faults of a configuration are told at once.
"""

import io
import math
import os
from collections.abc import Callable, Iterator, Sequence
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import Annotated, Any, Final

from dotenv.parser import Binding, parse_stream  # of pydantic-settings, which reads such files with it
from pydantic import Field, PlainValidator, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from sidecar import durations, pflag
from sidecar.errors import ConfigError
from sidecar.model import IPAddress
from sidecar.oneline import quoted

PREFIX: Final = "SIDECAR_"

#: The words of Go's strconv.ParseBool.
_BOOLEANS: Final = dict.fromkeys(("1", "t", "T", "TRUE", "true", "True"), True) | dict.fromkeys(
    ("0", "f", "F", "FALSE", "false", "False"), False
)

_HIGHEST_PORT: Final = 65535

#: The kernel's IFNAMSIZ, without the NUL at the end (linux/if.h).
_LONGEST_INTERFACE: Final = 15

#: Characters of an env file; more is some other file.
_LONGEST_FILE: Final = 100_000

#: Seconds. Not 0, and not so short that nothing else would be done.
_SHORTEST: Final = 0.01

#: No command and no cleanup takes an hour; a longer time is a slip of the unit.
_LONGEST_TIMEOUT: Final = 3600.0


def _variable(name: str) -> str:
    """Return the name of a setting's variable."""
    return PREFIX + name.upper()


def _boolean(text: str) -> bool:
    if text not in _BOOLEANS:
        raise ValueError("not a boolean: write true or false")
    return _BOOLEANS[text]


def _port(text: str) -> int:
    if text.startswith("tcp://"):
        raise ValueError(
            "set by Kubernetes for a Service named `sidecar`, not by you: "
            "set enableServiceLinks: false in the pod, or give --port"
        )
    if text.isascii() and text.isdigit() and len(text) <= len("65535") and 1 <= int(text) <= _HIGHEST_PORT:
        return int(text)
    raise ValueError("not a port: write a number from 1 to 65535")


def _interface(text: str) -> str:
    """Accept what the kernel accepts as a name (net/core/dev.c, dev_valid_name)."""
    if not 1 <= len(os.fsencode(text)) <= _LONGEST_INTERFACE:
        raise ValueError("not an interface name: it has 1 to 15 bytes")
    if text in (".", "..") or any(c in "/:" or c.isspace() or not c.isprintable() for c in text):
        raise ValueError("not an interface name: no slash, colon, space or control character in it")
    return text


def _addresses(texts: str | Sequence[str]) -> tuple[IPAddress, ...]:
    given = [texts] if isinstance(texts, str) else texts
    return tuple(_address(text.strip()) for item in given for text in item.split(","))


def _address(text: str) -> IPAddress:
    if not text:
        raise ValueError("there is an empty address in it: write it like 10.96.0.2 or fd00:10:96::2")
    if "/" in text:
        raise ValueError(f"{quoted(text)} has a prefix length: leave it out, it is always /32 or /128")
    if "%" in text:
        raise ValueError(f"{quoted(text)} has a zone: leave it out, the interface is --interface")
    try:
        ip = ip_address(text)
    except ValueError:
        raise ValueError(f"{quoted(text)} is not an IP address: write it like 10.96.0.2 or fd00:10:96::2") from None
    for kind in ("loopback", "unspecified", "multicast"):
        if getattr(ip, f"is_{kind}"):
            raise ValueError(f"{ip} is a {kind} address: choose one that no other host uses, like 10.96.0.2")
    if ip == ip_address("255.255.255.255"):
        raise ValueError(f"{ip} is the broadcast address: choose one that no other host uses, like 10.96.0.2")
    if isinstance(ip, IPv6Address) and int(ip) >> 32 in (0, 0xFFFF):
        raise ValueError(f"{ip} is an IPv4 address in IPv6 notation: write it as IPv4")
    return ip


def _duration(shortest: float, longest: float = float("inf")) -> Callable[[str], float]:
    def parse(text: str) -> float:
        seconds = durations.parse(text)
        if not shortest <= seconds <= longest:
            limit = f" and at most {durations.render(longest)}" if longest < float("inf") else ""
            raise ValueError(f"out of range: must be at least {durations.render(shortest)}{limit}")
        return seconds

    return parse


def _one_of(*words: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in words:
            raise ValueError(f"unknown: write one of {', '.join(words)}{pflag.nearest(text, words)}")
        return text

    return parse


_Boolean = Annotated[bool, PlainValidator(_boolean)]
_Timeout = Annotated[float, PlainValidator(_duration(_SHORTEST, _LONGEST_TIMEOUT))]


class Settings(BaseSettings):
    """What the operator wants; each field is a flag and a variable. Durations are seconds."""

    model_config = SettingsConfigDict(
        alias_generator=_variable,
        case_sensitive=True,
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        validate_default=False,
    )

    ip_address: Annotated[tuple[IPAddress, ...], NoDecode, PlainValidator(_addresses)] = Field(
        description="address on which the proxy listens; repeat it, or separate several by commas",
    )
    interface: Annotated[str, PlainValidator(_interface)] = Field("lo", description="interface to add the address to")
    port: Annotated[int, PlainValidator(_port)] = Field(443, description="port on which the proxy listens")
    setup_iptables: _Boolean = Field(False, description="set up iptables rules that let the traffic in, untracked")
    cleanup: _Boolean = Field(False, description="on exit, remove what was set up")
    daemon: _Boolean = Field(True, description="keep running; false: one pass, then exit")
    sync_interval: Annotated[float, PlainValidator(_duration(_SHORTEST))] = Field(
        60.0, description="time between two looks at the node"
    )
    address_scope: Annotated[str, PlainValidator(_one_of("host", "global"))] = Field(
        "host", description="host or global: scope of an IPv4 address"
    )
    iptables_backend: Annotated[str, PlainValidator(_one_of("auto", "nft", "legacy", "system"))] = Field(
        "auto", description="auto, nft, legacy, or system: whatever `iptables` is"
    )
    iptables_wait: _Timeout = Field(5.0, description="how long to wait for the xtables lock")
    rule_position: Annotated[str, PlainValidator(_one_of("append", "insert"))] = Field(
        "append", description="append, or insert: in front of rules that would drop the traffic"
    )
    command_timeout: _Timeout = Field(10.0, description="no command may run longer")
    cleanup_timeout: _Timeout = Field(20.0, description="the cleanup ends by then, done or not")
    env_file: str | None = Field(None, description="read variables from this file")


_FIELDS: Final = Settings.model_fields
_FLAGS: Final = {name.replace("_", "-"): name for name in _FIELDS}
_BOOLEAN_FLAGS: Final = [flag for flag, name in _FLAGS.items() if _FIELDS[name].annotation is bool]
_VARIABLES: Final = {_variable(name): name for name in _FIELDS}


def load(argv: Sequence[str]) -> tuple[Settings, list[str]]:
    """Return the settings that flags, environment and env file add up to, and warnings.

    Raises ConfigError with all faults at once; the warnings come with them, as they may tell the reason.
    """
    line = pflag.parse(argv, flags=_FLAGS, booleans=_BOOLEAN_FLAGS)
    # A list keeps all its values, of anything else the last one counts.
    flags: dict[str, Any] = {
        _FLAGS[flag]: values if flag == "ip-address" else values[-1] for flag, values in line.values.items()
    }
    path = flags.get("env_file") or os.environ.get(f"{PREFIX}ENV_FILE") or ""
    file, file_faults = _read_env_file(path) if path else ({}, [])
    warnings = [_unknown_variable(name) for name in sorted({*os.environ, *file}) if _is_unknown(name)]
    faults = [*line.faults, *_words(line.words), *file_faults]
    # What the environment does not set, the file may: so its values go where the flags go, below them.
    given: dict[str, Any] = {
        variable: file[variable] for variable in _VARIABLES if file.get(variable) and not os.environ.get(variable)
    }
    given |= {_variable(name): value for name, value in flags.items()}
    try:
        settings = Settings(**given)
    except ValidationError as error:
        raise ConfigError([*faults, *_faults(error, flags, path), *warnings]) from None
    faults += _contradictions(settings)
    if faults:
        raise ConfigError([*faults, *warnings])
    return settings, warnings


def _read_env_file(path: str) -> tuple[dict[str, str], list[str]]:
    """Return the variables in a file like .env.example, and a line for each fault in it."""
    try:
        with Path(path).open(encoding="utf-8") as file:
            text = file.read(_LONGEST_FILE + 1)
        if len(text) > _LONGEST_FILE:
            return {}, [f"--env-file={quoted(path)}: is longer than {_LONGEST_FILE} characters"]
    except (OSError, ValueError) as error:
        return {}, [f"--env-file={quoted(path)}: {getattr(error, 'strerror', None) or 'is no text in UTF-8'}"]
    bindings = list(parse_stream(io.StringIO(text)))
    faults = [
        f"{quoted(path, 200)}: line {_line_number(binding)} is no NAME=value: {quoted(binding.original.string.strip())}"
        for binding in bindings
        if binding.error or (binding.key and binding.value is None)
    ]
    return {binding.key: binding.value for binding in bindings if binding.key and binding.value is not None}, faults


def _line_number(binding: Binding) -> int:
    """Return the line a binding stands in; its text begins with the blank lines before it."""
    text = binding.original.string
    return binding.original.line + text[: len(text) - len(text.lstrip())].count("\n")


def _is_unknown(name: str) -> bool:
    return name.upper().startswith(PREFIX) and name not in _VARIABLES


def _unknown_variable(name: str) -> str:
    """Return a line for a `SIDECAR_*` variable that means nothing: a typo, or set by Kubernetes for a Service."""
    known = [variable.removeprefix(PREFIX) for variable in _VARIABLES]
    hint = pflag.nearest(name.upper().removeprefix(PREFIX), known, PREFIX)
    return f"variable {quoted(name)} is not known and ignored{hint}"


def usage() -> str:
    """Return the text of --help: every flag with its meaning, its variable and its default."""
    rows = []
    for flag, name in _FLAGS.items():
        field = _FIELDS[name]
        rows += [f"  --{flag:<17} {field.description}", f"  {'':19} {_variable(name)}, {_default(field.default)}"]
    return "\n".join(
        (
            "Usage: apiserver-proxy-sidecar [run] --ip-address=ADDRESS[,ADDRESS...] [flags]",
            "       apiserver-proxy-sidecar version",
            "",
            "Holds IP addresses on an interface, and iptables rules that go with them, for an apiserver-proxy.",
            "",
            *rows,
            "",
            "Each flag can also be set by the variable below it. Flags win over variables, variables over the",
            "--env-file. A boolean is --cleanup or --cleanup=false; a duration is Go's: 90s, 1m30s, 500ms.",
            "",
            "Exit codes: 0 done, or stopped in order; 1 not in sync; 2 bad configuration; 3 the node lacks",
            "something: a command, a capability, kernel support.",
        )
    )


def _default(value: object) -> str:
    match value:
        case bool():
            return f"default {str(value).lower()}"
        case float():
            return f"default {durations.render(value)}"
        case str() | int():
            return f"default {value}"
        case None:
            return "default none"
        case _:
            return "required"


def _words(words: Sequence[str]) -> Iterator[str]:
    for position, word in enumerate(words):
        if word != "run" or position:
            hint = "; a boolean takes its value with =, like --cleanup=false" if word in _BOOLEANS else ""
            yield f"unexpected word {quoted(word)}{hint}"


def _contradictions(settings: Settings) -> Iterator[str]:
    if settings.setup_iptables and math.ceil(settings.iptables_wait) >= settings.command_timeout:
        wait, timeout = durations.render(settings.iptables_wait), durations.render(settings.command_timeout)
        yield (
            f"--iptables-wait={wait} and --command-timeout={timeout}: the timeout must be longer than the wait in "
            "whole seconds, or a command is killed while it waits for the lock"
        )


def _faults(error: ValidationError, flags: dict[str, Any], env_file: str) -> Iterator[str]:
    for fault in error.errors(include_url=False):
        variable = str(fault["loc"][0])
        name = _VARIABLES[variable]
        if fault["type"] == "missing":
            yield f"--{name.replace('_', '-')} or {variable} is required: {_FIELDS[name].description}"
            continue
        value = fault["input"]
        shown = ",".join(value) if isinstance(value, list) else str(value)
        reason = fault.get("ctx", {}).get("error", fault["msg"])
        yield f"{_origin(name, flags, env_file)}={quoted(shown)}: {reason}"


def _origin(name: str, flags: dict[str, Any], env_file: str) -> str:
    """Return where a setting's value came from, in the operator's words."""
    variable = _variable(name)
    if name in flags:
        return f"--{name.replace('_', '-')}"
    if os.environ.get(variable) or not env_file:
        return variable
    return f"{quoted(env_file, 200)}: {variable}"
