"""Double descent in regression on random features: the measurement, and its page."""
