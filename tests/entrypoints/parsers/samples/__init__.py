"""What models write, and by hand what it means: a module of samples for each format."""
