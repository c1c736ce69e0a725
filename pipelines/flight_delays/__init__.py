"""Will a flight arrive more than 15 minutes late? From what is known before it departs."""
