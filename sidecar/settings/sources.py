"""Turns flags, environment and env file into Options. The only file that imports pydantic.

Precedence: flags, then `SIDECAR_*` variables, then the env file, then defaults. pydantic-settings reads the environment
and validates each text by the check of its setting (options.py); it gets the values of the command line as initial
values, which win. Nothing here touches the node, and all faults of a configuration are reported at once.
"""

import io
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import new_class
from typing import Annotated, Final, cast, get_type_hints

from dotenv.parser import Binding, parse_stream  # a dependency of pydantic-settings, which parses such files with it
from pydantic import PlainValidator, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from sidecar.errors import ConfigError
from sidecar.settings import durations, values
from sidecar.settings.invocation import Invocation
from sidecar.settings.klog import Vmodule
from sidecar.settings.options import FLAGS, PREFIX, Options, variable
from sidecar.state.model import IPV4, IPV6
from sidecar.text import nearest, quoted

PACKAGE: Final = Path(__file__).parents[1]  # the directory of the source files
_LONGEST_FILE: Final = 100_000  # characters; a longer file is not an env file

#: Names of variables that Kubernetes sets for each Service in the pod's namespace; others are known by their value.
_OF_A_SERVICE: Final = re.compile(r".*_(SERVICE_(HOST|PORT|PORT_.+)|PORT_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)")

_BY_VARIABLE: Final = {flag.variable: flag for flag in FLAGS.values()}


class _Sources(BaseSettings):
    model_config = SettingsConfigDict(
        alias_generator=variable, case_sensitive=True, env_ignore_empty=True, extra="ignore"
    )


def _model() -> Callable[..., _Sources]:
    """Return the model with one field for each setting, with its type and its check."""
    types = get_type_hints(Options)
    annotations = {
        flag.field: Annotated[types[flag.field], NoDecode, PlainValidator(flag.check)] for flag in FLAGS.values()
    }
    made = new_class("_Settings", (_Sources,), exec_body=lambda body: body.update(__annotations__=annotations))
    return cast("Callable[..., _Sources]", made)


_Settings: Final = _model()


def load(line: Invocation) -> tuple[Options, list[str]]:
    """Return the options from flags, environment and env file, and warnings.

    Raises ConfigError with all faults at once; it includes the warnings, as they may explain the faults.
    """
    # A list keeps all its values; for any other setting, the last value counts.
    flags = {
        FLAGS[name].variable: ",".join(texts) if FLAGS[name].is_list else texts[-1]
        for name, texts in line.values.items()
    }
    variable = FLAGS["env-file"].variable
    path = flags[variable] if variable in flags else os.environ.get(variable, "")
    origin = FLAGS["env-file"].spelled if variable in flags else variable
    file, file_faults = read_env_file(path, origin) if path else ({}, [])
    origins = Origins(flags, file, path)
    warnings = list(_unknown({**file, **os.environ}))
    faults = [*line.faults, *file_faults]
    # For settings not in the environment, the env file or else the default counts; both are passed with the flags.
    rest = {
        flag.variable: text
        for flag in FLAGS.values()
        if not os.environ.get(flag.variable) and (text := file.get(flag.variable) or flag.default) is not None
    }
    try:
        settings = _Settings(**{**rest, **flags})
    except ValidationError as error:
        wrong = error.errors(include_url=False)
        raise ConfigError([*faults, *(_fault(fault, origins) for fault in wrong), *warnings]) from None
    options = Options(**dict(settings))
    faults += _contradictions(options, origins)
    if options.dry_run and line.command == "run" and "dry-run" not in line.values:  # as a flag, it was refused before
        faults.append(f"{origins('dry-run')} works only with `cleanup`; `plan` shows what `run` would do")
    if faults:
        raise ConfigError([*faults, *warnings])
    return options, [*warnings, *_advice(options, origins)]


@dataclass(frozen=True, slots=True)
class Origins:
    """Names the source of each setting's value, in the operator's words."""

    flags: Mapping[str, str]
    file: Mapping[str, str]
    path: str

    def __call__(self, name: str) -> str:
        flag = FLAGS[name]
        if flag.variable in self.flags:
            return flag.spelled
        if os.environ.get(flag.variable):
            return flag.variable
        return f"{quoted(self.path, 200)}: {flag.variable}" if self.file.get(flag.variable) else flag.spelled


def read_env_file(path: str, origin: str) -> tuple[dict[str, str], list[str]]:
    """Return the variables in a file like .env.example, and a line if it has a fault.

    The content of the file is never shown: the path may be wrong, and the file a secret.
    """
    if "\0" in path:
        return {}, []  # the check of the setting itself reports this
    try:
        with Path(path).open(encoding="utf-8-sig") as file:
            text = file.read(_LONGEST_FILE + 1)
    except (OSError, UnicodeError) as error:
        return {}, [f"{origin}={quoted(path)}: {getattr(error, 'strerror', None) or 'is not text in UTF-8'}"]
    if len(text) > _LONGEST_FILE:
        return {}, [f"{origin}={quoted(path)}: is longer than {_LONGEST_FILE} characters"]
    if "\0" in text:
        return {}, [f"{origin}={quoted(path)}: is not text: it contains a NUL"]
    bindings = list(parse_stream(io.StringIO(text)))
    wrong = [_line_number(each) for each in bindings if each.error or (each.key and each.value is None)]
    faults = []
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        faults = [f"{quoted(path, 200)}: line {wrong[0]}{more} is not NAME=value"]
    return {each.key: each.value for each in bindings if each.key and each.value is not None}, faults


def _line_number(binding: Binding) -> int:
    """Return the line number of a binding; its text begins with the blank lines before it."""
    text = binding.original.string
    return binding.original.line + text[: len(text) - len(text.lstrip())].count("\n")


def _unknown(variables: Mapping[str, str]) -> Iterator[str]:
    """Yield a line for each unknown `SIDECAR_*` variable, except those that Kubernetes sets for a Service."""
    known = [variable.removeprefix(PREFIX) for variable in _BY_VARIABLE]
    for name, value in sorted(variables.items()):
        if not name.upper().startswith(PREFIX) or name in _BY_VARIABLE:
            continue
        if not _OF_A_SERVICE.fullmatch(name) and not values.is_of_a_service(value):
            hint = nearest(name.upper().removeprefix(PREFIX), known, PREFIX)
            yield f"unknown variable {quoted(name)} is ignored{hint}"


def _contradictions(options: Options, origins: Origins) -> Iterator[str]:
    if options.setup_iptables and math.ceil(options.iptables_wait) >= options.command_timeout:
        wait, timeout = durations.render(options.iptables_wait), durations.render(options.command_timeout)
        yield (
            f"{origins('iptables-wait')}={wait} and {origins('command-timeout')}={timeout}: the timeout must be longer "
            "than the wait in whole seconds, or a command is killed while it waits for the lock"
        )


def _advice(options: Options, origins: Origins) -> Iterator[str]:
    """Yield a line for each setting that has no effect, or more effect than you might expect."""
    for ip in options.ip_address:
        if ip.version == IPV6 and ip.is_link_local:
            zoned = f"{ip}%{options.interface}"
            yield f"{origins('ip-address')}: {ip} is a link-local address: clients need its zone, as in {quoted(zoned)}"
    ipv4 = next((str(ip) for ip in options.ip_address if ip.version == IPV4), "")
    if options.address_scope == "global" and ipv4:
        yield (
            f"{origins('address-scope')}=global: the kernel may choose {ipv4} as the source address of other "
            f"connections, and replies do not come back; `ip route get DESTINATION` says src {ipv4} then"
        )
    name = "log_file" if options.log_file else "log_dir"
    if options.logtostderr and (options.log_file or options.log_dir):
        yield f"{origins(name)} has no effect without --logtostderr=false: the log goes to standard error, not to files"
    elif options.log_file and options.log_dir:
        yield f"{origins('log_dir')} has no effect together with {origins('log_file')}"
    sources = [path.stem for path in PACKAGE.rglob("*.py")] if options.vmodule.levels else []
    for pattern, level in options.vmodule.levels:
        if not any(Vmodule(((pattern, level),)).level(source) for source in sources):
            yield f"{origins('vmodule')}: no source file matches {quoted(pattern)}{nearest(pattern, sources)}"


def _fault(fault: ErrorDetails, origins: Origins) -> str:
    flag = _BY_VARIABLE[str(fault["loc"][0])]
    if fault["type"] == "missing":
        return f"{flag.spelled} or {flag.variable} is required: {flag.help}"
    reason = fault.get("ctx", {}).get("error", fault["msg"])
    return f"{origins(flag.name)}={quoted(str(fault['input']))}: {reason}"
