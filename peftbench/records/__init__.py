"""What was asked and what came out: specifications, records and the facts about what ran them."""
