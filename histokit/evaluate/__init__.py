"""From trained runs to figures, tables and a report."""
