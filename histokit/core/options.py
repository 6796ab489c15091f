"""A frozen dataclass is a script's command line: one field, one option, one line of help."""

from __future__ import annotations

import argparse
import dataclasses
import errno
import math
import operator
import os
import signal
import sys
import types
import typing
from collections.abc import Callable

from histokit.core.errors import InputError
from histokit.core.files import FULL, unreadable
from histokit.core.memory import is_out_of_memory
from histokit.core.stopping import Stopped
from histokit.core.threads import share_machine


def option(
    default,
    help: str,
    choices: tuple | None = None,
    group: str = "main options",
    shown: str | None = None,
    **limits: float,
):
    """A dataclass field that documents itself; ``shown`` words a default that None stands for.

    ``limits`` bound a number, or each of a list: ``least``, ``above``, ``most``, ``below``. They
    are checked when the options are made (``Checked``), so that none has to be checked where it
    is used.
    """
    metadata = {"help": help, "choices": choices, "group": group, "shown": shown, "limits": limits}
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def required(help: str, choices: tuple | None = None, group: str = "main options"):
    """A field without a default: the script stops when it is not given."""
    return dataclasses.field(metadata={"help": help, "choices": choices, "group": group})


_LIMITS = {
    "least": ("at least", operator.ge),
    "above": ("more than", operator.gt),
    "most": ("at most", operator.le),
    "below": ("less than", operator.lt),
}


class Checked:
    """Base of the dataclasses of options: numbers outside their limits are refused at once.

    Raises:
        InputError: names the option, its limits and the value; also for NaN and infinity.
    """

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value, limits = getattr(self, field.name), field.metadata.get("limits") or {}
            for one in value if isinstance(value, list) else [value]:
                if one is None or not limits:
                    continue
                inside = all(_LIMITS[k][1](one, v) for k, v in limits.items())
                if not inside or one == math.inf:
                    said = " and ".join(f"{_LIMITS[k][0]} {v:.10g}" for k, v in limits.items())
                    said += " and finite" * inside
                    name = field.name.replace("_", "-")
                    raise InputError(f"--{name} must be {said}, got {one}")


def _value_type(annotation) -> type:
    """The type of one value in ``int``, ``int | None`` or ``list[int]``."""
    if isinstance(annotation, types.UnionType):
        annotation = next(a for a in typing.get_args(annotation) if a is not type(None))
    if typing.get_origin(annotation) is list:
        return typing.get_args(annotation)[0]
    return annotation


def parser(cls: type, doc: str) -> argparse.ArgumentParser:
    """An argument parser with one ``--field-name`` for each field of the dataclass ``cls``."""
    result = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    hints, groups = typing.get_type_hints(cls), {}
    inherited = {f.name for base in cls.__mro__[1:] for f in _fields_of(base)}
    for field in sorted(dataclasses.fields(cls), key=lambda field: field.name in inherited):
        meta = field.metadata
        if meta["group"] not in groups:
            groups[meta["group"]] = result.add_argument_group(meta["group"])
        mandatory = (
            field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        )
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        shown = "none" if default is None else default
        shown = "required" if mandatory else f"default: {meta.get('shown') or shown}"
        keywords = {"help": f"{meta['help']} ({shown})".replace("%", "%%"), "dest": field.name}
        kind = _value_type(hints[field.name])
        if kind is bool:
            switch = field.name.startswith("no_")  # whose negative would be --no-no-...
            keywords["action"] = "store_true" if switch else argparse.BooleanOptionalAction
        else:
            keywords |= {"type": kind, "choices": meta["choices"]}
            keywords["metavar"] = None if meta["choices"] else kind.__name__.upper()
            if typing.get_origin(hints[field.name]) is list:
                keywords["nargs"] = "+"
        keywords["required"] = mandatory
        if not mandatory:
            keywords["default"] = default
        groups[meta["group"]].add_argument("--" + field.name.replace("_", "-"), **keywords)
    return result


def _fields_of(cls: type) -> tuple[dataclasses.Field, ...]:
    return dataclasses.fields(cls) if dataclasses.is_dataclass(cls) else ()


def parse(cls: type, doc: str, arguments: list[str] | None = None):
    """Command line to an instance of the dataclass ``cls``."""
    return cls(**vars(parser(cls, doc).parse_args(arguments)))


def run(main: Callable, cls: type, doc: str) -> None:
    """Run a stage: parse, call ``main(cfg)``, and turn an error of the input into one sentence."""
    share_machine()
    # the default would end the process without removing half-written files
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        main(parse(cls, doc))
    except Stopped as stop:
        print(f"stopped: {stop}; the same command goes on from here", file=sys.stderr)
        sys.exit(stop.exit_code)
    except InputError as error:
        sys.exit(_fail(str(error)))
    except OSError as error:
        where = error.filename or "the output folder"
        if error.errno in FULL:
            sys.exit(_fail(f"the disk is full at {where}; free some space and run the same again"))
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            sys.exit(_fail(f"cannot write {where} ({error.strerror}); choose another place"))
        if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            sys.exit(_fail(str(unreadable(where, error, "file"))))
        raise
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        sys.exit(_fail("this takes more memory than there is; give smaller files or fewer spots"))
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(130)


def _interrupt(signum, frame):
    print("terminated; the same command goes on from here", file=sys.stderr)
    sys.exit(128 + signum)


def _fail(message: str) -> int:
    rank = f"rank {os.environ['RANK']}: " if "RANK" in os.environ else ""
    print(f"{rank}error: {message}", file=sys.stderr)
    return 2
