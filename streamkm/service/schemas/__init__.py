"""What routes take and answer, typed."""
