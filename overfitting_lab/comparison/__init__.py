"""What reads finished runs."""
