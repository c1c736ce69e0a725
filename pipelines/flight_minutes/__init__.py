"""By how many minutes will a flight arrive late? From what is known before it departs."""
