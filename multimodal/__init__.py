"""Pictures, video and sound. The place is fixed by the layout; nothing is implemented yet."""
