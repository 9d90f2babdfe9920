"""Sessions -> records: turns, reasoning, lengths, filters, splits, and a funnel that counts everything."""
