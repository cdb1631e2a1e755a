"""Writes a rule of nft, listed as JSON, as `nft list ruleset` prints it, so that people find it there."""

import json
from collections.abc import Sequence
from typing import Final

from sidecar.firewall.nft_values import MALFORMED, Json

#: Operators that a rule does not show.
_IMPLICIT: Final = ("==", "in")


def rule(expressions: Sequence[Json], comment: str, handle: int | None) -> str:
    """Return a rule as `nft -a list ruleset` prints it, but for the numbers of counters."""
    words = [_statement(each) for each in expressions]
    if comment:
        words.append(f"comment {json.dumps(comment, ensure_ascii=False)}")
    if handle is not None:
        words.append(f"# handle {handle}")
    return " ".join(words)


def _statement(statement: Json) -> str:
    try:
        ((name, value),) = statement.items()
        return _known(name, value)
    except MALFORMED:
        return json.dumps(statement)


def _known(name: str, value: Json) -> str:  # noqa: C901, PLR0911, PLR0912 - one for each statement
    match name, value:
        case _, None:
            return name
        case "match", {"left": left, "right": right}:
            operator = value.get("op", "==")
            words = [
                _text(left),
                *([] if operator in _IMPLICIT and not _has_mask(left) else [operator.replace("in", "==")]),
            ]
            return " ".join((*words, _right(left, right)))
        case "vmap", {"key": key, "data": data}:
            return f"{_text(key)} vmap {_right(key, data)}"
        case "jump" | "goto", {"target": target}:
            return f"{name} {target}"
        case "mangle", {"key": key, "value": data}:
            return f"{_text(key)} set {_right(key, data)}"
        case "counter", _:
            return f"counter name {json.dumps(value)}" if isinstance(value, str) else "counter"
        case "log", {"prefix": prefix}:
            return f"log prefix {json.dumps(prefix)}"
        case "limit", {"rate": rate, "per": per}:
            return f"limit rate {'over ' if value.get('inv') else ''}{rate}/{per}"
        case "reject", {"expr": "port-unreachable"}:  # which is not shown
            return name
        case "reject", {"type": kind}:
            return " ".join(("reject with", kind, *filter(None, (value.get("expr"),))))
        case "dnat" | "snat" | "redirect" | "masquerade" | "tproxy", dict():
            port = f":{_text(value['port'])}" if "port" in value else ""
            where = _text(value.get("addr", "")) + port
            return f"{' '.join(filter(None, (name, value.get('family'))))} to {where}" if where else name
        case "set" | "map", {"op": operator, "elem": elem, "set": reference}:
            return f"{operator} {reference} {{ {_text(elem)} }}"
        case "xt", {"name": extension}:
            return f"xt {value.get('type', '')} {json.dumps(extension)}"
        case _, dict():
            return " ".join((name, *("over" if each is True else _text(each) for each in value.values())))
    return f"{name} {_text(value)}"


def _has_mask(left: Json) -> bool:
    return isinstance(left, dict) and "&" in left


def _right(left: Json, value: Json) -> str:
    """Return what stands behind an operator: names of interfaces in quotes, marks in hexadecimal."""
    text = json.dumps(left)
    match value:
        case str() if '"key": "iif' in text or '"key": "oif' in text:
            return value if value.startswith("@") else json.dumps(value)
        case int() if '"mark"' in text and not isinstance(value, bool):
            return f"0x{value:08x}"
        case bool() if any(f'"{each}"' in text for each in ("fib", "exthdr", "tcp option", "ip option")):
            return "exists" if value else "missing"
        case {"set": list(elements)}:
            return f"{{ {', '.join(_element(left, each) for each in elements)} }}"
        case _:
            return _text(value)


def _element(left: Json, element: Json) -> str:
    """Return an element of a set or a map."""
    match element:
        case [key, data]:
            return f"{_right(left, key)} : {_text(data)}"
        case _:
            return _right(left, element)


def _text(value: Json) -> str:  # noqa: C901, PLR0911, PLR0912 - one for each expression
    match value:
        case {"payload": {"protocol": protocol, "field": field}}:
            return f"{protocol} {field}"
        case {"meta": {"key": str(key)}}:
            return key if key in ("iif", "oif", "iifname", "oifname", "iifgroup", "oifgroup") else f"meta {key}"
        case {"fib": {"result": result, "flags": flags}}:
            return f"fib {flags if isinstance(flags, str) else ' . '.join(flags)} {result}"
        case {"prefix": {"addr": address, "len": length}}:
            return f"{_text(address)}/{length}"
        case {"range": [first, last]}:
            return f"{_text(first)}-{_text(last)}"
        case {"concat": list(parts)}:
            return " . ".join(map(_text, parts))
        case {"set": list(elements)}:
            return f"{{ {', '.join(_element(None, each) for each in elements)} }}"
        case {"elem": {"val": key}}:
            return _text(key)
        case {"map": {"key": key, "data": data}}:
            return f"{_text(key)} map {_text(data)}"
        case {"numgen": {"mode": mode, "mod": number}}:
            return f"numgen {mode} mod {number}"
        case {"jhash": {"expr": key, "mod": number}}:
            return f"jhash {_text(key)} mod {number}"
        case {"&": list(parts)} | {"|": list(parts)} | {"^": list(parts)}:
            return f" {next(iter(value))} ".join(map(_mask, parts))
        case {"jump": {"target": target}} | {"goto": {"target": target}}:
            return f"{next(iter(value))} {target}"
        case dict() if len(value) == 1 and next(iter(value.values())) is None:
            return str(next(iter(value)))
        case dict():
            return " ".join(
                f"{name} {_text(each)}" if isinstance(each, dict) else _text(each) for name, each in value.items()
            )
        case list():
            return ",".join(map(_text, value))
        case _:
            return str(value)


def _mask(value: Json) -> str:
    match value:
        case int():
            return f"0x{value:08x}"
        case list():
            return f"({' | '.join(map(_text, value))})"
        case _:
            return _text(value)
