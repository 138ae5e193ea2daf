"""What the runtime costs, next to its peers in the same run: `make bench`. See README.md here for what is measured."""
