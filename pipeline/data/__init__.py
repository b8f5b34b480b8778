"""From raw records to clean dialogues: shapes, duplicates, splits and the figures about them."""
