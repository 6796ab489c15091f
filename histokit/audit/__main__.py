"""The command ``python -m histokit.audit``."""

from histokit import audit
from histokit.core.options import run

run(audit.main, audit.Options, audit.__doc__)
