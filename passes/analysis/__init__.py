"""What a network is, from the operators it ran: groups of coupled units, what is frozen, costs, peak memory."""
