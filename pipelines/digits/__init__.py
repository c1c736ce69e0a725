"""Which digit did somebody write? From eight by eight grey pixels."""
