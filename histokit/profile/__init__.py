"""Time, memory and operations of the models as published and as they are here."""
